"""The Optuna study beside the run's store: asks for trials, judges them, tells how each ended, exactly once.

Neither Ray nor Tune is needed here. The run's store and the study are the truth of a sweep; whatever executes it may
die at any moment and be replaced.
"""

from __future__ import annotations

import warnings
from collections import deque
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from raypipe.core.errors import StorageError, UserError
from raypipe.core.seeds import derive_seed
from raypipe.search.reruns import enqueue_reruns, is_rerun, rerun_config
from raypipe.search.warm_start import add_warm_trials
from raypipe.storage.journal import STUDY_NAME
from raypipe.storage.records import State, TrialResult
from raypipe.storage.run_store import RunStore
from raypipe.trial.evaluator import finish_trial
from raypipe.trial.failures import DrawError

if TYPE_CHECKING:
    from raypipe.data.window_store import WindowStore

_TOLD = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


class StudyQueue:
    """A run's trials: which is next, whether one goes on, how each ended.

    Opening it settles what a killed driver left: trials that ended but were not told, and trials in mid-air, which are
    handed out again first, under their own numbers (`settled` are the ends that were told so late). A trial's number is
    Optuna's, everywhere: where a run begins with another's trials (`warm_start`), those have the first numbers, and
    the run's own follow.

    Parameters
    ----------
    run, windows
        The run and its windows.
    storage
        From `journal.open_journal`.
    trials
        How many trials the run is to have; None for no limit.
    pruner
        None lets every trial run to its end.
    parallel
        Trials that run at a time (the sampler then keeps away from those in flight).
    """

    def __init__(
        self,
        run: RunStore,
        windows: WindowStore,
        storage: Any,
        *,
        trials: int | None,
        pruner: optuna.pruners.BasePruner | None = None,
        parallel: int = 1,
    ) -> None:
        self.run, self.windows, self.trials, self.parallel = run, windows, trials, parallel
        self.study = optuna.create_study(
            storage=storage,
            study_name=STUDY_NAME,
            direction=run.info.direction,
            pruner=pruner or optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        self._warm = add_warm_trials(self.study, run)
        # Optuna's own `skip_if_exists` would leave out a point that only another run has trained.
        queued = [trial.system_attrs.get("fixed_params") for trial in self.study.get_trials(deepcopy=False)]
        for point in run.space.start:
            if point not in queued:
                self.study.enqueue_trial(point)
                queued.append(point)
        self._waiting: deque[int] = deque()
        self._ends: dict[int, list[int]] = {}
        self.settled: list[TrialResult] = []
        self._settle()

    def _trial(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]

    def _settle(self) -> None:
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state != TrialState.RUNNING:
                continue
            ended = self.run.result(trial.number)
            if ended is not None:
                self._tell(ended)
                self.settled.append(ended)
            elif not self.run.has_trial(trial.number) or self.observe(trial.number):
                self._waiting.append(trial.number)
            else:
                self.settled.append(self.close(trial.number, "pruned", "stopped by successive halving"))

    @property
    def asked(self) -> int:
        """Trials of this run that have been asked for, ended or not."""
        trials = self.study.get_trials(deepcopy=False)
        return len([trial for trial in trials if trial.state != TrialState.WAITING]) - self._warm

    def ask_again(self, top: int, seeds: int) -> int:
        """Queue the best trials with new seeds (`reruns`); how many trials the run has with all that wait."""
        enqueue_reruns(self.study, self.run, top, seeds)
        waiting = [t for t in self.study.get_trials(deepcopy=False) if t.state == TrialState.WAITING]
        self.trials = self.asked + len(waiting)
        return self.trials

    @property
    def exhausted(self) -> bool:
        """No trial is left to be handed out."""
        return not self._waiting and self.trials is not None and self.asked >= self.trials

    def put_back(self, number: int) -> None:
        """Have a trial that was handed out, and has not ended, handed out again before any other."""
        self._waiting.appendleft(number)

    def next(self) -> int | None:
        """Hand out a trial by number, recorded in the run; None when there is none left.

        Raises
        ------
        DrawError
            The space drew a configuration that is not valid; the trial is recorded as failed.
        """
        if self._waiting:
            number = self._waiting.popleft()
        elif self.exhausted:
            return None
        else:
            self._seed(self._warm + self.asked)
            number = int(self.study.ask().number)
        if not self.run.has_trial(number):
            self._seed(number)
            trial = optuna.Trial(self.study, self._trial(number)._trial_id)
            rerun = rerun_config(self.run, self._trial(number))
            try:
                config, of = rerun or (self.run.space(trial), None)
            except StorageError:
                raise
            except UserError as error:
                raise DrawError(self.close(number, "failed", str(error), "bad-configuration")) from None
            self.run.add_trial(number, config, of)
        return number

    def _seed(self, number: int) -> None:
        """Give the sampler the stream of trial `number`: one seed for all would repeat draws after every restart."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.study.sampler = optuna.samplers.TPESampler(
                seed=derive_seed("suggest", self.run.info.seed, number) % 2**32,
                multivariate=True,
                group=True,
                constant_liar=self.parallel > 1,
            )

    def observe(self, number: int) -> bool:
        """Bring the study up to date with a trial's history; whether the trial may go on."""
        trial = self._trial(number)
        handle = optuna.Trial(self.study, trial._trial_id)
        if number not in self._ends:
            self._ends[number] = self.run.config(number).cycle_ends
        ends, history = self._ends[number], self.run.history(number)
        for epoch in history:
            if epoch.passes in trial.intermediate_values or (ends and epoch.epoch not in ends):
                continue  # within a cycle the learning rate is high, and no score says what the trial is worth
            handle.report(epoch.score, epoch.passes)
        if is_rerun(trial) or (ends and history and history[-1].epoch not in ends):
            return True
        # The last step is asked again after a restart: the answer may not have been acted on.
        return not self.study.pruner.prune(self.study, self._trial(number))

    def close(self, number: int, state: State, reason: str, failure: str | None = None, trace: str = "") -> TrialResult:
        """Record a trial's end in the run, then in the study. Again, it changes nothing."""
        ended = finish_trial(self.run, self.windows, number, state, reason, failure, trace)
        self._tell(ended)
        return ended

    def _tell(self, ended: TrialResult) -> None:
        if self._trial(ended.number).state.is_finished():
            return
        state = _TOLD[ended.state]
        self.study.tell(ended.number, ended.score if state == TrialState.COMPLETE else None, state=state)
