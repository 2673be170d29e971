"""View of a running sweep: a live display in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raypipe.cli.console import PLAIN_LINE_SECONDS, pinned, short
from raypipe.cli.sweep_state import RunningTrial, SweepState
from raypipe.core.config import TrialConfig, flat
from raypipe.core.text import format_duration
from raypipe.storage.budget import BUDGET_OPTIONS
from raypipe.storage.records import TrialResult
from raypipe.storage.remote import shell_quoted
from raypipe.trial.callback import Layout, RunSnapshot, SweepCallback

MAX_TRIAL_ROWS = 12
"""Running trials that are shown in the table."""
MIN_WIDE_COLUMNS = 100
"""Width of a terminal from which the table has a column of parameters."""
MAX_FOLD_SCORES = 5
"""Number of folds up to which every fold's score is shown; of more folds, the lowest and the highest."""


class SweepView(SweepCallback, AbstractContextManager["SweepView"]):
    """Callback that prints a line per event and, in a terminal, a live display below them.

    Parameters
    ----------
    console
        Console to print on.
    clock
        Clock in seconds.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = pinned(console)
        self._clock = clock
        self.state = SweepState(clock)
        self._printed_at = clock()
        self._live: Live | None = None

    def __enter__(self) -> SweepView:
        if self._console.is_terminal:
            # Standard output is redirected to a file while Ray runs; the display leaves it alone.
            options: dict[str, Any] = {"redirect_stdout": False, "redirect_stderr": False, "transient": True}
            self._live = Live(get_renderable=self.render, console=self._console, refresh_per_second=2, **options)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def _print(self, line: str) -> None:
        self._printed_at = self._clock()
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    # Callbacks

    def on_ray_start(self, address: str | None) -> None:
        self._print(f"joining Ray at {address}" if address else "starting Ray on this machine")

    def on_warm_start(self, run: str, trials: int, finished: int) -> None:
        self._print(f"warm start: the sampler begins with {trials} of the {finished} trials of {run}")

    def on_trials_kept(self, asked: int, existing: int) -> None:
        self._print(f"--trials {asked}: the run has {existing} trials already, and keeps them")

    def on_open(self, run: RunSnapshot) -> None:
        self.state.on_open(run)
        if self.state.ended:
            self._print(f"resuming: {self.state.ended} of {run.trials} trials have ended")

    def on_trial_settled(self, result: TrialResult) -> None:
        self.state.on_trial_settled(result)

    def on_waiting(self, reason: str) -> None:
        self._print(f"waiting for the cluster to grow: {reason}")

    def on_concurrency_limited(self, asked: int, limit: int) -> None:
        self._print(
            f"{limit} trial(s) at a time, not {asked}: each takes 0.35 GB of memory on the driver's machine, which has "
            "no more; where a trial has fewer workers than folds, more --workers still use the other machines"
        )

    def on_layout(self, layout: Layout) -> None:
        self.state.on_layout(layout)
        gpus = f" and {layout.gpus:g} GPU(s)" if layout.gpus else ""
        self._print(
            f"{layout.concurrent} trial(s) at a time, {layout.workers} train worker(s) each with {layout.cpus:g} "
            f"core(s){gpus}"
        )

    def on_trial_start(self, number: int, config: TrialConfig) -> None:
        self.state.on_trial_start(number, config)
        self._print(f"trial {number}: {_chosen(config)}")

    def on_epoch(self, number: int, epoch: int, score: float, fold_scores: Sequence[float | None]) -> None:
        self.state.on_epoch(number, epoch, score, fold_scores)
        if not self._live and self._clock() - self._printed_at > PLAIN_LINE_SECONDS:
            self._print(self.line())

    def on_trial_end(self, result: TrialResult) -> None:
        self.state.on_trial_end(result)
        score = "no score" if result.score is None else f"score {result.score:.4f} (epoch {result.best_epoch})"
        best = f", {self._best()}" if self.state.best else ""
        why = "" if result.state == "complete" else f": {result.reason}"
        self._print(
            f"trial {result.number} {result.state}, {score}{best}, {format_duration(result.seconds)} of workers{why}"
        )

    def on_actor_lost(self) -> None:
        self._print("an actor sends no heartbeats and is declared dead; its trial is retried")

    def on_draining(self, running: int) -> None:
        self._print(f"stopping: {running} trial(s) finish the epoch under way; Ctrl-C again stops now")

    def on_restart(self, reason: str) -> None:
        self.state.on_restart(reason)
        self._print(f"{reason}; restarting from the run's records")

    def on_budget_used(self, reason: str) -> None:
        self._print(
            f"{reason}; continue with: raypipe resume {shell_quoted(self.state.where)} {BUDGET_OPTIONS[reason]} MORE"
        )

    # Display

    def line(self) -> str:
        """Return the state of the sweep in one line."""
        state = self.state
        parts = [format_duration(self._clock() - state.opened_at), f"{state.ended}/{state.trials or '?'} trials ended"]
        if best := self._best():
            parts.append(best)
        parts += [f"trial {number}: {_progress(trial)}" for number, trial in sorted(state.running.items())[:4]]
        parts += [f"about {format_duration(state.seconds_left)} left"] if state.seconds_left is not None else []
        return "  ".join(parts)

    def _best(self) -> str:
        best, baseline = self.state.best, self.state.baseline
        known = f"without EEG {baseline:.4f}" if baseline is not None else ""
        if best is None:
            return known
        return f"best {best[0]:.4f} (trial {best[1]}{'; ' + known if known else ''})"

    def render(self) -> RenderableType:
        """Return the live display."""
        # A copy: rich draws in a thread of its own.
        state, running = self.state, sorted(self.state.running.items())
        rows: list[RenderableType] = [Text(""), self._head(len(running))]
        if state.done is not None:
            rows.append(self._bar(state.done))
        if best := self._best():
            beats = state.best and state.baseline is not None and state.better(state.best[0], state.baseline)
            rows.append(Text(f"{state.metric}: {best}", style="green" if beats else ""))
        if running:
            rows.append(_table(running[:MAX_TRIAL_ROWS], self._console.width >= MIN_WIDE_COLUMNS))
        if len(running) > MAX_TRIAL_ROWS:
            rows.append(Text(f"and {len(running) - MAX_TRIAL_ROWS} more", style="dim"))
        rows.append(Text("  ".join(self._speed())))
        if problems := self._problems():
            rows.append(Text(problems, style="yellow"))
        return Group(*rows)

    def _head(self, running: int) -> Text:
        state = self.state
        counts = [f"{count} {name}" for name, count in state.states.items()] + [f"{running} running"]
        head = Text(f"{state.where or 'opening the run'}  ", style="bold")
        head.append(f"{state.ended} of {state.trials or '?'} trials ended: {', '.join(counts)}", style="not bold")
        return head

    def _bar(self, done: float) -> RenderableType:
        state, grid = self.state, Table.grid(padding=(0, 2))
        left = f"about {format_duration(state.seconds_left)} left" if state.seconds_left is not None else ""
        elapsed = format_duration(self._clock() - state.opened_at)
        grid.add_row(ProgressBar(total=1.0, completed=done, width=40), f"{done:.0%}", elapsed, left)
        return grid

    def _speed(self) -> list[str]:
        state, parts = self.state, []
        if state.first_start_at is not None and state.epochs:
            elapsed = max(1e-9, self._clock() - state.first_start_at)
            parts.append(f"{60 * state.epochs / elapsed:.1f} epochs a minute")
            parts += [f"{3600 * state.trials_gained / elapsed:.0f} trials an hour"] if state.trials_gained else []
        parts += state.resources_used
        if hasattr(os, "getloadavg"):
            parts.append(f"load here {os.getloadavg()[0]:.1f}")
        return parts

    def _problems(self) -> str:
        failed = ", ".join(f"{count} {kind}" for kind, count in self.state.failures.most_common())
        parts = [f"failures: {failed}"] if failed else []
        parts += [f"restarts: {self.state.restarts}"] if self.state.restarts else []
        return "  ".join(parts)


def _chosen(config: TrialConfig) -> str:
    """Return the parameters that differ from their defaults."""
    default = flat(TrialConfig())
    return " ".join(f"{name}={short(value)}" for name, value in flat(config).items() if value != default[name])


def _progress(trial: RunningTrial) -> str:
    if trial.score is None:
        return "starting"
    return f"epoch {trial.epoch}/{trial.config.epochs}, score {trial.score:.4f}"


def _folds(scores: Sequence[float | None]) -> str:
    defined = [score for score in scores if score is not None]
    if not defined:
        return ""
    if len(scores) > MAX_FOLD_SCORES:
        return f"{min(defined):.3f} to {max(defined):.3f}"
    return " ".join("-" if score is None else f"{score:.3f}" for score in scores)


def _table(running: Sequence[tuple[int, RunningTrial]], wide: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", expand=wide)
    for name in ("trial", "epoch", "", "score", "best", "folds", "s/epoch"):
        table.add_column(name, justify="left" if name in ("", "folds") else "right", no_wrap=True)
    if wide:
        table.add_column("chosen", no_wrap=True, overflow="ellipsis", ratio=1)
    for number, trial in running:
        table.add_row(*_row(number, trial), *([Text(_chosen(trial.config), style="dim")] if wide else []))
    return table


def _row(number: int, trial: RunningTrial) -> list[RenderableType]:
    pace = trial.seconds_per_epoch()
    return [
        str(number),
        f"{trial.epoch}/{trial.config.epochs}" if trial.epoch else "starting",
        ProgressBar(total=1.0, completed=trial.done, width=8),
        "" if trial.score is None else f"{trial.score:.4f}",
        "" if trial.best is None else f"{trial.best:.4f}",
        _folds(trial.fold_scores),
        "" if pace is None else f"{pace:.1f}",
    ]
