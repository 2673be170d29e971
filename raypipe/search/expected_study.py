"""The Optuna study that the records of a run's trials ask for: how another one differs, and what it is rebuilt as."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from raypipe.core.metrics import Direction
from raypipe.search.distributions import pack_distributions, unpack_distributions
from raypipe.search.optuna_compat import FIXED_PARAMS, enqueued_params
from raypipe.search.points import read_points
from raypipe.search.reruns import RERUN_OF, RERUN_SEED, read_reruns
from raypipe.search.warm_start import WarmStart
from raypipe.storage.records import Epoch, TrialResult, best_epoch, epoch_file, trial_file
from raypipe.storage.run_store import RunStore
from raypipe.storage.trial_records import TrialRecords

if TYPE_CHECKING:
    from raypipe.core.config import TrialConfig

STUDY_STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
"""State of a trial in the study, by `TrialResult.state`."""
STOPPED_AT = "stopped_at"
"""User attribute of a trial that a request or a budget has stopped: its number of epochs, and the reason.

Scores do not show when such a trial ends, so this does where its records are lost.
"""
_KEPT_ENDS = (TrialState.COMPLETE, TrialState.PRUNED)
"""How a trial ends again that has lost its records. One that had failed is trained as if it had not ended."""


class ExpectedStudy:
    """The study that the records of a run's trials ask for; they have digests, and are right where a study differs."""

    def __init__(self, run: RunStore, records: Mapping[int, TrialRecords]) -> None:
        self.run, self.records = run, records
        warm = WarmStart.model_validate(run.info.warm) if run.info.warm else None
        self.warm = [trial.frozen(warm.run) for trial in warm.trials] if warm else []
        self.starts = dict(enumerate(start_points(run), len(self.warm)))
        self.reruns = {rerun.number: rerun for rerun in read_reruns(run)}
        self.points = {point.number: point.params for point in read_points(run)}

    def first_difference(self, trials: list[FrozenTrial] | None) -> str:
        """Return how a study disagrees with the records; empty if it agrees."""
        if trials is None:
            return "the study's journal is missing" if self.records or self.reruns or self.points else ""
        newest = _newest(trials)
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
        if {k: v for k, v in trial.user_attrs.items() if k != STOPPED_AT} != self._user_attrs(number):
            return "other attributes"
        one = self.records.get(number)
        if one is None:
            return self._unrecorded_difference(trial, newest)
        if not _same_parameters(trial, one):
            return "other parameters"
        return self._progress_difference(trial, one)

    def _unrecorded_difference(self, trial: FrozenTrial, newest: int) -> str:
        """Return what a study has of a trial without records; empty where nothing is drawn of it yet."""
        if trial.state.is_finished() or trial.intermediate_values or STOPPED_AT in trial.user_attrs:
            return "scores, and the run has no record"
        drawn = trial.params or (trial.state != TrialState.WAITING and not self._is_undone(trial, newest))
        return "a draw, and the run has no record" if drawn else ""

    def _is_undone(self, trial: FrozenTrial, newest: int) -> bool:
        """Return whether a driver may have been killed before it recorded a trial, which is then drawn again.

        The draw is the same, since nothing was drawn or has ended after it. Of a point or a rerun, which need not be
        the newest, the records have the parameters.
        """
        number = trial.number
        if trial.state != TrialState.RUNNING or trial.intermediate_values or number in self.records:
            return False
        return number == newest or number in self.starts or number in self.reruns or number in self.points

    def _progress_difference(self, trial: FrozenTrial, one: TrialRecords) -> str:
        expected = self._recorded(trial.number, one)
        if trial.state == TrialState.WAITING:
            return "no start"
        stop = {STOPPED_AT: trial.user_attrs[STOPPED_AT]} if STOPPED_AT in trial.user_attrs else {}
        right_stop = stopped_at(one.result) if one.result else {}
        if not trial.state.is_finished():  # its last epochs, or its end, may not have been reported
            if stop not in ({}, right_stop):
                return "another end"
            known = expected.intermediate_values
            agrees = _begins(trial.intermediate_values, known) or self._has_lost_history(trial, one, known)
            return "" if agrees else "other scores"
        if one.result is None:
            return "the end, and the run has no result"
        if one.record is None:  # its configuration could not be drawn
            return "" if trial.state == expected.state else "another end"
        return "" if _same(trial, expected) and stop == right_stop else "another end"

    def _has_lost_history(self, trial: FrozenTrial, one: TrialRecords, known: Mapping[int, float]) -> bool:
        """Return whether an open trial's scores beyond its history are of its next epochs, which had been trained.

        The history is written before the study, so it was lost. Each of these epochs has left its predictions.
        """
        if one.record is None or not _begins(known, trial.intermediate_values):
            return False
        config, steps = one.record.config, sorted(trial.intermediate_values)
        epochs = {int(epoch * config.passes): epoch for epoch in config.cycle_ends or range(1, config.epochs + 1)}
        names = (trial_file(trial.number, epoch_file(epochs[step])) for step in steps[len(known) :])
        return steps == sorted(epochs)[: len(steps)] and all(map(self.run.folder.exists, names))

    def lost(self, trials: list[FrozenTrial] | None) -> list[int]:
        """Return trials that were drawn, or have ended, according to the study, and whose records of that are lost.

        A study that is wrong about other trials is not believed, and none is returned.
        """
        old = trials or []
        newest = _newest(old)
        lost = [trial.number for trial in old[len(self.warm) :] if self._is_lost(trial, newest)]
        others = [trial for trial in old if trial.number not in lost and not self._is_undone(trial, newest)]
        return [] if any(self._difference(trial, newest) for trial in others) else lost

    def _is_lost(self, trial: FrozenTrial, newest: int) -> bool:
        one = self.records.get(trial.number)
        if trial.state == TrialState.COMPLETE and trial.value is None:
            return False
        if STOPPED_AT in trial.user_attrs and not _is_stop(trial.user_attrs[STOPPED_AT]):
            return False
        if one is None:
            return trial.state != TrialState.WAITING and not self._is_undone(trial, newest)
        return one.result is None and self._had_ended(trial, one)

    def _had_ended(self, trial: FrozenTrial, one: TrialRecords) -> bool:
        """Return whether the end that the study has of a trial without a result is one that the trial can have had.

        Its predictions were written before the result, or it is being trained again up to that end.
        """
        if trial.state not in _KEPT_ENDS or one.record is None or not _same_parameters(trial, one):
            return False
        steps = reported(one.history, one.record.config, self.run.info.direction)
        if not _begins(steps, trial.intermediate_values):
            return False
        if (stop := trial.user_attrs.get(STOPPED_AT)) and len(one.history) < stop["epochs"]:
            return True
        if not stop and len(steps) < len(trial.intermediate_values):
            return True
        best = best_epoch(one.history, self.run.info.direction)
        value = _last(steps)
        if best and trial.state == TrialState.COMPLETE:
            value = study_value(best.score, self.run.info.direction)
        return one.has_predictions and trial.value == value

    def trains_again(self, number: int, trial: FrozenTrial) -> bool:
        """Return whether a trial of the rebuilt study has lost its records."""
        if number < len(self.warm) or trial.state == TrialState.WAITING:
            return False
        one = self.records.get(number)
        return one is None or (one.result is None and trial.state.is_finished())

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
            return self._kept(lost)
        if one is not None:
            return self._recorded(number, one)
        attributes = {"user_attrs": self._user_attrs(number), "system_attrs": self._system_attrs(number)}
        waits = number in self.starts or number in self.reruns or number in self.points
        return create_trial(state=TrialState.WAITING if waits else TrialState.RUNNING, **attributes)

    def _kept(self, lost: FrozenTrial) -> FrozenTrial:
        """Return what the study keeps of a trial that is trained again: its parameters, and how it ends."""
        ended = lost.state in _KEPT_ENDS
        stop = {name: value for name, value in lost.user_attrs.items() if name == STOPPED_AT and ended}
        return create_trial(
            state=lost.state if ended else TrialState.RUNNING,
            value=lost.value if ended else None,
            params=lost.params,
            distributions=lost.distributions,
            intermediate_values={} if lost.state == TrialState.FAIL else lost.intermediate_values,
            user_attrs=self._user_attrs(lost.number) | stop,
            system_attrs=self._system_attrs(lost.number),
        )

    def _recorded(self, number: int, one: TrialRecords) -> FrozenTrial:
        """Return a trial as its records say."""
        state = STUDY_STATES[one.result.state] if one.result else TrialState.RUNNING
        steps = reported(one.history, one.record.config if one.record else None, self.run.info.direction)
        value = None
        if one.result and state == TrialState.COMPLETE:
            value = study_value(one.result.score, self.run.info.direction)
        if state == TrialState.PRUNED:
            value = _last(steps)  # as Optuna has it
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


def study_value(score: float | None, direction: Direction) -> float:
    """Return a score as the study has it: worse than any number where it is undefined, since Optuna refuses NaN."""
    if score is None:
        return math.inf if direction == "minimize" else -math.inf
    return score


def reported(history: list[Epoch], config: TrialConfig | None, direction: Direction) -> dict[int, float]:
    """Return the scores that the study has of a trial, by passes: with a cyclic learning rate, of the ends of cycles.

    Within a cycle the learning rate is high, and the score does not show the trial's quality. A model that is fitted in
    closed form has none: its only epoch is no stage of a training that others could be compared at.
    """
    if config is not None and config.model.closed_form:
        return {}
    ends = config.cycle_ends if config is not None else []
    return {e.passes: study_value(e.score, direction) for e in history if not ends or e.epoch in ends}


def stopped_at(ended: TrialResult) -> dict[str, Any]:
    """Return the user attribute of a trial that was stopped; none for a trial that has ended otherwise."""
    return {STOPPED_AT: {"epochs": ended.epochs, "reason": ended.reason}} if ended.state == "stopped" else {}


def _same(trial: FrozenTrial, other: FrozenTrial) -> bool:
    one, two = ((t.state, t.values, t.params, t.intermediate_values) for t in (trial, other))
    return one == two


def _same_parameters(trial: FrozenTrial, one: TrialRecords) -> bool:
    if one.record is None:  # its configuration could not be drawn
        return True
    known = one.record.params, one.record.distributions
    return (trial.params, pack_distributions(trial.distributions)) == known


def _begins(part: Mapping[int, float], whole: Mapping[int, float]) -> bool:
    """Return whether scores by passes are the first ones of others."""
    return dict(sorted(whole.items())[: len(part)]) == part


def _last(steps: Mapping[int, float]) -> float | None:
    return steps[max(steps)] if steps else None


def _is_stop(value: Any) -> bool:
    """Return whether a user attribute is one that `stopped_at` returns."""
    if not isinstance(value, dict) or value.keys() != {"epochs", "reason"}:
        return False
    return isinstance(value["epochs"], int) and isinstance(value["reason"], str)


def _newest(trials: list[FrozenTrial]) -> int:
    """Return the number of the newest trial that does not wait; -1 if there is none."""
    return max((trial.number for trial in trials if trial.state != TrialState.WAITING), default=-1)


def start_points(run: RunStore) -> list[dict[str, Any]]:
    """Return the starting points of a run's search space, each once."""
    starts: list[dict[str, Any]] = []
    for point in run.space.start:
        starts += [point] if point not in starts else []
    return starts
