"""Queue of a run's trials, backed by an Optuna study beside the run's store.

The store and the study are the truth of a sweep: whatever executes the trials may die at any moment and be replaced.
Neither Ray nor Tune is used here.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from raypipe.core.config import TrialConfig
from raypipe.core.errors import LostCheckpointError, StorageError, UserError
from raypipe.search.distributions import pack_distributions
from raypipe.search.expected_study import STOPPED_AT, STUDY_STATES, reported, stopped_at, study_value
from raypipe.search.optuna_compat import enqueued_params, open_trial, start_trial
from raypipe.search.points import enqueue_missing, enqueue_point
from raypipe.search.reruns import enqueue_reruns, is_rerun, rerun_config
from raypipe.search.sampler import TrialSampler
from raypipe.search.warm_start import add_warm_trials
from raypipe.storage.journal import STUDY_NAME
from raypipe.storage.records import RESULT_FILE, Epoch, State, TrialResult
from raypipe.storage.run_store import RunStore
from raypipe.trial.evaluator import finish_trial
from raypipe.trial.failures import DrawError

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from raypipe.data.window_store import WindowStore

MAX_LOSSES = 3
"""Times that checkpoints of a trial are made again, after which the disk is to blame."""


class StudyQueue:
    """Hand out a run's trials, decide which continue, and record how each ended, exactly once.

    Opening it settles what a killed driver left: trials that have ended are reported to the study (`settled`), and
    trials that were running are handed out again first, under their numbers. So are trials that have ended in the study
    and have lost their results; they end there again. A trial's number is Optuna's; in a run
    that starts from another's trials (`warm_start`), those have the first numbers.

    Parameters
    ----------
    run, windows
        The run and its windows.
    storage
        Optuna's storage of the study (`journal.open_journal`).
    trials
        Number of trials that the run is to have; None for no limit.
    pruner
        None lets every trial run to its end.
    parallel
        Trials that run at a time; with several, the sampler avoids the parameters of those that run.

    Attributes
    ----------
    settled
        Results of trials whose end the study did not know.
    """

    def __init__(
        self,
        run: RunStore,
        windows: WindowStore,
        storage: BaseStorage,
        *,
        trials: int | None,
        pruner: optuna.pruners.BasePruner | None = None,
        parallel: int = 1,
    ) -> None:
        self.run, self.windows, self.trials, self.parallel = run, windows, trials, parallel
        self._storage = storage
        self.study = optuna.create_study(
            storage=storage,
            study_name=STUDY_NAME,
            direction=run.info.direction,
            pruner=pruner or optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        self._warm = add_warm_trials(self.study, run)
        self._enqueue_start_points()
        enqueue_missing(self.study, run)
        self._put_back: deque[int] = deque()
        self._configs: dict[int, TrialConfig] = {}
        self._losses: Counter[int] = Counter()
        self._awaited_ends: dict[int, tuple[State, str]] = {}
        self.settled: list[TrialResult] = []
        self._settle()

    def _enqueue_start_points(self) -> None:
        # Optuna's `skip_if_exists` would leave out a point that only another run has trained.
        queued = [enqueued_params(trial) for trial in self.study.get_trials(deepcopy=False)]
        for point in self.run.space.start:
            if point not in queued:
                self.study.enqueue_trial(point)
                queued.append(point)

    def _settle(self) -> None:
        recorded = set(self.run.numbers(RESULT_FILE))
        for trial in self.study.get_trials(deepcopy=False)[self._warm :]:
            if trial.state == TrialState.WAITING or (trial.state.is_finished() and trial.number in recorded):
                continue
            ended = self.run.result(trial.number)
            if ended is not None:
                self._report_end(ended)
                self.settled.append(ended)
            elif not self.run.has_trial(trial.number) or self.observe(trial.number):
                self._put_back.append(trial.number)
            elif (closed := self.close(trial.number, *self.early_end(trial.number))) is not None:
                self.settled.append(closed)

    def _trial(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]

    @property
    def asked(self) -> int:
        """Return the number of trials of this run that have been drawn, whether they have ended or not."""
        trials = self.study.get_trials(deepcopy=False)
        return len([trial for trial in trials if trial.state != TrialState.WAITING]) - self._warm

    def enqueue_reruns(self, top: int, seeds: int) -> int:
        """Enqueue the best trials with new seeds; return the number of trials that the run will have.

        They are handed out before points that wait, of which none is trained with them.
        """
        enqueue_reruns(self.study, self.run, top, seeds)
        self.trials = self.asked + len(self._waiting_reruns())
        return self.trials

    def not_drawn(self, trials: int) -> int:
        """Return how many of the `trials` of a search it has not drawn; reruns that wait are none of them."""
        return max(0, trials - self.asked - len(self._waiting_reruns()))

    def _waiting_reruns(self) -> list[FrozenTrial]:
        waiting = (t for t in self.study.get_trials(deepcopy=False) if t.state == TrialState.WAITING)
        return [trial for trial in waiting if is_rerun(trial)]

    def enqueue_point(self, point: Mapping[str, Any], request: str) -> int:
        """Enqueue a point of the search space once, as one of the run's trials; return its number.

        Raises
        ------
        UserError
            The space cannot have drawn it, or all trials are drawn.
        """
        return enqueue_point(self.study, self.run, point, request, self.trials, self._warm)

    @property
    def exhausted(self) -> bool:
        """Return whether every trial has been handed out."""
        return not self._put_back and self.trials is not None and self.asked >= self.trials

    def put_back(self, number: int) -> None:
        """Hand out a trial that has not ended again, before any other."""
        self._put_back.appendleft(number)

    def next(self) -> int | None:
        """Return the number of the next trial, recorded in the run; None if none is left.

        Raises
        ------
        DrawError
            The space drew an invalid configuration; the trial is recorded as failed.
        """
        if self._put_back:
            number = self._put_back.popleft()
        elif self.exhausted:
            return None
        else:
            self._seed_sampler(self._warm + self.asked)
            reruns = self._waiting_reruns()
            number = start_trial(self._storage, reruns[0]) if reruns else int(self.study.ask().number)
        if not self.run.has_trial(number):
            config, rerun_of = self._draw(number)
            drawn = self._trial(number)
            ranges = pack_distributions(drawn.distributions)
            self.run.add_trial(number, config, rerun_of, params=drawn.params, distributions=ranges)
        return number

    def _draw(self, number: int) -> tuple[TrialConfig, int | None]:
        """Return the configuration of a trial and, for a rerun, the trial that it trains again."""
        self._seed_sampler(number)
        trial = open_trial(self.study, self._trial(number))
        rerun = rerun_config(self.run, self._trial(number))
        try:
            return rerun or (self.run.space(trial, seed=number), None)
        except StorageError:
            raise
        except UserError as error:
            ended = finish_trial(self.run, self.windows, number, "failed", str(error), "bad-configuration")
            self._report_end(ended)
            raise DrawError(ended) from None

    def _seed_sampler(self, number: int) -> None:
        """Give trial `number` a random stream of its own, so that a restart does not repeat draws."""
        self.study.sampler = TrialSampler(self.run.info.seed, number, self.parallel)

    def observe(self, number: int) -> bool:
        """Update the study with a trial's history; return whether the trial continues."""
        trial, history = self._report_epochs(number)
        ends = self._configs[number].cycle_ends
        if not history or history[-1].passes < (trial.last_step or 0):
            return True  # its records were lost, and these epochs are trained again
        if trial.state.is_finished() and STOPPED_AT in trial.user_attrs:
            return len(history) < int(trial.user_attrs[STOPPED_AT]["epochs"])
        if trial.state.is_finished():
            return bool(trial.state != TrialState.PRUNED)
        if is_rerun(trial) or (ends and history[-1].epoch not in ends):
            return True
        # After a restart the pruner is asked again about the last step: its answer may not have been acted on.
        return not self.study.pruner.prune(self.study, self._trial(number))

    def early_end(self, number: int) -> tuple[State, str]:
        """Return how a trial ends that `observe` does not continue: its state, and the reason."""
        stop = self._trial(number).user_attrs.get(STOPPED_AT)
        return ("stopped", str(stop["reason"])) if stop else ("pruned", "stopped by successive halving")

    def _report_epochs(self, number: int) -> tuple[FrozenTrial, list[Epoch]]:
        """Report an open trial's epochs that the study does not have; return the trial as it was, and its history."""
        trial, history = self._trial(number), self.run.history(number)
        handle = open_trial(self.study, trial)
        if number not in self._configs:
            self._configs[number] = self.run.config(number)
        for passes, value in reported(history, self._configs[number], self.run.info.direction).items():
            if not trial.state.is_finished() and passes not in trial.intermediate_values:
                handle.report(value, passes)
        return trial, history

    def close(
        self, number: int, state: State, reason: str, failure: str | None = None, trace: str = ""
    ) -> TrialResult | None:
        """Record how a trial ended, in the run and then in the study. A second call changes nothing.

        Returns
        -------
        TrialResult or None
            None if a fold has lost a checkpoint that is needed. The trial is then handed out again, so that its workers
            make the checkpoint once more, and `awaited_end` returns how it ends.

        Raises
        ------
        StorageError
            Checkpoints were lost again and again.
        """
        try:
            ended = finish_trial(self.run, self.windows, number, state, reason, failure, trace)
        except LostCheckpointError as error:
            self._losses[number] += 1
            if self._losses[number] > MAX_LOSSES:
                raise StorageError(f"{error}: lost {MAX_LOSSES} times after it was written; check the disk") from None
            self._awaited_ends[number] = state, reason
            self.put_back(number)
            return None
        self._awaited_ends.pop(number, None)
        self._report_end(ended)
        return ended

    def stop_open(self, reason: str) -> list[TrialResult]:
        """End the trials that were under way with the epochs that they have; return those that have ended.

        A trial without an epoch stays open, as does one that has lost records or a checkpoint: it would end otherwise.
        """
        found = []
        for number in list(self._put_back):
            history = self.run.history(number) if self.run.has_trial(number) else []
            trial = self._trial(number)
            lost = number in self._awaited_ends or trial.state.is_finished()
            if not history or lost or history[-1].passes < (trial.last_step or 0):
                continue
            self._put_back.remove(number)
            ended = self.close(number, "stopped", reason)
            found += [ended] if ended else []
        return found

    def awaited_end(self, number: int) -> tuple[State, str] | None:
        """Return how a trial ends once its workers have made lost checkpoints again; None for any other trial."""
        return self._awaited_ends.get(number)

    def _report_end(self, ended: TrialResult) -> None:
        if self._trial(ended.number).state.is_finished():
            return
        if self.run.has_trial(ended.number):
            self._report_epochs(ended.number)  # the last ones, where the trial failed before the driver heard of them
        state = STUDY_STATES[ended.state]
        for name, value in stopped_at(ended).items():
            open_trial(self.study, self._trial(ended.number)).set_user_attr(name, value)
        value = study_value(ended.score, self.run.info.direction) if state == TrialState.COMPLETE else None
        self.study.tell(ended.number, value, state=state)
