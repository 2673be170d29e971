"""Show a running sweep in a terminal."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raypipe.cli.console import PLAIN_LINE_SECONDS
from raypipe.core.own_metrics import shown_metric
from raypipe.core.text import format_duration, one_line
from raypipe.reporting.progress_lines import PrintProgress, chosen_parameters
from raypipe.reporting.sweep_state import RunningTrial
from raypipe.reporting.tables import print_line

MAX_TRIAL_ROWS = 12
"""Running trials that are shown in the table."""
MIN_WIDE_COLUMNS = 100
"""Width of a terminal from which the table has a column of parameters."""
MAX_FOLD_SCORES = 5
"""Number of folds up to which every fold's score is shown; of more folds, the lowest and the highest."""


class SweepView(PrintProgress, AbstractContextManager["SweepView"]):
    """Callback that prints a line per event and, in a terminal, a live display below them.

    Parameters
    ----------
    console
        Console to print on.
    clock
        Clock in seconds.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        every = math.inf if console.is_terminal else PLAIN_LINE_SECONDS  # the live display shows progress
        super().__init__(lambda line: print_line(self._console, line), every=every, clock=clock)
        self._live: Live | None = None

    def __enter__(self) -> SweepView:
        if self._console.is_terminal:
            self._live = Live(get_renderable=self.render, console=self._console, refresh_per_second=2, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def render(self) -> RenderableType:
        """Return the live display."""
        # A copy: rich draws in a thread of its own.
        state, running = self.state, sorted(self.state.running.items())
        rows: list[RenderableType] = [Text(""), self._head(len(running))]
        if state.done is not None:
            rows.append(self._bar(state.done))
        if best := self.best():
            better = state.best and state.baseline is not None and state.better(state.best[0], state.baseline)
            rows.append(Text(f"{shown_metric(state.metric)}: {best}", style="green" if better else ""))
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
        head = Text(one_line(f"{state.where or 'opening the run'}  "), style="bold")
        head.append(f"{state.ended} of {state.trials or '?'} trials ended: {', '.join(counts)}", style="not bold")
        return head

    def _bar(self, done: float) -> RenderableType:
        state, grid = self.state, Table.grid(padding=(0, 2))
        left = f"{state.time_left} left" if state.time_left else ""
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


def _folds(scores: Sequence[float | None]) -> str:
    defined = [score for score in scores if score is not None]
    if not defined:
        return ""
    if len(scores) > MAX_FOLD_SCORES:
        return f"{min(defined):z.3f} to {max(defined):z.3f}"
    return " ".join("-" if score is None else f"{score:z.3f}" for score in scores)


def _table(running: Sequence[tuple[int, RunningTrial]], wide: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", expand=wide)
    for name in ("trial", "epoch", "", "score", "best", "folds", "s/epoch"):
        table.add_column(name, justify="left" if name in ("", "folds") else "right", no_wrap=True)
    if wide:
        table.add_column("chosen", no_wrap=True, overflow="ellipsis", ratio=1)
    for number, trial in running:
        chosen = [Text(one_line(chosen_parameters(trial.config)), style="dim")] if wide else []
        table.add_row(*_row(number, trial), *chosen)
    return table


def _row(number: int, trial: RunningTrial) -> list[RenderableType]:
    pace = trial.seconds_per_epoch()
    return [
        str(number),
        f"{trial.epoch}/{trial.config.epochs}" if trial.epoch else "starting",
        ProgressBar(total=1.0, completed=trial.done, width=8),
        "" if trial.score is None else "-" if math.isnan(trial.score) else f"{trial.score:z.4f}",
        "" if trial.best is None else f"{trial.best:z.4f}",
        _folds(trial.fold_scores),
        "" if pace is None else f"{pace:.1f}",
    ]
