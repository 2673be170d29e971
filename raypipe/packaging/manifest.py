"""The manifest of a submission (``manifest.json``): the networks of each challenge, and predictions to compare with."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

from pydantic import ConfigDict

from raypipe.core.record import FrozenModel, Record

MANIFEST = "manifest.json"


class NetworkSpec(FrozenModel):
    """Describes the networks as `EnsembleModule` takes them; a ``rule`` may follow."""

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: Literal["regression", "classification"]
    n_channels: int
    n_times: int
    n_outputs: int
    sfreq: float
    """Hz."""
    members: list[dict[str, Any]]


class ReferencePredictions(FrozenModel):
    """Predictions of `scorer.reference_windows`."""

    seed: int
    answers: list[float]


class ChallengeEntry(FrozenModel):
    """The model of one challenge."""

    weights: str
    """Name of the file of weights."""
    input_scale: float
    """Microvolts per unit of the scorer's windows."""
    spec: NetworkSpec
    task: str
    classes: list[str]
    channels: list[str]
    data_hash: str
    method: str
    learned_from: list[str]
    """Hashes of the training subjects (`subject_hash`)."""
    reference: ReferencePredictions


class SubmissionManifest(Record):
    """The content of a submission."""

    format: Literal["raypipe-submission/1"] = "raypipe-submission/1"
    challenges: dict[str, ChallengeEntry]
    """By number of the challenge."""
    sha256: dict[str, str]
    """Checksums of the other files by name."""


def subject_hash(subject: str) -> str:
    """Return a hash that identifies a subject without its label."""
    return hashlib.sha256(subject.encode()).hexdigest()[:16]
