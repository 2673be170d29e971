"""Keep a run's Optuna study in agreement with the records of its trials, from which a lost study is rebuilt.

The records have digests, the study's journal has none. So the records are right where the two disagree.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from raypipe.core.errors import DamagedFileError, StorageError, UserError, first_line
from raypipe.search.distributions import pack_distributions, unpack_distributions
from raypipe.search.optuna_compat import FIXED_PARAMS, enqueued_params
from raypipe.search.points import POINTS_FILE, Point, read_points, write_points
from raypipe.search.reruns import RERUN_OF, RERUN_SEED, RERUNS_FILE, Rerun, is_rerun, read_reruns, write_reruns
from raypipe.search.warm_start import WarmStart
from raypipe.storage.journal import STUDY_NAME, open_journal, replace_journal
from raypipe.storage.records import Epoch, TrialResult
from raypipe.storage.run_layout import require_layout
from raypipe.storage.run_store import RunStore
from raypipe.storage.trial_records import TrialRecords, require_records
from raypipe.trial.failures import read_retry

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from raypipe.core.config import TrialConfig
    from raypipe.trial.callback import SweepCallback

STUDY_STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
"""State of a trial in the study, by `TrialResult.state`."""
ENDED = "ended"
"""User attribute of a trial that had ended before its records were lost: its state. It ends so again."""
STOPPED_AT = "stopped_at"
"""User attribute of a trial that a request or a budget has stopped: its number of epochs, and the reason.

Scores do not show when such a trial ends, so this does where its records are lost.
"""
_HOW_ENDED = (ENDED, STOPPED_AT)


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
    expected = _Expected(run, records)
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
    first = len(_start_points(run)) + len(run.info.warm["trials"] if run.info.warm else ())
    found = [(trial.number, enqueued_params(trial)) for trial in trials[first:] if not is_rerun(trial)]
    return [Point(number=number, params=params) for number, params in found if params is not None]


def _start_points(run: RunStore) -> list[dict[str, Any]]:
    """Return the starting points of a run's search space, each once."""
    starts: list[dict[str, Any]] = []
    for point in run.space.start:
        starts += [point] if point not in starts else []
    return starts


def study_difference(run: RunStore, records: Mapping[int, TrialRecords]) -> str:
    """Return how a run's study and the records of its trials disagree; empty if they agree.

    Raises
    ------
    DamagedFileError
        The journal cannot be read.
    """
    return _Expected(run, records).first_difference(read_study(run, open_journal(run, writable=False)))


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


class _Expected:
    """The study that the records of a run's trials ask for."""

    def __init__(self, run: RunStore, records: Mapping[int, TrialRecords]) -> None:
        self.run, self.records = run, records
        warm = WarmStart.model_validate(run.info.warm) if run.info.warm else None
        self.warm = [trial.frozen(warm.run) for trial in warm.trials] if warm else []
        self.starts = dict(enumerate(_start_points(run), len(self.warm)))
        self.reruns = {rerun.number: rerun for rerun in read_reruns(run)}
        self.points = {point.number: point.params for point in read_points(run)}

    def first_difference(self, trials: list[FrozenTrial] | None) -> str:
        """Return how a study disagrees with the records; empty if it agrees."""
        if trials is None:
            return "the study's journal is missing" if self.records or self.reruns or self.points else ""
        asked = [trial.number for trial in trials if trial.state != TrialState.WAITING]
        newest = max(asked, default=-1)
        for number in sorted({*self.records, *self.reruns, *self.points}):
            if number >= len(trials):
                return f"the study's journal does not have trial {number}"
        for trial in trials:
            if what := self._difference(trial, newest):
                return f"the study's journal has {what} of trial {trial.number}"
        return ""

    def _difference(self, trial: FrozenTrial, newest: int) -> str:
        """Return what of a trial in the study is not what its records say; empty if all is."""
        number = trial.number
        if number < len(self.warm):
            return "" if _same(trial, self.warm[number]) else "other values"
        if enqueued_params(trial) != self._system_attrs(number).get(FIXED_PARAMS):
            return "another starting point"
        if {k: v for k, v in trial.user_attrs.items() if k not in _HOW_ENDED} != self._user_attrs(number):
            return "another rerun"
        one = self.records.get(number)
        if one is None:
            return _unrecorded_difference(trial, newest)
        if one.record and (trial.params, pack_distributions(trial.distributions)) != (
            one.record.params,
            one.record.distributions,
        ):
            return "other parameters"
        return self._progress_difference(trial, one)

    def _progress_difference(self, trial: FrozenTrial, one: TrialRecords) -> str:
        expected = self._recorded(trial.number, one)
        if trial.state == TrialState.WAITING:
            return "no start"
        if not trial.state.is_finished():  # its last epochs, or its end, may not have been reported
            right = expected.intermediate_values
            wrong = any(right.get(step, value) != value for step, value in trial.intermediate_values.items())
            return "other scores" if wrong else ""
        if one.result is None:
            return "the end, and the run has no result"
        if one.record is None:  # its configuration could not be drawn
            return "" if trial.state == expected.state else "another end"
        return "" if _same(trial, expected) else "another end"

    def lost(self, trials: list[FrozenTrial] | None) -> list[int]:
        """Return trials that were drawn, or have ended, according to the study, and whose records of that are lost.

        A study that is wrong about other trials is not believed, and none is returned.
        """
        old = trials or []
        lost = [trial.number for trial in old[len(self.warm) :] if self._is_lost(trial)]
        newest = max((trial.number for trial in old if trial.state != TrialState.WAITING), default=-1)
        wrong = any(self._difference(trial, newest) for trial in old if trial.number not in lost)
        return [] if wrong else lost

    def _is_lost(self, trial: FrozenTrial) -> bool:
        one = self.records.get(trial.number)
        if one is None:
            return bool(trial.state != TrialState.WAITING)
        return one.result is None and bool(trial.state.is_finished())

    def trains_again(self, number: int, trial: FrozenTrial) -> bool:
        """Return whether a trial of the rebuilt study has lost its records."""
        return trial.state == TrialState.RUNNING and (ENDED in trial.user_attrs or number not in self.records)

    def study(self, trials: list[FrozenTrial] | None) -> list[FrozenTrial]:
        """Return all trials of the rebuilt study, in order; `trials` are those of the old one."""
        old = dict(enumerate(trials or []))
        lost = self.lost(trials)
        count = 1 + max([len(self.warm) - 1, *self.records, *self.starts, *self.reruns, *self.points, *lost])
        return [self._trial(number, old.get(number) if number in lost else None) for number in range(count)]

    def _trial(self, number: int, lost: FrozenTrial | None) -> FrozenTrial:
        if number < len(self.warm):
            return self.warm[number]
        one = self.records.get(number)
        if lost is not None:
            return self._again(lost, lost if one is None else self._recorded(number, one))
        if one is not None:
            return self._recorded(number, one)
        attributes = {"user_attrs": self._user_attrs(number), "system_attrs": self._system_attrs(number)}
        waits = number in self.starts or number in self.reruns or number in self.points
        return create_trial(state=TrialState.WAITING if waits else TrialState.RUNNING, **attributes)

    def _again(self, lost: FrozenTrial, drawn: FrozenTrial) -> FrozenTrial:
        """Return a trial that is trained again with the parameters of `drawn`, and ends as it did."""
        known = {name: lost.user_attrs[name] for name in _HOW_ENDED if name in lost.user_attrs}
        ended = {ENDED: lost.state.name} if lost.state.is_finished() else {}
        return create_trial(
            state=TrialState.RUNNING,
            params=drawn.params,
            distributions=drawn.distributions,
            intermediate_values=lost.intermediate_values,
            user_attrs=self._user_attrs(lost.number) | known | ended,
            system_attrs=self._system_attrs(lost.number),
        )

    def _recorded(self, number: int, one: TrialRecords) -> FrozenTrial:
        """Return a trial as its records say."""
        state = STUDY_STATES[one.result.state] if one.result else TrialState.RUNNING
        steps = reported(one.history, one.record.config if one.record else None)
        value = one.result.score if one.result and state == TrialState.COMPLETE else None
        if state == TrialState.PRUNED and steps:
            value = steps[max(steps)]  # as Optuna has it
        trial = create_trial(
            state=state,
            value=value,
            params=one.record.params if one.record else {},
            distributions=unpack_distributions(one.record.distributions) if one.record else {},
            intermediate_values=steps,
            user_attrs=self._user_attrs(number) | (stopped_at(one.result) if one.result else {}),
            system_attrs=self._system_attrs(number),
        )
        if one.record:
            trial.datetime_start = datetime.datetime.fromtimestamp(one.record.started)
        if one.result and one.record:
            trial.datetime_complete = datetime.datetime.fromtimestamp(one.result.finished)
        return trial

    def _user_attrs(self, number: int) -> dict[str, Any]:
        rerun = self.reruns.get(number)
        return {RERUN_OF: rerun.of, RERUN_SEED: rerun.seed} if rerun else {}

    def _system_attrs(self, number: int) -> dict[str, Any]:
        if number in self.starts:
            return {FIXED_PARAMS: self.starts[number]}
        if number in self.points:
            return {FIXED_PARAMS: self.points[number]}
        return {FIXED_PARAMS: {}} if number in self.reruns else {}


def _unrecorded_difference(trial: FrozenTrial, newest: int) -> str:
    """Return what a study has of a trial without records; empty where a killed driver may have left it so."""
    if ENDED in trial.user_attrs:  # its training has not begun again
        return ""
    if trial.state.is_finished() or trial.intermediate_values:
        return "scores, and the run has no record"
    waits_or_newest = trial.state == TrialState.WAITING or trial.number == newest
    return "" if waits_or_newest else "a draw, and the run has no record"


def reported(history: list[Epoch], config: TrialConfig | None) -> dict[int, float]:
    """Return the scores that the study has of a trial, by passes: with a cyclic learning rate, of the ends of cycles.

    Within a cycle the learning rate is high, and the score does not show the trial's quality. A model that is fitted in
    closed form has none: its only epoch is no stage of a training that others could be compared at.
    """
    if config is not None and config.model.closed_form:
        return {}
    ends = config.cycle_ends if config is not None else []
    return {epoch.passes: epoch.score for epoch in history if not ends or epoch.epoch in ends}


def stopped_at(ended: TrialResult) -> dict[str, Any]:
    """Return the user attribute of a trial that was stopped; none for a trial that has ended otherwise."""
    return {STOPPED_AT: {"epochs": ended.epochs, "reason": ended.reason}} if ended.state == "stopped" else {}


def _same(trial: FrozenTrial, other: FrozenTrial) -> bool:
    one, two = ((t.state, t.values, t.params, t.intermediate_values) for t in (trial, other))
    return one == two
