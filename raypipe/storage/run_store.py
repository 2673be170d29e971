"""The run's own store: the one place that knows where things lie in a run folder.

It is the truth of a run. Every file is written whole or not at all, at the event it records, readable without Ray.

====================================  ==================================================================
``folds.json``                        the frozen subject-to-fold map, written first
``space.py``                          the copy of the search space that the run uses
``run.json``                          what the run is made of, with hashes; written last, makes it a run
``study.journal``                     the Optuna study (journal storage: optuna-dashboard reads it)
``init/encoder.safetensors``           the pretrained encoder that trials start from, where there is one
``compute/<key>.json``                how trials of one shape are computed, as measured (`raypipe.trial.autotune`)
``log/ray.txt``                       what Ray has printed, its end (`raypipe.backend.output`)
``trials/0007/trial.json``            a trial's configuration
``trials/0007/history.json``          score over all folds, and each fold's, after every epoch
``trials/0007/fold-2/epoch-0005.ckpt``  a fold's whole state; the newest two, the best, and ends of cycles are kept
``trials/0007/oof.npz``               out-of-fold predictions of the best epoch
``trials/0007/fold-2.safetensors``    the weights that made them
``trials/0007/oof-epoch-0010.npz``    those of a snapshot, the end of a cycle of the learning rate; so its weights
``trials/0007/log/<who>.txt``         what happened to it, by each of its writers (`raypipe.storage.trial_log`)
``trials/0007/retry.json``            how it is tried again, had it run out of memory (`raypipe.trial.failures`)
``trials/0007/result.json``           how the trial ended, with checksums of what it left; its presence means that
                                      it did
====================================  ==================================================================
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from raypipe.core.config import TrialConfig
from raypipe.core.errors import UserError, first_line
from raypipe.core.folds import FoldMap
from raypipe.core.metrics import get_metric
from raypipe.core.search_space import SearchSpace
from raypipe.storage.files import (
    Folder,
    LocalFolder,
    map_concurrently,
    open_folder,
    read_json,
    read_record,
    write_json,
    write_record,
)
from raypipe.storage.records import (
    Epoch,
    History,
    Member,
    OutOfFold,
    RunInfo,
    State,
    TrialRecord,
    TrialResult,
    best_epoch,
    digest,
    other_than_run,
    pack_oof,
    trial_file,
    unpack,
    versions,
)

__all__ = ["Epoch", "Member", "OutOfFold", "RunInfo", "RunStore", "State", "TrialResult", "best_epoch", "versions"]


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

    @staticmethod
    def require_room(where: str | Path) -> None:
        """Refuse a folder in which something else lies than what a run begins with."""
        folder = open_folder(where)
        begun = ("study", "init/")
        foreign = [n for n in folder.names() if n not in ("folds.json", "space.py") and not n.startswith(begun)]
        if foreign:
            there = other_than_run(folder) or f"not a raypipe run, and not empty ({foreign[0]})"
            raise UserError(f"{where}: {there}; name a new folder")

    @classmethod
    def create(cls, where: str | Path, info: RunInfo, folds: FoldMap, space: SearchSpace) -> RunStore:
        """Make a run.

        Raises
        ------
        UserError
            Something else lies there.
        """
        folder = open_folder(where)
        cls.require_room(where)
        text = folds.to_json()
        folder.write("folds.json", text)
        folder.write("space.py", space.source.encode())
        info = info.model_copy(update={"folds_hash": digest(text)})
        write_record(folder, "run.json", info)
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
            there = other_than_run(folder) or "no raypipe run there"
            raise UserError(f"{where}: {there}; make one with: raypipe sweep SPACE --data STORE --run RUN")
        info = read_record(RunInfo, folder, "run.json")
        try:
            folds_text, space_text = folder.read("folds.json"), folder.read("space.py")
        except FileNotFoundError as error:
            raise UserError(f"{where}: the run is damaged ({error}); restore it from a copy") from None
        if digest(folds_text) != info.folds_hash:
            raise UserError(
                f"{where}/folds.json: changed since the run was made, but a run's fold map is frozen: restore it"
            )
        if digest(space_text) != info.space_hash:
            raise UserError(f"{where}/space.py: changed since the run was made; another space needs another run folder")
        space = SearchSpace(space_text.decode(), info.space)
        return cls(folder, info, FoldMap.parse(folds_text, f"{where}/folds.json"), space)

    # Trials

    def numbers(self, having: str = "trial.json") -> list[int]:
        """Numbers of all trials that have such a file, in order."""
        return sorted(number for number, names in self.listing().items() if having in names)

    def listing(self) -> dict[int, set[str]]:
        """Names of the files in every trial's folder, by number; those in folders below are left out."""
        found: dict[int, set[str]] = {}
        for name in self.folder.names("trials"):
            parts = name.split("/")
            if len(parts) == 3:
                found.setdefault(int(parts[1]), set()).add(parts[2])
        return found

    def add_trial(self, number: int, config: TrialConfig, rerun_of: int | None = None) -> None:
        """Record a configuration under its number, and the trial whose it is with another seed, if it is."""
        record = TrialRecord(number=number, started=time.time(), config=config, rerun_of=rerun_of)
        write_record(self.folder, trial_file(number, "trial.json"), record)

    def has_trial(self, number: int) -> bool:
        """Whether the trial has been recorded."""
        return self.folder.exists(trial_file(number, "trial.json"))

    def config(self, number: int) -> TrialConfig:
        """Configuration of a trial."""
        return self.record(number).config

    def rerun_of(self, number: int) -> int | None:
        """The trial that a trial trains again on another seed, or None."""
        return self.record(number).rerun_of

    def started(self, number: int) -> float:
        """Unix time at which a trial was first asked for."""
        return self.record(number).started

    def record(self, number: int) -> TrialRecord:
        """What was recorded of a trial when it was first asked for."""
        try:
            return read_record(TrialRecord, self.folder, trial_file(number, "trial.json"))
        except FileNotFoundError:
            raise UserError(f"{self.where}: no trial {number}") from None

    def history(self, number: int) -> list[Epoch]:
        """Epochs of a trial that every fold has finished."""
        try:
            return read_record(History, self.folder, trial_file(number, "history.json")).epochs
        except FileNotFoundError:
            return []

    def write_history(self, number: int, history: Sequence[Epoch]) -> None:
        """Record the epochs of a trial."""
        write_record(self.folder, trial_file(number, "history.json"), History(epochs=list(history)))

    def result(self, number: int) -> TrialResult | None:
        """How a trial ended, or None while it has not."""
        try:
            return read_record(TrialResult, self.folder, trial_file(number, "result.json"))
        except FileNotFoundError:
            return None

    def write_result(self, result: TrialResult) -> None:
        """Record a trial's end."""
        write_record(self.folder, trial_file(result.number, "result.json"), result)

    def results(self) -> list[TrialResult]:
        """All trials that have ended, by number."""
        ended = [n for n, names in self.listing().items() if {"trial.json", "result.json"} <= names]
        found = map_concurrently(self.folder, self.result, sorted(ended))
        return [result for result in found if result is not None]

    def ranked(self, results: Iterable[TrialResult] | None = None) -> list[TrialResult]:
        """Trials with weights (complete, or stopped by a budget), best first; ties go to the lower number.

        `results` are all results, where they have been read already.
        """
        sign = get_metric(self.info.metric).sign
        results = self.results() if results is None else results
        usable = [r for r in results if r.state in ("complete", "stopped") and r.score is not None]
        return sorted(usable, key=lambda r: (sign * (r.score or 0.0), r.number))

    # Where trials start

    def write_encoder(self, name: str, data: bytes) -> None:
        """Keep a pretrained encoder (safetensors) under ``init``, before the run is made."""
        self.folder.write(f"init/{name}", data)

    def encoder(self, fold: int) -> dict[str, Any] | None:
        """Weights of the pretrained encoder that a fold starts from; None where the run has none.

        Raises
        ------
        UserError
            They are damaged.
        """
        files = (self.info.init or {}).get("files", {})
        name = f"encoder-fold-{fold}.safetensors"
        name = name if name in files else "encoder.safetensors"
        if name not in files:
            return None
        try:
            data = self.folder.read(f"init/{name}")
        except FileNotFoundError:
            raise UserError(f"{self.where}/init/{name}: missing; restore it from a copy") from None
        if digest(data) != files[name]:
            raise UserError(f"{self.where}/init/{name}: damaged (its checksum differs); restore it from a copy")
        return dict(unpack(name, data))

    # How trials are computed

    def compute(self, key: str) -> dict[str, Any] | None:
        """What was chosen for a shape of network and data (`raypipe.trial.autotune`), or None."""
        name = f"compute/{key}.json"
        return dict(read_json(self.folder, name)) if self.folder.exists(name) else None

    def write_compute(self, key: str, record: dict[str, Any]) -> None:
        """Keep a choice."""
        write_json(self.folder, f"compute/{key}.json", record)

    # Checkpoints

    def _checkpoint(self, number: int, fold: int, epoch: int) -> str:
        return trial_file(number, f"fold-{fold}/epoch-{epoch:04d}.ckpt")

    def write_checkpoint(self, number: int, fold: int, epoch: int, data: bytes) -> None:
        """Keep a fold's state after `epoch`."""
        self.folder.write(self._checkpoint(number, fold, epoch), data)

    def read_checkpoint(self, number: int, fold: int, epoch: int) -> bytes:
        """Bytes of a checkpoint; FileNotFoundError where there is none."""
        return self.folder.read(self._checkpoint(number, fold, epoch))

    def checkpoints(self, number: int, fold: int) -> list[int]:
        """Epochs of a fold's checkpoints, ascending."""
        names = self.folder.names(trial_file(number, f"fold-{fold}"))
        return sorted(int(name[-9:-5]) for name in names if name.endswith(".ckpt"))

    def drop_checkpoints(self, number: int, fold: int, keep: Sequence[int] = (), before: float = math.inf) -> None:
        """Remove a fold's checkpoints of epochs `before` one, but those of the epochs `keep`."""
        for epoch in self.checkpoints(number, fold):
            if epoch < before and epoch not in keep:
                self.folder.remove(self._checkpoint(number, fold, epoch))

    def tidy(self) -> None:
        """Remove what nobody needs when a sweep has ended.

        Checkpoints of trials that have ended: a worker may write its last one after the trial's end. And temporary
        files of who was killed while writing, but not those that `report` and `ensemble` may have in hand.
        """
        for name in self.folder.temporary():
            if name.startswith(("trials/", "compute/", "study/", "log/")) or ("/" not in name and ".json." in name):
                self.folder.remove(name)
        for name in self.folder.names("trials"):
            if name.endswith(".ckpt") and self.result(int(name.split("/")[1])) is not None:
                self.folder.remove(name)

    # What a trial leaves

    def write_oof(self, number: int, oof: OutOfFold, epoch: int = 0) -> dict[str, str]:
        """Record out-of-fold predictions, of a snapshot with its epoch; the file's entry in `TrialResult.files`."""
        return self._leave(number, Member(number, epoch).file("oof.npz"), pack_oof(oof))

    def oof(self, number: int, epoch: int = 0) -> OutOfFold:
        """Out-of-fold predictions of a trial, or of its snapshot of `epoch`.

        Raises
        ------
        UserError
            The trial has left none, or they are damaged.
        """
        try:
            left: OutOfFold = self._left(number, Member(number, epoch).file("oof.npz"))
        except FileNotFoundError:
            raise UserError(f"{self.where}: {Member(number, epoch)} has no out-of-fold predictions") from None
        return left

    def write_weights(self, number: int, fold: int, tensors: dict[str, Any], epoch: int = 0) -> dict[str, str]:
        """Keep the weights of a fold's best epoch, or of a snapshot (safetensors); its entry in `TrialResult.files`."""
        from safetensors.torch import save

        return self._leave(number, Member(number, epoch).file(f"fold-{fold}.safetensors"), save(tensors))

    def weights(self, number: int, fold: int, epoch: int = 0) -> dict[str, Any]:
        """Weights of a fold's best epoch, or of its snapshot of `epoch`.

        Raises
        ------
        FileNotFoundError
            There are none.
        UserError
            They are damaged.
        """
        return dict(self._left(number, Member(number, epoch).file(f"fold-{fold}.safetensors")))

    def records_left(self, number: int) -> dict[str, str]:
        """Entries in `TrialResult.files` of a trial's configuration and history, as they are now."""
        there = [name for name in ("trial.json", "history.json") if self.folder.exists(trial_file(number, name))]
        return {name: digest(self.folder.read(trial_file(number, name))) for name in there}

    def _leave(self, number: int, name: str, data: bytes) -> dict[str, str]:
        self.folder.write(trial_file(number, name), data)
        return {name: digest(data)}

    def _left(self, number: int, name: str) -> Any:
        """Read a file that a trial has left, as it was when the trial ended."""
        data = self.folder.read(trial_file(number, name))
        ended = self.result(number)
        try:
            if ended is not None and ended.files.get(name, digest(data)) != digest(data):
                raise ValueError("its checksum is not the one that the trial left")
            return unpack(name, data)
        except ValueError as error:
            path = f"{self.where}/{trial_file(number, name)}"
            raise UserError(f"{path}: damaged ({first_line(error)}); restore it from a copy") from None

    def verify(self, numbers: Iterable[int] | None = None) -> dict[str, str]:
        """Read what trials have left, and compare it with the checksums in their results.

        Parameters
        ----------
        numbers
            The trials; None for all.

        Returns
        -------
        dict
            By name in the run, a line on each file that is damaged or missing; empty where all is well.
        """
        if numbers is None:
            numbers = sorted({int(name.split("/")[1]) for name in self.folder.names("trials")})
        found: dict[str, str] = {}
        for number in numbers:
            for name in self._expected(number):
                path = trial_file(number, name)
                try:
                    self._left(number, name)
                except FileNotFoundError:
                    found[path] = f"{self.where}/{path}: missing; restore it from a copy"
                except UserError as error:
                    found[path] = str(error)
        return found

    def _expected(self, number: int) -> list[str]:
        """Names of what a trial must have by now."""
        try:
            ended = self.result(number)
        except UserError:
            return ["result.json"]
        return sorted(ended.files) if ended else ["trial.json"]

    def require_whole(self, numbers: Iterable[int]) -> None:
        """Raise a UserError that names every file of these trials that is damaged or missing."""
        damaged = self.verify(numbers)
        if len(damaged) > 1:
            names = ", ".join(damaged)
            raise UserError(f"{self.where}: {len(damaged)} files are damaged or missing: {names}; restore them")
        for line in damaged.values():
            raise UserError(line)
