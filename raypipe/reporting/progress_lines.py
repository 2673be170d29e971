"""Print the progress of a sweep as lines of text."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence

from raypipe.core.config import TrialConfig
from raypipe.core.parameters import changed_parameters
from raypipe.core.text import format_duration, format_value, one_line
from raypipe.reporting.sweep_state import RunningTrial, SweepState
from raypipe.storage.budget import BUDGET_OPTIONS
from raypipe.storage.records import TrialResult
from raypipe.storage.remote import shell_quoted
from raypipe.trial.callback import Layout, RunSnapshot, SweepCallback

MAX_TRIALS_IN_LINE = 4
"""Running trials that a line of progress names."""


class PrintProgress(SweepCallback):
    """Callback that prints a line per event of a sweep, and a line of progress every few seconds while trials run.

    Parameters
    ----------
    write
        Called with each line. None: print to standard output, as it is when this object is made. In a notebook, that is
        the cell.
    every
        Seconds between lines while trials run.
    clock
        Clock in seconds.

    Examples
    --------
    >>> sweep("space.py", "store", "run", callback=PrintProgress())  # doctest: +SKIP
    """

    def __init__(
        self,
        write: Callable[[str], object] | None = None,
        *,
        every: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        stream = sys.stdout
        self._write = write or (lambda line: print(one_line(line), file=stream, flush=True))
        self._every, self._clock = every, clock
        self._written_at = clock()
        self.state = SweepState(clock)

    def print_line(self, line: str) -> None:
        """Print a line."""
        self._written_at = self._clock()
        self._write(line)

    def on_ray_start(self, address: str | None) -> None:
        self.print_line(f"joining Ray at {address}" if address else "starting Ray on this machine")

    def on_part(self, part: int, parts: int, subjects: int) -> None:
        self.print_line(f"part {part} of {parts}: {subjects} subject(s) are held out")

    def on_study_rebuilt(self, reason: str, trials: int, again: Sequence[int]) -> None:
        self.print_line(f"{reason}: rebuilt from the records of {trials} trial(s), with the same parameters and scores")
        if again:
            numbers = ", ".join(map(str, again))
            self.print_line(f"the records of trial(s) {numbers} are lost: trained again with the same parameters")

    def on_warning(self, line: str) -> None:
        self.print_line(f"warning: {line}")

    def on_warm_start(self, run: str, trials: int, finished: int) -> None:
        self.print_line(f"warm start: the sampler starts with {trials} of the {finished} trials of {run}")

    def on_trials_kept(self, asked: int, existing: int) -> None:
        self.print_line(f"--trials {asked}: the run has {existing} trials already, and keeps them")

    def on_open(self, run: RunSnapshot) -> None:
        self.state.on_open(run)
        if self.state.ended:
            self.print_line(f"resuming: {self.state.ended} of {run.trials} trials have ended")

    def on_trial_settled(self, result: TrialResult) -> None:
        self.state.on_trial_settled(result)

    def on_lease_wait(self, driver: str) -> None:
        self.print_line(f"waiting for a minute at most, to see whether {driver} still drives the run")

    def on_waiting(self, reason: str) -> None:
        self.print_line(f"waiting for the cluster to grow: {reason}")

    def on_concurrency_limited(self, asked: int, limit: int) -> None:
        self.print_line(
            f"{limit} trial(s) at a time, not {asked}: beside its workers each takes 0.28 GB of the memory that Ray "
            "counts, and there is no more; where a trial has fewer workers than folds, more --workers use all cores"
        )

    def on_layout(self, layout: Layout) -> None:
        self.state.on_layout(layout)
        gpus = f" and {layout.gpus:g} GPU(s)" if layout.gpus else ""
        self.print_line(
            f"{layout.concurrent} trial(s) at a time, {layout.workers} train worker(s) each with {layout.cpus:g} "
            f"core(s){gpus}"
        )

    def on_trial_start(self, number: int, config: TrialConfig) -> None:
        self.state.on_trial_start(number, config)
        self.print_line(f"trial {number}: {chosen_parameters(config)}")

    def on_epoch(self, number: int, epoch: int, score: float, fold_scores: Sequence[float | None]) -> None:
        self.state.on_epoch(number, epoch, score, fold_scores)
        if self._clock() - self._written_at > self._every:
            self.print_line(self.progress())

    def on_trial_end(self, result: TrialResult) -> None:
        self.state.on_trial_end(result)
        score = "no score" if result.score is None else f"score {result.score:z.4f} (epoch {result.best_epoch})"
        best = f", {self.best()}" if self.state.best else ""
        reason = "" if result.state == "complete" else f": {result.reason}"
        self.print_line(
            f"trial {result.number} {result.state}, {score}{best}, {format_duration(result.seconds)} of workers{reason}"
        )

    def on_actor_lost(self) -> None:
        self.print_line("an actor sends no heartbeats and is declared dead; its trial is retried")

    def on_draining(self, running: int) -> None:
        self.print_line(f"stopping: {running} trial(s) finish the epoch under way; Ctrl-C again stops now")

    def on_restart(self, reason: str) -> None:
        self.state.on_restart(reason)
        self.print_line(f"{reason}; restarting from the run's records")

    def on_budget_used(self, reason: str) -> None:
        resume = f"raypipe resume {shell_quoted(self.state.where)} {BUDGET_OPTIONS[reason]} MORE"
        self.print_line(f"{reason}; continue with: {resume}")

    def progress(self) -> str:
        """Return the state of the sweep in one line."""
        state = self.state
        parts = [format_duration(self._clock() - state.opened_at), f"{state.ended}/{state.trials or '?'} trials ended"]
        if best := self.best():
            parts.append(best)
        running = sorted(state.running.items())[:MAX_TRIALS_IN_LINE]
        parts += [f"trial {number}: {_epoch_and_score(trial)}" for number, trial in running]
        parts += [f"{state.time_left} left"] if state.time_left else []
        return "  ".join(parts)

    def best(self) -> str:
        """Return the best score so far and the score without EEG, in words."""
        best, baseline = self.state.best, self.state.baseline
        known = f"without EEG {baseline:z.4f}" if baseline is not None and not math.isnan(baseline) else ""
        if best is None:
            return known
        return f"best {best[0]:z.4f} (trial {best[1]}{'; ' + known if known else ''})"


def chosen_parameters(config: TrialConfig) -> str:
    """Return the parameters that differ from their defaults."""
    return " ".join(f"{name}={format_value(value)}" for name, value in changed_parameters(config).items())


def _epoch_and_score(trial: RunningTrial) -> str:
    if trial.score is None:
        return "starting"
    if math.isnan(trial.score):
        return f"epoch {trial.epoch}/{trial.config.epochs}, score undefined"
    return f"epoch {trial.epoch}/{trial.config.epochs}, score {trial.score:z.4f}"
