"""What long work and its results look like in a terminal; a sweep has a view of its own (`live`)."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from raypipe.storage.remote import shell_quoted
from raypipe.trial.callback import SweepCallback

if TYPE_CHECKING:
    import pandas as pd

    from raypipe.reporting.compare import Comparison
    from raypipe.reporting.status import Status as RunStatus

PLAIN_EVERY = 15.0


def duration(seconds: float) -> str:
    """``93`` to ``1:33``, ``3725`` to ``1:02:05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def bound(console: Console) -> Console:
    """The same console on the stream of now: while Ray runs, what is printed on standard output goes elsewhere."""
    return Console(file=console.file, width=console.width, force_terminal=console.is_terminal)


class Counter(SweepCallback, AbstractContextManager["Counter"]):
    """Progress over a known number of things, as the callback ``(done, total, text)``."""

    def __init__(self, console: Console, what: str) -> None:
        self._console = bound(console)
        self._what, self._live = what, console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=self._console,
            disable=not self._live,
        )
        self._task = self._progress.add_task(what, total=None, text="")
        self._said = time.monotonic()

    def __enter__(self) -> Counter:
        self._progress.start()
        return self

    def __call__(self, done: int, total: int, text: str = "") -> None:
        """Show how far the work has come."""
        self._progress.update(self._task, completed=done, total=total, text=text)
        late = time.monotonic() - self._said > PLAIN_EVERY
        if not self._live and (late or done == total):
            self._said = time.monotonic()
            self._console.print(f"{self._what}: {done}/{total} {text}".rstrip(), highlight=False)

    def on_waiting(self, reason: str) -> None:
        self._print(f"waiting for the cluster: {reason}")

    def on_draining(self, running: int) -> None:
        self._print(f"stopping: {running} worker(s) finish the epoch under way; Ctrl-C again stops now")

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


def show_status(console: Console, found: RunStatus) -> None:
    """Print a run's state."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, justify in (
        ("trial", "right"),
        ("state", "left"),
        (found.metric, "right"),
        ("best epoch", "right"),
        ("epochs", "right"),
        ("worker time", "right"),
        ("why", "left"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    lines = found.shown()
    for line in lines:
        score = "" if line.score is None else f"{line.score:.4f}"
        why = "" if line.state == "complete" else Text(line.reason)
        epochs = f"{line.epochs}/{line.total}" if line.total else ""
        table.add_row(str(line.number), line.state, score, str(line.best_epoch), epochs, duration(line.seconds), why)

    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    say(f"{found.where}: {found.task}, {found.driver}")
    console.print(table)
    if len(lines) < len(found.lines):
        more = len(found.lines) - len(lines)
        say(f"{more} more are not shown here; all of them: raypipe trials {shell_quoted(found.where)}", "dim")
    kinds = ", ".join(f"{n} {kind}" for kind, n in found.failures.most_common())
    states = [
        f"{n} {state}" + (f" ({kinds})" if state == "failed" else "") for state, n in sorted(found.counts.items())
    ]
    left = f"; about {duration(found.left)} left" if found.left is not None else ""
    say(f"{len(found.lines)} of {found.asked} trials: {', '.join(states) or 'no trial yet'}{left}")
    for spread in found.spreads:
        say(spread.words(found.metric))
    for failed in found.latest:
        where = shell_quoted(found.where)
        say(f"trial {failed.number} failed ({failed.kind}); more in: raypipe logs {where} {failed.number}")
        for text in failed.log:
            say(f"  {text}", "dim")


def show_trials(console: Console, found: pd.DataFrame) -> None:
    """Print a run's trials with the parameters in which they differ, as wide as that is."""
    from raypipe.reporting.trial_table import searched

    shown = ["state", "score", "trained", "seconds", *searched(found), "failure"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("number", *shown):
        table.add_column(Text(name), justify="left" if name in ("state", "failure") else "right", no_wrap=True)
    for number, row in found[shown].astype(object).iterrows():
        cells = ["" if value is None or value != value else short(value) for value in row]
        cells[1] = f"{row['score']:.4f}" if cells[1] else ""
        table.add_row(str(number), *map(Text, cells))
    needed = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    Console(width=max(console.width, needed)).print(table)  # else rich would cut numbers short


def show_comparison(console: Console, found: Comparison) -> None:
    """Print runs beside each other; what stands in the way of a comparison comes first."""

    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    first, *others = found.runs
    for name, grounds, pairs in zip(others, found.grounds, found.pairs, strict=True):
        say(f"{name} against {first}", "bold")
        for ground in grounds:
            say(f"  {ground.words}", None if ground.same else "bold yellow")
        for each in pairs:
            unit = f"{each.windows} windows" if each.windows else "one mean prediction a subject"
            say(
                f"  {each.what}: {found.metric} {each.scores[0]:.4f} and {each.scores[1]:.4f}, difference "
                f"{each.difference:+.4f} (95 % interval {each.low:+.4f} to {each.high:+.4f}; {each.subjects} subjects, "
                f"{unit}): {each.words(found.metric)}"
            )
            if each.odd:
                say(f"    {each.odd} in both runs have different targets: left out", "bold yellow")
        if not pairs:
            say("  NOTHING IN COMMON: no window and no subject that both predict", "bold yellow")
    say("Out-of-fold scores of best trials are optimistic, the more so the more trials a run has.", "dim")
    for title, frame in (("parameters of the best trials that differ", found.parameters), ("cost", found.cost)):
        say(title, "bold")
        if not len(frame):
            say("  none")
            continue
        table = Table(box=None, header_style="bold")
        table.add_column("")
        for column in frame.columns:
            table.add_column(Text(str(column).replace("seconds", "time").replace("_", " ")), justify="right")
        for label, row in frame.astype(object).iterrows():
            cells = [_took(value) if str(name).endswith("seconds") else short(value) for name, value in row.items()]
            table.add_row(Text(str(label)), *map(Text, cells))
        console.print(table)


def _took(seconds: float) -> str:
    return "unknown" if seconds != seconds else duration(seconds)


def short(value: Any) -> str:
    """Three digits of a number; all else as it is."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
