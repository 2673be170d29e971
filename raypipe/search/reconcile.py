"""Keep a run's Optuna study in agreement with the records of its trials, from which a lost study is rebuilt.

The records have digests, the study's journal has none. So the records are right where the two disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import optuna
from optuna.trial import FrozenTrial

from raypipe.core.errors import DamagedFileError, StorageError, UserError, first_line
from raypipe.search.expected_study import ExpectedStudy, start_points
from raypipe.search.optuna_compat import enqueued_params
from raypipe.search.points import POINTS_FILE, Point, write_points
from raypipe.search.reruns import RERUN_OF, RERUN_SEED, RERUNS_FILE, Rerun, is_rerun, write_reruns
from raypipe.storage.journal import STUDY_NAME, open_journal, replace_journal
from raypipe.storage.run_layout import require_layout
from raypipe.storage.run_store import RunStore
from raypipe.storage.trial_records import TrialRecords, require_records
from raypipe.trial.failures import read_retry

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from raypipe.trial.callback import SweepCallback


def open_study(run: RunStore, callback: SweepCallback) -> BaseStorage:
    """Check a run's records and open its study, rebuilt if it is lost or disagrees with the records.

    Parameters
    ----------
    run
        A run whose lease this process holds.
    callback
        Its `on_study_rebuilt` is called.

    Raises
    ------
    DamagedFileError
        Records are damaged or disagree, and cannot be rebuilt.
    """
    records, reason = check_records(run), ""
    try:
        storage = open_journal(run)
        trials = read_study(run, storage)
    except DamagedFileError as error:
        reason, trials = first_line(error), []
    if not run.folder.exists(RERUNS_FILE) and (reruns := _known_reruns(records, trials or [])):
        write_reruns(run, reruns)
    if not run.folder.exists(POINTS_FILE) and (points := _known_points(run, trials or [])):
        write_points(run, points)
    expected = ExpectedStudy(run, records)
    reason = reason or expected.first_difference(trials)
    if reason:
        rebuilt = expected.study(trials)
        replace_journal(run, rebuilt)
        again = [number for number, trial in enumerate(rebuilt) if expected.trains_again(number, trial)]
        callback.on_study_rebuilt(reason, len(records), again)
        storage = open_journal(run)
    return storage


def _known_reruns(records: Mapping[int, TrialRecords], trials: list[FrozenTrial]) -> list[Rerun]:
    """Return the reruns that the records of trials, or trials that wait in the study, are."""
    found = {trial.number: trial.user_attrs for trial in trials if is_rerun(trial) and trial.number not in records}
    reruns = [Rerun(number=number, of=attrs[RERUN_OF], seed=attrs[RERUN_SEED]) for number, attrs in found.items()]
    known = ((number, one.record) for number, one in records.items())
    reruns += [Rerun(number=n, of=r.rerun_of, seed=r.config.seed) for n, r in known if r and r.rerun_of is not None]
    return sorted(reruns, key=lambda rerun: rerun.number)


def _known_points(run: RunStore, trials: list[FrozenTrial]) -> list[Point]:
    """Return the points that are in the study and are no starting points of the search space."""
    first = len(start_points(run)) + len(run.info.warm["trials"] if run.info.warm else ())
    found = [(trial.number, enqueued_params(trial)) for trial in trials[first:] if not is_rerun(trial)]
    return [Point(number=number, params=params) for number, params in found if params is not None]


def study_difference(run: RunStore, records: Mapping[int, TrialRecords]) -> str:
    """Return how a run's study and the records of its trials disagree; empty if they agree.

    Raises
    ------
    DamagedFileError
        The journal cannot be read.
    """
    return ExpectedStudy(run, records).first_difference(read_study(run, open_journal(run, writable=False)))


def check_records(run: RunStore) -> dict[int, TrialRecords]:
    """Read the records of a run's trials.

    Raises
    ------
    DamagedFileError
        Records are damaged or disagree, or something else is in the place of one.
    """
    require_layout(run.folder)
    records = require_records(run)
    for number, trial in records.items():
        if trial.result is None:
            read_retry(run, number)
    return records


def read_study(run: RunStore, storage: BaseStorage) -> list[FrozenTrial] | None:
    """Return the trials of the study; None where there is no study yet.

    Raises
    ------
    DamagedFileError
        Optuna cannot read the journal.
    """
    try:
        if STUDY_NAME not in optuna.get_all_study_names(storage):
            return None
        study = optuna.load_study(study_name=STUDY_NAME, storage=storage)
        direction: str = study.direction.name.lower()
        trials: list[FrozenTrial] = study.get_trials(deepcopy=False)
    except StorageError:
        raise
    except UserError as error:
        raise DamagedFileError(str(error)) from None
    except Exception as error:  # Optuna has no error for entries of another shape
        raise DamagedFileError(f"the study's journal is damaged ({type(error).__name__})") from None
    if direction != run.info.direction:
        raise DamagedFileError(f"the study is to {direction} the score")
    return trials
