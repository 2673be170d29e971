"""The manifest of a submission (``manifest.json``): the networks of each challenge, and predictions to compare with."""

from __future__ import annotations

import hashlib
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from raypipe.core.record import FrozenModel, Record
from raypipe.ensembles.rules import Finite
from raypipe.packaging.network_spec import NetworkSpec

MANIFEST = "manifest.json"


class ReferencePredictions(FrozenModel):
    """Predictions of `scorer.reference_windows`."""

    seed: int
    answers: Annotated[list[Finite], Field(max_length=1000)]


class ChallengeEntry(FrozenModel):
    """The model of one challenge."""

    weights: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    """Name of the file of weights."""
    input_scale: float = Field(gt=0.0, le=1e12)
    """Microvolts per unit of the scorer's windows."""
    spec: NetworkSpec
    target: str
    classes: list[str]
    threshold: float | None = Field(ge=0.0, le=1.0)
    """Answer above which the second class is predicted; None for a regression."""
    channels: list[str]
    """Of the windows, in order."""
    tmin: Finite
    """Seconds from an event to the windows in evaluation (`challenge_windows.shown_from`)."""
    data_hash: str
    method: str
    learned_from: list[str]
    """Hashes of the training subjects (`subject_hash`)."""
    reference: ReferencePredictions


class SubmissionManifest(Record):
    """The content of a submission."""

    max_bytes: ClassVar[int] = 16 * 2**20
    max_values: ClassVar[int] = 400_000
    from_elsewhere: ClassVar[bool] = True

    format: Literal["raypipe-submission/5"] = "raypipe-submission/5"
    challenges: dict[Literal["1", "2"], ChallengeEntry]
    """By number of the challenge."""
    sha256: dict[str, str]
    """Checksums of the other files by name."""


def subject_hash(subject: str) -> str:
    """Return a hash that identifies a subject without its label."""
    return hashlib.sha256(subject.encode()).hexdigest()[:16]
