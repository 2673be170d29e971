"""Track the state of a running sweep by the events of its callback."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from raypipe.core.config import TrialConfig
from raypipe.core.metrics import get_metric
from raypipe.reporting.time_left import TimeLeft, TrialWork, time_left
from raypipe.storage.driver_record import Resources
from raypipe.storage.records import TrialResult
from raypipe.trial.callback import Layout, RunSnapshot, SweepCallback


@dataclass
class RunningTrial:
    """A trial that has not ended."""

    config: TrialConfig
    started: float
    updated: float
    """Time of its start or of its last epoch."""
    epoch: int = 0
    score: float | None = None
    best: float | None = None
    fold_scores: Sequence[float | None] = ()
    resumed_after: int = 0
    """Epochs that an earlier driver has trained."""
    first_epoch_at: float | None = None
    """Time at which this driver received its first epoch."""

    @property
    def done(self) -> float:
        """Fraction of its epochs that are trained."""
        return min(1.0, self.epoch / self.config.epochs)

    @property
    def resumed_done(self) -> float:
        """Fraction of its epochs that an earlier driver has trained."""
        return min(1.0, self.resumed_after / self.config.epochs)

    @property
    def work(self) -> TrialWork:
        """Time and epochs that this driver has spent on it."""
        gained = max(0.0, self.done - self.resumed_done)
        return TrialWork(self.updated - self.started, gained, 1.0 - self.done, self.config.epochs)

    def seconds_per_epoch(self) -> float | None:
        """Return the mean seconds of an epoch, None before the second."""
        steps = self.epoch - self.resumed_after - 1
        return None if self.first_epoch_at is None or steps < 1 else (self.updated - self.first_epoch_at) / steps


@dataclass
class SweepState(SweepCallback):
    """Counts trials and epochs, and estimates the time left."""

    clock: Callable[[], float] = time.monotonic
    where: str = ""
    metric: str = ""
    baseline: float | None = None
    trials: int | None = None
    best: tuple[float, int] | None = None
    """Best score and the trial that has it."""
    states: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    restarts: int = 0
    running: dict[int, RunningTrial] = field(default_factory=dict)
    layout: Layout | None = None
    opened_at: float = 0.0
    first_start_at: float | None = None
    """Time at which this driver started its first trial."""
    trained: list[TrialWork] = field(default_factory=list)
    """Trials that have ended under this driver."""
    epochs: int = 0
    """Epochs that this driver has received."""

    def __post_init__(self) -> None:
        self.opened_at = self.clock()

    def better(self, a: float, b: float) -> bool:
        """Return whether score `a` is better than `b`."""
        return get_metric(self.metric).better(a, b)

    def on_open(self, run: RunSnapshot) -> None:
        if self.where not in ("", run.where):  # the next part of an outer cross-validation
            self.best, self.first_start_at, self.epochs = None, None, 0
            self.trained.clear()
            self.running.clear()
        self.where, self.metric = run.where, run.metric
        self.baseline, self.trials = run.baseline, run.trials
        self.states = Counter(result.state for result in run.results)
        self.failures = Counter(result.failure or "error" for result in run.results if result.state == "failed")
        if run.best is not None and run.best.score is not None:
            self.best = run.best.score, run.best.number

    def on_layout(self, layout: Layout) -> None:
        self.layout = layout

    def on_trial_start(self, number: int, config: TrialConfig) -> None:
        now = self.clock()
        self.first_start_at = now if self.first_start_at is None else self.first_start_at
        self.running[number] = RunningTrial(config, now, now)

    def on_epoch(self, number: int, epoch: int, score: float, fold_scores: Sequence[float | None]) -> None:
        if epoch < 1:  # the trial has failed before its first epoch
            return
        trial, now = self.running[number], self.clock()
        if trial.first_epoch_at is None:  # the first epoch of a resumed trial is not number 1
            trial.first_epoch_at, trial.resumed_after = now, epoch - 1
        self.epochs += max(0, epoch - max(trial.epoch, trial.resumed_after))
        trial.updated, trial.epoch, trial.score, trial.fold_scores = now, epoch, score, fold_scores
        if self.better(score, math.nan if trial.best is None else trial.best):
            trial.best = score

    def on_trial_settled(self, result: TrialResult) -> None:
        if self.where:  # before `on_open`, which counts it
            self.on_trial_end(result)

    def on_trial_end(self, result: TrialResult) -> None:
        trial = self.running.pop(result.number, None)
        if trial is not None:
            seconds, gained = self.clock() - trial.started, 1.0 - trial.resumed_done
            self.trained.append(TrialWork(seconds, gained, 0.0, trial.config.epochs))
        self.states[result.state] += 1
        if result.state == "failed":
            self.failures[result.failure or "error"] += 1
        elif result.score is not None and (self.best is None or self.better(result.score, self.best[0])):
            self.best = result.score, result.number

    def on_restart(self, reason: str) -> None:
        self.running.clear()
        self.restarts += 1

    @property
    def trials_gained(self) -> float:
        """Trials that have ended under this driver, less what earlier ones had trained of them."""
        return sum(work.gained for work in self.trained)

    @property
    def ended(self) -> int:
        """Number of trials that have ended."""
        return self.states.total()

    @property
    def done(self) -> float | None:
        """Fraction of the sweep that is done."""
        if not self.trials:
            return None
        return min(1.0, (self.ended + sum(trial.done for trial in self.running.values())) / self.trials)

    @property
    def time_left(self) -> TimeLeft | None:
        """Rough estimate from the trials that this driver has trained so far; see `time_left`."""
        if self.trials is None:
            return None
        running = [trial.work for trial in self.running.values()]
        others = self.ended - len(self.trained)  # of earlier drivers
        return time_left([*self.trained, *running], self.trials - others, self.layout.concurrent if self.layout else 1)

    @property
    def resources_used(self) -> list[str]:
        """Lines such as ``4 of 8 cores used``."""
        if self.layout is None:
            return []
        return Resources(**asdict(self.layout)).used(len(self.running))
