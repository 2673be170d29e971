"""Callbacks of a sweep: one typed method per event, as in Ray Tune."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raypipe.core.config import TrialConfig
from raypipe.core.metrics import Direction
from raypipe.storage.records import TrialResult


@dataclass(frozen=True)
class RunSnapshot:
    """State of a run when its sweep starts or resumes."""

    where: str
    """Path or URI of the run."""
    metric: str
    direction: Direction
    baseline: float
    """Out-of-fold score of a constant prediction."""
    trials: int
    """Trials that the run will have in all."""
    results: Sequence[TrialResult] = ()
    """Trials that have ended."""
    best: TrialResult | None = None
    """Best trial whose weights are kept."""


@dataclass(frozen=True)
class Layout:
    """Number of trials and workers, and the resources they take."""

    workers: int
    """Workers per trial."""
    concurrent: int
    """Trials that run at a time."""
    cpus: float
    """Cores per worker."""
    gpus: float
    """GPUs per worker."""
    total_cpus: float
    """Cores of the cluster."""
    total_gpus: float
    """GPUs of the cluster."""


class SweepCallback:
    """Base class of sweep callbacks; each method is called at one event and does nothing here.

    Methods are called in the driver's process, one at a time, most of them in the thread that runs Ray Tune. An
    exception raised by a method ends the sweep, which can be resumed.
    """

    def on_ray_start(self, address: str | None) -> None:
        """Called before Ray is started on this machine or, with an `address`, joined."""

    def on_warning(self, line: str) -> None:
        """Called before a sweep starts that can run but is probably not what was meant; `line` says why.

        Also called, in a thread of its own, when Ray is about to end this process.
        """

    def on_part(self, part: int, parts: int, subjects: int) -> None:
        """Called before part `part` of the `parts` of an outer cross-validation, which holds out some subjects."""

    def on_warm_start(self, run: str, trials: int, finished: int) -> None:
        """Called when `trials` of the `finished` trials of another run are given to the sampler."""

    def on_study_rebuilt(self, reason: str, trials: int, again: Sequence[int]) -> None:
        """Called when the study was rebuilt from the records of the run's trials.

        Parameters
        ----------
        reason
            How the study was lost, or disagreed with the records.
        trials
            Number of trials with records.
        again
            Trials whose records are lost, which are trained again with the parameters that the study has of them.
        """

    def on_trials_kept(self, asked: int, existing: int) -> None:
        """Called when the run has more trials than were asked for; it keeps them."""

    def on_open(self, run: RunSnapshot) -> None:
        """Called when the run is open."""

    def on_trial_settled(self, result: TrialResult) -> None:
        """Called for a trial whose end an earlier driver did not report, before `on_open` or after `on_restart`."""

    def on_lease_wait(self, driver: str) -> None:
        """Called before a driver on another host is watched for a heartbeat; it may have died."""

    def on_waiting(self, reason: str) -> None:
        """Called when the cluster has too few resources and is waited for."""

    def on_concurrency_limited(self, asked: int, limit: int) -> None:
        """Called when the memory of the machines allows fewer trials at a time than would run."""

    def on_layout(self, layout: Layout) -> None:
        """Called when the number of trials and workers is fixed."""

    def on_trial_start(self, number: int, config: TrialConfig) -> None:
        """Called when a trial is handed out, also one that resumes."""

    def on_epoch(self, number: int, epoch: int, score: float, fold_scores: Sequence[float | None]) -> None:
        """Called when a trial has been scored after an epoch.

        The score is NaN where it is undefined. A trial that fails before its first epoch reports epoch 0 and NaN.
        """

    def on_trial_end(self, result: TrialResult) -> None:
        """Called when a trial has ended."""

    def on_actor_lost(self) -> None:
        """Called when an actor that sends no heartbeats is declared dead; its trial is retried."""

    def on_draining(self, running: int) -> None:
        """Called after the first Ctrl-C: `running` trials (workers, in pretraining) finish their epoch."""

    def on_restart(self, reason: str) -> None:
        """Called when Tune, the broker or Ray's control store has died; the sweep restarts from the run's records."""

    def on_budget_used(self, reason: str) -> None:
        """Called when the run's time or GPU-hours are used up."""


class CallbackList(SweepCallback):
    """Call several callbacks, in order."""

    def __init__(self, callbacks: Sequence[SweepCallback]) -> None:
        self._callbacks = list(callbacks)

    def on_ray_start(self, address: str | None) -> None:
        for callback in self._callbacks:
            callback.on_ray_start(address)

    def on_warning(self, line: str) -> None:
        for callback in self._callbacks:
            callback.on_warning(line)

    def on_part(self, part: int, parts: int, subjects: int) -> None:
        for callback in self._callbacks:
            callback.on_part(part, parts, subjects)

    def on_warm_start(self, run: str, trials: int, finished: int) -> None:
        for callback in self._callbacks:
            callback.on_warm_start(run, trials, finished)

    def on_study_rebuilt(self, reason: str, trials: int, again: Sequence[int]) -> None:
        for callback in self._callbacks:
            callback.on_study_rebuilt(reason, trials, again)

    def on_trials_kept(self, asked: int, existing: int) -> None:
        for callback in self._callbacks:
            callback.on_trials_kept(asked, existing)

    def on_open(self, run: RunSnapshot) -> None:
        for callback in self._callbacks:
            callback.on_open(run)

    def on_trial_settled(self, result: TrialResult) -> None:
        for callback in self._callbacks:
            callback.on_trial_settled(result)

    def on_lease_wait(self, driver: str) -> None:
        for callback in self._callbacks:
            callback.on_lease_wait(driver)

    def on_waiting(self, reason: str) -> None:
        for callback in self._callbacks:
            callback.on_waiting(reason)

    def on_concurrency_limited(self, asked: int, limit: int) -> None:
        for callback in self._callbacks:
            callback.on_concurrency_limited(asked, limit)

    def on_layout(self, layout: Layout) -> None:
        for callback in self._callbacks:
            callback.on_layout(layout)

    def on_trial_start(self, number: int, config: TrialConfig) -> None:
        for callback in self._callbacks:
            callback.on_trial_start(number, config)

    def on_epoch(self, number: int, epoch: int, score: float, fold_scores: Sequence[float | None]) -> None:
        for callback in self._callbacks:
            callback.on_epoch(number, epoch, score, fold_scores)

    def on_trial_end(self, result: TrialResult) -> None:
        for callback in self._callbacks:
            callback.on_trial_end(result)

    def on_actor_lost(self) -> None:
        for callback in self._callbacks:
            callback.on_actor_lost()

    def on_draining(self, running: int) -> None:
        for callback in self._callbacks:
            callback.on_draining(running)

    def on_restart(self, reason: str) -> None:
        for callback in self._callbacks:
            callback.on_restart(reason)

    def on_budget_used(self, reason: str) -> None:
        for callback in self._callbacks:
            callback.on_budget_used(reason)
