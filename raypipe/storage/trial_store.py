"""The files of a run's trials: records, checkpoints, out-of-fold predictions and weights."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

from raypipe.core.config import TrialConfig
from raypipe.core.errors import DamagedFileError, UserError, first_line
from raypipe.core.record import Record
from raypipe.storage.checkpoint_file import RawTensor, pack_raw
from raypipe.storage.files import Folder, map_concurrently, no_folder_error, write_record
from raypipe.storage.out_of_fold import EpochPredictions, OutOfFold, unpack_tensors
from raypipe.storage.records import (
    HISTORY_FILE,
    OOF_FILE,
    RESULT_FILE,
    TRIAL_FILE,
    Epoch,
    History,
    Member,
    TrialRecord,
    TrialResult,
    digest,
    epoch_file,
    read_owned,
    trial_file,
)

T = TypeVar("T")

_IN_TRIAL = re.compile(r"trials/(\d{4}|[1-9]\d{4,})/")
_FILE_OF_TRIAL = re.compile(r"trials/(\d{4}|[1-9]\d{4,})/([^/]+)")
_CHECKPOINT = re.compile(r"/epoch-(\d{4,})\.ckpt\Z")
"""Names of a trial's files. Others, such as a file manager's, are ignored."""

_RECORDS: dict[str, type[Record]] = {TRIAL_FILE: TrialRecord, HISTORY_FILE: History, RESULT_FILE: TrialResult}


class TrialStore:
    """Read and write the files of a run's trials. `raypipe.storage.run_store` lists them.

    Parameters
    ----------
    folder
        The run's folder.
    run_id
        `RunInfo.id`.
    scored
        What scores of trials are of, in words, for their histories.
    """

    def __init__(self, folder: Folder, run_id: str, scored: str) -> None:
        self.folder, self.run_id, self.scored = folder, run_id, scored

    @property
    def where(self) -> str:
        """Return the path or URI of the run."""
        return self.folder.where

    # Records

    def listing(self) -> dict[int, set[str]]:
        """Return the names of the files in every trial's folder, by trial, without those in folders below it.

        A trial's folder that is a link or a file raises `DamagedFileError`.
        """
        found: dict[int, set[str]] = {}
        for name in self.folder.names("trials"):
            match = _FILE_OF_TRIAL.fullmatch(name)
            if match is None and _IN_TRIAL.fullmatch(f"{name}/"):
                raise no_folder_error(f"{self.where}/{name}")
            if match:
                found.setdefault(int(match[1]), set()).add(match[2])
        return found

    def recorded(self) -> list[int]:
        """Return the numbers of the trials that have a record, ascending. Other files make no trial."""
        return sorted(number for number, names in self.listing().items() if names & _RECORDS.keys())

    def foreign(self) -> list[str]:
        """Return the names of files in ``trials`` that are in no folder of a trial; they are not read."""
        return [name for name in self.folder.names("trials") if not _IN_TRIAL.match(name)]

    def numbers(self, having: str = TRIAL_FILE) -> list[int]:
        """Return the numbers of the trials whose folder has a file of the name `having`, ascending."""
        return sorted(number for number, names in self.listing().items() if having in names)

    def add_trial(self, number: int, config: TrialConfig, rerun_of: int | None = None, **drawn: Any) -> None:
        """Record a trial's configuration, the trial that it repeats on another seed, if any, and what the study drew.

        The latter are ``params`` and ``distributions`` of `TrialRecord`.
        """
        record = TrialRecord(
            run=self.run_id, number=number, started=time.time(), config=config, rerun_of=rerun_of, **drawn
        )
        write_record(self.folder, trial_file(number, TRIAL_FILE), record)

    def has_trial(self, number: int) -> bool:
        """Return whether the trial has been recorded."""
        return self.folder.exists(trial_file(number, TRIAL_FILE))

    def record(self, number: int) -> TrialRecord:
        """Return the record of a trial.

        Raises
        ------
        UserError
            There is no such trial, or its record is damaged.
        """
        try:
            return read_owned(TrialRecord, self.folder, trial_file(number, TRIAL_FILE), self.run_id, number)
        except FileNotFoundError:
            raise UserError(f"{self.where}: no trial {number}") from None

    def config(self, number: int) -> TrialConfig:
        """Return the configuration of a trial; raises as `record`."""
        return self.record(number).config

    def rerun_of(self, number: int) -> int | None:
        """Return the trial that a trial repeats on another seed, or None; raises as `record`."""
        return self.record(number).rerun_of

    def started(self, number: int) -> float:
        """Return the Unix time (s) at which a trial was recorded, before it started; raises as `record`."""
        return self.record(number).started

    def history(self, number: int) -> list[Epoch]:
        """Return the epochs of a trial that all its folds have finished.

        Raises
        ------
        UserError
            The record is damaged.
        """
        try:
            return read_owned(History, self.folder, trial_file(number, HISTORY_FILE), self.run_id, number).epochs
        except FileNotFoundError:
            return []

    def write_history(self, number: int, history: Sequence[Epoch]) -> None:
        """Record the epochs of a trial."""
        record = History(run=self.run_id, number=number, scored=self.scored, epochs=list(history))
        write_record(self.folder, trial_file(number, HISTORY_FILE), record)

    def result(self, number: int) -> TrialResult | None:
        """Return the result of a trial, or None if it has not ended.

        Raises
        ------
        UserError
            The record is damaged.
        """
        try:
            return read_owned(TrialResult, self.folder, trial_file(number, RESULT_FILE), self.run_id, number)
        except FileNotFoundError:
            return None

    def write_result(self, result: TrialResult) -> None:
        """Store the result of a trial, which then counts as ended."""
        owned = result.model_copy(update={"run": self.run_id})
        write_record(self.folder, trial_file(result.number, RESULT_FILE), owned)

    def results(self) -> list[TrialResult]:
        """Return the results of all trials that have ended, by number."""
        ended = [n for n, names in self.listing().items() if {TRIAL_FILE, RESULT_FILE} <= names]
        found = map_concurrently(self.folder, self.result, sorted(ended))
        return [result for result in found if result is not None]

    # Checkpoints

    def write_checkpoint(self, number: int, fold: int, epoch: int, data: bytes) -> None:
        """Store a fold's state after `epoch`."""
        self.folder.write(_checkpoint(number, fold, epoch), data)

    def read_checkpoint(self, number: int, fold: int, epoch: int) -> bytes:
        """Return the content of a checkpoint.

        Raises
        ------
        FileNotFoundError
            There is no such checkpoint.
        """
        return self.folder.read(_checkpoint(number, fold, epoch))

    def checkpoints(self, number: int, fold: int) -> list[int]:
        """Return the epochs of a fold's checkpoints, ascending."""
        names = self.folder.names(trial_file(number, f"fold-{fold}"))
        return sorted(int(match[1]) for name in names if (match := _CHECKPOINT.search(name)))

    def drop_checkpoints(self, number: int, fold: int, keep: Sequence[int] = (), before: float = math.inf) -> None:
        """Remove a fold's checkpoints of epochs before `before`, except those in `keep`."""
        for epoch in self.checkpoints(number, fold):
            if epoch < before and epoch not in keep:
                self.folder.remove(_checkpoint(number, fold, epoch))

    # Predictions and weights

    def write_oof(self, number: int, oof: OutOfFold, epoch: int = 0) -> dict[str, str]:
        """Store out-of-fold predictions of the best epoch, or of the snapshot of `epoch`.

        Returns
        -------
        dict
            The file's entry in `TrialResult.files`.
        """
        return self._write_output(number, Member(number, epoch).file(OOF_FILE), oof.to_npz())

    def oof(self, number: int, epoch: int = 0) -> OutOfFold:
        """Return the out-of-fold predictions of a trial, or of its snapshot of `epoch`.

        Raises
        ------
        UserError
            The trial has none, or they are damaged.
        """
        try:
            return self._read_output(number, Member(number, epoch).file(OOF_FILE), OutOfFold.from_npz)
        except FileNotFoundError:
            raise UserError(f"{self.where}: {Member(number, epoch)} has no out-of-fold predictions") from None

    def write_epoch_predictions(self, number: int, epoch: int, predictions: EpochPredictions) -> str:
        """Store a trial's out-of-fold predictions of an epoch; return `Epoch.predictions`, their checksum."""
        (checksum,) = self._write_output(number, epoch_file(epoch), predictions.to_npz()).values()
        return checksum

    def epoch_predictions(self, number: int, epoch: Epoch) -> EpochPredictions:
        """Return a trial's out-of-fold predictions of an epoch in its history.

        Raises
        ------
        DamagedFileError
            They are missing, damaged, or those of another epoch.
        """
        name = trial_file(number, epoch_file(epoch.epoch))
        try:
            data = self.folder.read(name)
            if digest(data) != epoch.predictions:
                raise ValueError(f"its checksum is not the one in {HISTORY_FILE}")
            return EpochPredictions.from_npz(data)
        except FileNotFoundError:
            raise DamagedFileError(f"{self.where}/{name}: missing; restore it from a copy") from None
        except ValueError as error:
            what = f"damaged ({first_line(error)})"
            raise DamagedFileError(f"{self.where}/{name}: {what}; restore it from a copy") from None

    def write_weights(self, number: int, fold: int, tensors: dict[str, RawTensor], epoch: int = 0) -> dict[str, str]:
        """Store the weights of a fold's best epoch, or of the snapshot of `epoch`; returns as `write_oof`."""
        return self._write_output(number, Member(number, epoch).file(f"fold-{fold}.safetensors"), pack_raw(tensors))

    def weights(self, number: int, fold: int, epoch: int = 0) -> dict[str, Any]:
        """Return the weights of a fold's best epoch, or of its snapshot of `epoch`.

        Raises
        ------
        FileNotFoundError
            There are none.
        UserError
            They are damaged.
        """
        return self._read_output(number, Member(number, epoch).file(f"fold-{fold}.safetensors"), unpack_tensors)

    # Checksums

    def record_checksums(self, number: int) -> dict[str, str]:
        """Return the entries in `TrialResult.files` of a trial's configuration and history."""
        names = [name for name in (TRIAL_FILE, HISTORY_FILE) if self.folder.exists(trial_file(number, name))]
        return {name: digest(self.folder.read(trial_file(number, name))) for name in names}

    def verify(self, numbers: Iterable[int] | None = None) -> dict[str, str]:
        """Read the files of trials and compare them with the checksums in their results.

        Parameters
        ----------
        numbers
            The trials; None for all.

        Returns
        -------
        dict
            A line for each file that is damaged or missing, by its path in the run.
        """
        if numbers is None:
            numbers = self.recorded()
        found: dict[str, str] = {}
        for number in numbers:
            for name in self._expected_files(number):
                path = trial_file(number, name)
                try:
                    self._read_output(number, name, self._parser(number, name))
                except FileNotFoundError:
                    found[path] = f"{self.where}/{path}: missing; restore it from a copy"
                except UserError as error:
                    found[path] = str(error)
        return found

    def require_whole(self, numbers: Iterable[int]) -> None:
        """Check the files of trials.

        Raises
        ------
        UserError
            Names every file that is damaged or missing.
        """
        damaged = self.verify(numbers)
        if len(damaged) == 1:
            raise UserError(*damaged.values())
        if damaged:
            names = ", ".join(damaged)
            raise UserError(f"{self.where}: {len(damaged)} files are damaged or missing: {names}; restore them")

    def _expected_files(self, number: int) -> list[str]:
        try:
            ended = self.result(number)
        except UserError:
            return [RESULT_FILE]
        return sorted(ended.files) if ended else [TRIAL_FILE]

    def _write_output(self, number: int, name: str, data: bytes) -> dict[str, str]:
        self.folder.write(trial_file(number, name), data)
        return {name: digest(data)}

    def _parser(self, number: int, name: str) -> Callable[[bytes], object]:
        """Return the function that parses the content of a trial's file."""
        if name in _RECORDS:
            return partial(_RECORDS[name].parse, where=f"{self.where}/{trial_file(number, name)}")
        if name.endswith(".npz"):
            return OutOfFold.from_npz if name.startswith("oof") else EpochPredictions.from_npz
        return unpack_tensors

    def _read_output(self, number: int, name: str, parse: Callable[[bytes], T]) -> T:
        """Read and parse a file of a trial, and compare it with the checksum that the trial recorded at its end."""
        data = self.folder.read(trial_file(number, name))
        path = f"{self.where}/{trial_file(number, name)}"
        ended = self.result(number)
        try:
            if ended is not None and ended.files.get(name, digest(data)) != digest(data):
                raise ValueError("its checksum is not the one that the trial recorded")
            return parse(data)
        except ValueError as error:
            raise DamagedFileError(f"{path}: damaged ({first_line(error)}); restore it from a copy") from None


def _checkpoint(number: int, fold: int, epoch: int) -> str:
    return trial_file(number, f"fold-{fold}/epoch-{epoch:04d}.ckpt")
