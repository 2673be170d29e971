"""The run's own store: the one place that knows where things lie in a run folder.

It is the truth of a run. Every file is written whole or not at all, at the event it records, readable without Ray.

====================================  ==================================================================
``folds.json``                        the frozen subject-to-fold map, written first
``space.py``                          the copy of the search space that the run uses
``run.json``                          what the run is made of, with hashes; written last, makes it a run
``study.journal``                     the Optuna study (journal storage: optuna-dashboard reads it)
``compute/<key>.json``                how trials of one shape are computed, as measured (`raypipe.compute`)
``trials/0007/trial.json``            a trial's configuration
``trials/0007/history.json``          score over all folds, and each fold's, after every epoch
``trials/0007/fold-2/epoch-0005.ckpt``  a fold's whole state; the newest two and the best are kept
``trials/0007/oof.npz``               out-of-fold predictions of the best epoch
``trials/0007/fold-2.safetensors``    the weights that made them
``trials/0007/result.json``           how the trial ended; its presence means that it did
====================================  ==================================================================
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from raypipe.config import TrialConfig
from raypipe.errors import UserError
from raypipe.files import Folder, LocalFolder, open_folder, read_json, write_json
from raypipe.folds import FoldMap
from raypipe.space import SearchSpace

FORMAT = "raypipe-run/1"

State = Literal["complete", "pruned", "stopped", "failed"]


class RunInfo(BaseModel):
    """What a run is made of (``run.json``)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str = FORMAT
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


class TrialResult(BaseModel):
    """How a trial ended (``result.json``)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    state: State
    score: float | None
    """Score over all folds at the best epoch; None where no epoch was finished."""
    best_epoch: int
    epochs: int
    seconds: float
    reason: str
    failure: str | None = None
    """Kind of failure: bad-configuration, non-finite, error, lost-worker."""
    finished: float


@dataclass(frozen=True)
class OutOfFold:
    """Out-of-fold predictions of one trial: each window predicted by the fold model that never saw its subject."""

    windows: NDArray[np.int64]
    """(N,) window numbers in the store of windows, ascending."""
    folds: NDArray[np.int64]
    """(N,) fold that each belongs to."""
    predictions: NDArray[np.float32]
    """(N, outputs): the value in target units, or class probabilities."""


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


class RunStore:
    """A run folder, open. Make one with `create`, find one with `open`."""

    def __init__(self, folder: Folder, info: RunInfo, folds: FoldMap, space: SearchSpace) -> None:
        self.folder, self.info, self.folds, self.space = folder, info, folds, space

    def __reduce__(self) -> tuple[Any, ...]:
        return RunStore.open, (self.folder.where,)

    @property
    def where(self) -> str:
        """Path or URI of the run."""
        return self.folder.where

    @property
    def local(self) -> Path | None:
        """The run's path, where it is a folder of this machine."""
        return self.folder.path if isinstance(self.folder, LocalFolder) else None

    @staticmethod
    def exists(where: str | Path) -> bool:
        """Whether there is a run at `where`."""
        return open_folder(where).exists("run.json")

    @classmethod
    def create(cls, where: str | Path, info: RunInfo, folds: FoldMap, space: SearchSpace) -> RunStore:
        """Make a run.

        Raises
        ------
        UserError
            Something else lies there.
        """
        folder = open_folder(where)
        foreign = [n for n in folder.names() if n not in ("folds.json", "space.py") and not n.startswith("study")]
        if foreign:
            raise UserError(f"{where}: not a raypipe run, and not empty ({foreign[0]}); name a new folder")
        text = folds.model_dump_json(indent=1).encode()
        folder.write("folds.json", text)
        folder.write("space.py", space.source.encode())
        info = info.model_copy(update={"folds_hash": hashlib.sha256(text).hexdigest()})
        write_json(folder, "run.json", info.model_dump(mode="json"))
        return cls.open(where)

    @classmethod
    def open(cls, where: str | Path) -> RunStore:
        """Open a run and check that its fold map and space are the ones it was made with.

        Raises
        ------
        UserError
            There is no run, or its records are damaged or were changed.
        """
        folder = open_folder(where)
        if not folder.exists("run.json"):
            raise UserError(f"{where}: no raypipe run there; make one with: raypipe sweep SPACE --data STORE --run RUN")
        try:
            info = RunInfo.model_validate(read_json(folder, "run.json"))
        except ValidationError as error:
            problem = error.errors()[0]
            raise UserError(f"{where}/run.json: {'/'.join(map(str, problem['loc']))}: {problem['msg']}") from None
        try:
            folds_text, space_text = folder.read("folds.json"), folder.read("space.py")
        except FileNotFoundError as error:
            raise UserError(f"{where}: the run is damaged ({error}); restore it from a copy") from None
        if hashlib.sha256(folds_text).hexdigest() != info.folds_hash:
            raise UserError(
                f"{where}/folds.json: changed since the run was made, but a run's fold map is frozen: restore it"
            )
        space = SearchSpace(space_text.decode(), info.space)
        if space.hash != info.space_hash:
            raise UserError(f"{where}/space.py: changed since the run was made; another space needs another run folder")
        return cls(folder, info, FoldMap.model_validate_json(folds_text), space)

    # Trials

    @staticmethod
    def _trial(number: int, name: str = "") -> str:
        return f"trials/{number:04d}/{name}"

    def numbers(self) -> list[int]:
        """Numbers of all trials, in order."""
        found = (name.split("/") for name in self.folder.names("trials"))
        return sorted({int(parts[1]) for parts in found if len(parts) == 3 and parts[2] == "trial.json"})

    def add_trial(self, number: int, config: TrialConfig) -> None:
        """Record a configuration under its number."""
        record = {"number": number, "started": time.time(), "config": config.model_dump(mode="json")}
        write_json(self.folder, self._trial(number, "trial.json"), record)

    def has_trial(self, number: int) -> bool:
        """Whether the trial has been recorded."""
        return self.folder.exists(self._trial(number, "trial.json"))

    def config(self, number: int) -> TrialConfig:
        """Configuration of a trial."""
        return TrialConfig.model_validate(self._record(number)["config"])

    def started(self, number: int) -> float:
        """Unix time at which a trial was first asked for."""
        return float(self._record(number)["started"])

    def _record(self, number: int) -> dict[str, Any]:
        try:
            return dict(read_json(self.folder, self._trial(number, "trial.json")))
        except FileNotFoundError:
            raise UserError(f"{self.where}: no trial {number}") from None

    def history(self, number: int) -> list[Epoch]:
        """Epochs of a trial that every fold has finished."""
        name = self._trial(number, "history.json")
        if not self.folder.exists(name):
            return []
        return [Epoch.model_validate(record) for record in read_json(self.folder, name)]

    def write_history(self, number: int, history: Sequence[Epoch]) -> None:
        """Record the epochs of a trial."""
        text = json.dumps([epoch.model_dump() for epoch in history], indent=0)
        self.folder.write(self._trial(number, "history.json"), text.encode())

    def result(self, number: int) -> TrialResult | None:
        """How a trial ended, or None while it has not."""
        name = self._trial(number, "result.json")
        return TrialResult.model_validate(read_json(self.folder, name)) if self.folder.exists(name) else None

    def write_result(self, result: TrialResult) -> None:
        """Record a trial's end."""
        write_json(self.folder, self._trial(result.number, "result.json"), result.model_dump(mode="json"))

    def results(self) -> list[TrialResult]:
        """All trials that have ended, by number."""
        return [result for number in self.numbers() if (result := self.result(number)) is not None]

    def ranked(self) -> list[TrialResult]:
        """Trials with weights (complete, or stopped by the time budget), best first; ties go to the lower number."""
        sign = 1.0 if self.info.direction == "minimize" else -1.0
        usable = [r for r in self.results() if r.state in ("complete", "stopped") and r.score is not None]
        return sorted(usable, key=lambda r: (sign * (r.score or 0.0), r.number))

    # How trials are computed

    def compute(self, key: str) -> dict[str, Any] | None:
        """What was chosen for a shape of network and data (`raypipe.compute`), or None."""
        name = f"compute/{key}.json"
        return dict(read_json(self.folder, name)) if self.folder.exists(name) else None

    def write_compute(self, key: str, record: dict[str, Any]) -> None:
        """Keep a choice."""
        write_json(self.folder, f"compute/{key}.json", record)

    # Checkpoints

    def _checkpoint(self, number: int, fold: int, epoch: int) -> str:
        return self._trial(number, f"fold-{fold}/epoch-{epoch:04d}.ckpt")

    def write_checkpoint(self, number: int, fold: int, epoch: int, data: bytes) -> None:
        """Keep a fold's state after `epoch`."""
        self.folder.write(self._checkpoint(number, fold, epoch), data)

    def read_checkpoint(self, number: int, fold: int, epoch: int) -> bytes:
        """Bytes of a checkpoint; FileNotFoundError where there is none."""
        return self.folder.read(self._checkpoint(number, fold, epoch))

    def checkpoints(self, number: int, fold: int) -> list[int]:
        """Epochs of a fold's checkpoints, ascending."""
        names = self.folder.names(self._trial(number, f"fold-{fold}"))
        return sorted(int(name[-9:-5]) for name in names if name.endswith(".ckpt"))

    def drop_checkpoints(self, number: int, fold: int, keep: Sequence[int] = (), before: float = math.inf) -> None:
        """Remove a fold's checkpoints of epochs `before` one, but those of the epochs `keep`."""
        for epoch in self.checkpoints(number, fold):
            if epoch < before and epoch not in keep:
                self.folder.remove(self._checkpoint(number, fold, epoch))

    def tidy(self) -> None:
        """Remove checkpoints of trials that have ended: a worker may write its last one after the trial's end."""
        for name in self.folder.names("trials"):
            if name.endswith(".ckpt") and self.result(int(name.split("/")[1])) is not None:
                self.folder.remove(name)

    # What a trial leaves

    def write_oof(self, number: int, oof: OutOfFold) -> None:
        """Record out-of-fold predictions."""
        buffer = io.BytesIO()
        np.savez(buffer, windows=oof.windows, folds=oof.folds, predictions=oof.predictions)
        self.folder.write(self._trial(number, "oof.npz"), buffer.getvalue())

    def oof(self, number: int) -> OutOfFold:
        """Out-of-fold predictions of a trial.

        Raises
        ------
        UserError
            The trial has left none.
        """
        try:
            data = self.folder.read(self._trial(number, "oof.npz"))
        except FileNotFoundError:
            raise UserError(f"{self.where}: trial {number} has no out-of-fold predictions") from None
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return OutOfFold(arrays["windows"], arrays["folds"], arrays["predictions"])

    def write_weights(self, number: int, fold: int, tensors: dict[str, Any]) -> None:
        """Keep the weights of a fold's best epoch (safetensors)."""
        from safetensors.torch import save

        self.folder.write(self._trial(number, f"fold-{fold}.safetensors"), save(tensors))

    def weights(self, number: int, fold: int) -> dict[str, Any]:
        """Weights of a fold's best epoch."""
        from safetensors.torch import load

        return dict(load(self.folder.read(self._trial(number, f"fold-{fold}.safetensors"))))
