"""Read the records of all trials of a run, and check that they agree with each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from raypipe.core.errors import DamagedFileError, UserError
from raypipe.storage.files import map_concurrently, read_record_and_bytes
from raypipe.storage.records import (
    HISTORY_FILE,
    OOF_FILE,
    RESULT_FILE,
    TRIAL_FILE,
    Epoch,
    History,
    Owned,
    TrialRecord,
    TrialResult,
    best_epoch,
    digest,
    trial_file,
)
from raypipe.storage.run_store import RunStore

TRAIN_AGAIN = "restore it from a copy, or remove {folder}: raypipe resume then trains that trial again"


class TrialRecords(NamedTuple):
    """The records of one trial."""

    record: TrialRecord | None
    """None for a trial whose configuration could not be drawn."""
    history: list[Epoch]
    result: TrialResult | None
    """None for a trial that has not ended."""
    has_predictions: bool
    """Whether it has out-of-fold predictions, which are written before the result."""


def read_trials(run: RunStore) -> tuple[dict[int, TrialRecords], list[str]]:
    """Read the records of all trials.

    Returns
    -------
    trials
        By number; without those whose records are damaged or disagree.
    problems
        A line for each of the others.
    """
    listing = {
        number: names for number, names in run.listing().items() if names & {TRIAL_FILE, HISTORY_FILE, RESULT_FILE}
    }

    def read(number: int) -> TrialRecords | str:
        try:
            return _read_trial(run, number, listing[number])
        except UserError as error:
            return str(error)

    found = dict(zip(sorted(listing), map_concurrently(run.folder, read, sorted(listing)), strict=True))
    trials = {number: one for number, one in found.items() if isinstance(one, TrialRecords)}
    return trials, [one for one in found.values() if isinstance(one, str)]


def require_records(run: RunStore) -> dict[int, TrialRecords]:
    """Read the records of all trials.

    Raises
    ------
    DamagedFileError
        Records are damaged or disagree; names the first.
    """
    trials, problems = read_trials(run)
    if problems:
        more = f" (and {len(problems) - 1} more: raypipe doctor {run.where})" if len(problems) > 1 else ""
        raise DamagedFileError(problems[0] + more)
    return trials


def _read_trial(run: RunStore, number: int, names: set[str]) -> TrialRecords:
    """Read the records of a trial.

    Raises
    ------
    UserError
        One is damaged, or they disagree.
    """
    digests: dict[str, str] = {}

    def read(kind: type[Owned], name: str) -> Owned | None:
        if name not in names:
            return None
        path = trial_file(number, name)
        found, data = read_record_and_bytes(kind, run.folder, path)
        found.check_owner(f"{run.where}/{path}", run.run_id, number)
        digests[name] = digest(data)
        return found

    result = read(TrialResult, RESULT_FILE)
    if TRIAL_FILE not in names and not (result and result.failure == "bad-configuration"):
        raise _error(run, number, TRIAL_FILE, "missing")
    record, read_history = read(TrialRecord, TRIAL_FILE), read(History, HISTORY_FILE)
    history = read_history.epochs if read_history else []
    if [epoch.epoch for epoch in history] != list(range(1, len(history) + 1)):
        raise _error(run, number, HISTORY_FILE, "its epochs are not 1, 2, ...")
    if result is not None:
        _check_result(run, number, history, result, digests)
    return TrialRecords(record, history, result, OOF_FILE in names)


def _check_result(
    run: RunStore, number: int, history: list[Epoch], result: TrialResult, digests: Mapping[str, str]
) -> None:
    """Check that a result is the end of the history, and that the files that it has checksums of are unchanged."""
    for name in (TRIAL_FILE, HISTORY_FILE):
        if name in result.files and name not in digests:
            raise _error(run, number, name, "missing")
        if digests.get(name) != result.files.get(name):
            raise _error(run, number, name, f"not the one that the trial ended with ({RESULT_FILE} has its checksum)")
    best = best_epoch(history, run.info.direction)
    ends = (best.epoch, best.score, len(history)) if best else (0, None, 0)
    if (result.best_epoch, result.score, result.epochs) != ends:
        raise _error(run, number, RESULT_FILE, f"its score is not that of the best epoch in {HISTORY_FILE}")


def _error(run: RunStore, number: int, name: str, what: str) -> DamagedFileError:
    folder = f"{run.where}/{trial_file(number).rstrip('/')}"
    return DamagedFileError(f"{folder}/{name}: {what}; {TRAIN_AGAIN.format(folder=folder)}")
