"""Show the progress of long work. A sweep has its own view (`progress`)."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from raypipe.core.text import one_line
from raypipe.reporting.tables import print_line
from raypipe.trial.callback import SweepCallback

PLAIN_LINE_SECONDS = 15.0
"""Seconds between lines of progress where there is no terminal."""


class ProgressCounter(SweepCallback, AbstractContextManager["ProgressCounter"]):
    """Callback ``(done, total, text)`` that shows a bar in a terminal and a line now and then elsewhere.

    Parameters
    ----------
    console
        Console to print on.
    what
        Work that is counted, in a word or two.
    """

    def __init__(self, console: Console, what: str) -> None:
        self._console = console
        self._what, self._live = what, console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=self._console,
            disable=not self._live,
        )
        self._task = self._progress.add_task(what, total=None, text="")
        self._printed_at = time.monotonic()

    def __enter__(self) -> ProgressCounter:
        self._progress.start()
        return self

    def __call__(self, done: int, total: int, text: str = "") -> None:
        """Show that `done` of `total` things are done."""
        self._progress.update(self._task, completed=done, total=total, text=one_line(text))
        late = time.monotonic() - self._printed_at > PLAIN_LINE_SECONDS
        if not self._live and (late or done == total):
            self._printed_at = time.monotonic()
            print_line(self._console, f"{self._what}: {done}/{total} {text}".rstrip())

    def on_waiting(self, reason: str) -> None:
        print_line(self._console, f"waiting for the cluster: {reason}")

    def on_draining(self, running: int) -> None:
        print_line(self._console, f"stopping: {running} worker(s) finish the epoch under way; Ctrl-C again stops now")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
