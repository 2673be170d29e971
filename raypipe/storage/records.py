"""What a run's files hold: records that are JSON checked against their schema, arrays, and the checksums of both."""

from __future__ import annotations

import hashlib
import io
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from raypipe.core.config import TrialConfig
from raypipe.core.record import Record
from raypipe.storage.files import Folder

OPTIONS = "options.json"
"""Of a run: how it was last driven."""
PRETRAINED = "pretrain.json"
"""The file that tells a pretrained run from a sweep's (`raypipe.pretraining.encoders`)."""

_OTHER = {
    "manifest.json": "a store of windows, not a run",
    "settings.json": "a store of windows that prepare did not finish, not a run",
    PRETRAINED: "a run of raypipe pretrain, which has no trials",
    "bundle.json": "a bundle, not a run",
}

State = Literal["complete", "pruned", "stopped", "failed"]


class RunInfo(Record):
    """What a run is made of (``run.json``)."""

    format: Literal["raypipe-run/1"] = "raypipe-run/1"
    created: float
    data: str
    data_hash: str
    task: str
    kind: Literal["regression", "classification"]
    metric: str
    direction: Literal["minimize", "maximize"]
    classes: list[str]
    seed: int
    space: str
    space_hash: str
    folds_hash: str
    versions: dict[str, str]
    warm: dict[str, Any] | None = None
    """What the study begins with (`raypipe.search.warm_start`)."""
    init: dict[str, Any] | None = None
    """The pretrained run whose encoders lie in the run's ``init``: its place, objective and their checksums."""


class Epoch(BaseModel):
    """One epoch of one trial over all its folds (``history.json``)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int
    passes: int
    """Forward and backward passes over the training windows so far (SAM: two an epoch); ASHA's resource."""
    score: float
    """The task's metric over the pooled out-of-fold predictions of this epoch."""
    fold_scores: list[float | None]
    """Each fold's own score; None where it has none (AUC of one class)."""
    losses: list[float]
    """Mean training loss of each fold."""
    seconds: float
    """Training and predicting, summed over the folds: seconds of one worker."""
    by_fold: bool = False
    """Each fold chooses its epoch by itself (on subjects of its training side): the latest epoch holds the choices."""
    over: bool = False
    """Every fold has stopped by itself."""
    finished: float = 0.0
    """Unix time at which it was scored; 0 in runs that were made before it was kept."""


class TrialResult(Record):
    """How a trial ended (``result.json``)."""

    format: Literal["raypipe-result/1"] = "raypipe-result/1"
    number: int
    state: State
    score: float | None
    """Score over all folds at the best epoch; None where no epoch was finished."""
    best_epoch: int
    epochs: int
    seconds: float
    reason: str
    failure: str | None = None
    """Kind of failure: bad-configuration, non-finite, out-of-memory, error, lost-worker."""
    finished: float
    files: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of what the trial has left, by name in its folder."""
    snapshots: list[int] = Field(default_factory=list)
    """Epochs that ended a cycle of the learning rate and whose weights and predictions were kept too."""
    initial: list[str] = Field(default_factory=list)
    """By fold, what tells initial weights apart (`finetuning.initial_id`): folds that share it can be averaged."""


class TrialRecord(Record):
    """A trial that was asked for (``trial.json``)."""

    format: Literal["raypipe-trial/1"] = "raypipe-trial/1"
    number: int
    started: float
    """Unix time at which it was first asked for."""
    config: TrialConfig
    rerun_of: int | None = None
    """The trial whose configuration it is, with another seed (`raypipe.search.reruns`)."""


class History(Record):
    """A trial's epochs (``history.json``)."""

    format: Literal["raypipe-history/1"] = "raypipe-history/1"
    epochs: list[Epoch]


class Member(NamedTuple):
    """Networks of a trial, one a fold: those of its best epoch, or a snapshot, those of another."""

    trial: int
    epoch: int = 0
    """Of a snapshot; 0 for the best."""

    def __str__(self) -> str:
        return f"trial {self.trial}" + (f" at epoch {self.epoch}" if self.epoch else "")

    def file(self, name: str) -> str:
        """What a file of the trial, such as ``oof.npz``, is called for this member."""
        stem, dot, kind = name.partition(".")
        return f"{stem}-epoch-{self.epoch:04d}{dot}{kind}" if self.epoch else name


def trial_file(number: int, name: str = "") -> str:
    """Where a file of a trial lies in its run."""
    return f"trials/{number:04d}/{name}"


def other_than_run(folder: Folder) -> str | None:
    """What of raypipe's lies in a folder that is no sweep's run, in words; None where it is nothing that is known."""
    return next((words for name, words in _OTHER.items() if folder.exists(name)), None)


@dataclass(frozen=True)
class OutOfFold:
    """Out-of-fold predictions of one trial: each window predicted by the fold model that never saw its subject."""

    windows: NDArray[np.int64]
    """(N,) window numbers in the store of windows, ascending."""
    folds: NDArray[np.int64]
    """(N,) fold that each belongs to."""
    predictions: NDArray[np.float32]
    """(N, outputs): the value in target units, or class probabilities."""
    variances: NDArray[np.float32] | None = None
    """(N,) of the values, in squared target units, where the network tells them."""


def best_epoch(history: Sequence[Epoch], direction: str) -> Epoch | None:
    """The epoch with the best score over all folds, the first of equals; the latest where folds choose themselves."""
    if not history:
        return None
    if history[-1].by_fold:
        return history[-1]
    return min(history, key=lambda e: e.score if direction == "minimize" else -e.score)


def versions() -> dict[str, str]:
    """Versions of what a run's numbers depend on."""
    packages = ("raypipe", "torch", "ray", "optuna", "mne", "scikit-learn", "numpy")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}


def digest(data: bytes) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(data).hexdigest()


def pack_oof(oof: OutOfFold) -> bytes:
    """Out-of-fold predictions as a file."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {"windows": oof.windows, "folds": oof.folds, "predictions": oof.predictions}
    if oof.variances is not None:
        arrays["variances"] = oof.variances
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def unpack(name: str, data: bytes) -> Any:
    """Read a file that a trial leaves, by its name, and run no code for it.

    Raises
    ------
    ValueError
        It is truncated, altered or something else.
    """
    try:
        if name in _RECORDS:
            return _RECORDS[name].parse(data, name)
        if name.startswith("oof"):
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                told = arrays.get("variances")
                return OutOfFold(arrays["windows"], arrays["folds"], arrays["predictions"], told)
        from safetensors.torch import load

        return load(data)
    except Exception as error:  # zipfile, zlib, NumPy and safetensors have one of their own for each kind of damage
        raise ValueError(f"{type(error).__name__}: {error}") from None


_RECORDS: dict[str, type[Record]] = {"trial.json": TrialRecord, "history.json": History, "result.json": TrialResult}
