"""What long work looks like in a terminal: a live line where there is one, a plain line now and then where not."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.status import Status
from rich.table import Table
from rich.text import Text

from raypipe.config import TrialConfig, flat
from raypipe.store import TrialResult

if TYPE_CHECKING:
    import pandas as pd

    from raypipe.compare import Comparison
    from raypipe.status import Status as RunStatus

PLAIN_EVERY = 15.0


def duration(seconds: float) -> str:
    """``93`` to ``1:33``, ``3725`` to ``1:02:05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Counter(AbstractContextManager["Counter"]):
    """Progress over a known number of things, as the callback ``(done, total, text)``."""

    def __init__(self, console: Console, what: str) -> None:
        self._console, self._what = console, what
        self._live = console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


class SweepView(AbstractContextManager["SweepView"]):
    """A sweep while it runs, as the callback `sweep` reports to."""

    def __init__(self, console: Console, direction: str = "", trials: int | None = None) -> None:
        # Bound to the stream of now: while Ray runs, what it prints is kept out of the terminal.
        self._console = Console(file=console.file, width=console.width)
        self._trials = trials
        self._direction = direction
        self._started = self._said = time.monotonic()
        self._best: tuple[float, int] | None = None
        self._ended = 0
        self._running: dict[int, str] = {}
        self._status: Status | None = None

    def __enter__(self) -> SweepView:
        if self._console.is_terminal:
            self._status = self._console.status("opening the run")
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status:
            self._status.stop()

    def __call__(self, kind: str, news: dict[str, Any]) -> None:
        """Show one event."""
        getattr(self, f"_on_{kind}")(**news)
        line = self._line()
        if self._status:
            self._status.update(line)
        elif kind == "epoch" and time.monotonic() - self._said > PLAIN_EVERY:
            self._say(line)

    def _say(self, line: str) -> None:
        self._said = time.monotonic()
        self._console.print(line, highlight=False, soft_wrap=True)

    def _line(self) -> str:
        parts = [f"{duration(time.monotonic() - self._started)}", f"{self._ended}/{self._trials or '?'} trials ended"]
        if self._best:
            parts.append(f"best {self._best[0]:.4f} (trial {self._best[1]})")
        parts += [f"trial {number}: {text}" for number, text in sorted(self._running.items())[:4]]
        return "  ".join(parts)

    def _on_open(self, trials: int, direction: str, ended: int, best: tuple[float, int] | None) -> None:
        self._trials, self._direction, self._ended, self._best = trials, direction, ended, best
        if ended:
            self._say(f"going on: {ended} of {trials} trials have ended")

    def _on_launch(self, address: str | None) -> None:
        self._say(f"joining Ray at {address}" if address else "starting Ray on this machine")

    def _on_warm(self, run: str, trials: int, finished: int) -> None:
        self._say(f"warm start: the sampler begins with {trials} of the {finished} trials of {run}")

    def _on_layout(self, workers: int, concurrent: int, cpus: float) -> None:
        self._say(f"{concurrent} trial(s) at a time, {workers} train worker(s) each with {cpus:g} core(s)")

    def _on_start(self, number: int, config: TrialConfig) -> None:
        default = flat(TrialConfig())
        chosen = [f"{k}={_short(v)}" for k, v in flat(config).items() if v != default[k]]
        self._running[number] = "starting"
        self._say(f"trial {number}: {' '.join(chosen)}")

    def _on_epoch(self, number: int, epoch: int, score: float) -> None:
        self._running[number] = f"epoch {epoch}, score {score:.4f}"

    def _on_end(self, number: int, result: TrialResult) -> None:
        self._running.pop(number, None)
        self._ended += 1
        if result.score is not None and result.state != "failed":
            sign = 1 if self._direction == "minimize" else -1
            if self._best is None or sign * result.score < sign * self._best[0]:
                self._best = (result.score, number)
        score = "no score" if result.score is None else f"score {result.score:.4f} (epoch {result.best_epoch})"
        best = f", best {self._best[0]:.4f} (trial {self._best[1]})" if self._best else ""
        why = "" if result.state == "complete" else f": {result.reason}"
        self._say(f"trial {number} {result.state}, {score}{best}, {duration(result.seconds)}{why}")

    def _on_drain(self, running: int) -> None:
        self._say(f"stopping: {running} trial(s) finish the epoch under way; Ctrl-C again stops now")

    def _on_wait(self, reason: str) -> None:
        self._say(f"waiting for the cluster to grow: {reason}")

    def _on_again(self, reason: str) -> None:
        self._running.clear()
        self._say(f"{reason}; going on from the run's records")

    def _on_silent(self) -> None:
        self._say("a slot has fallen silent: its trial goes on in another")

    def _on_late(self) -> None:
        self._say("the time budget is used up; a larger --time-budget goes on from here")


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
        say(
            f"{len(found.lines) - len(lines)} more are not shown here; all of them: raypipe trials {found.where}", "dim"
        )
    kinds = ", ".join(f"{n} {kind}" for kind, n in found.failures.most_common())
    states = [
        f"{n} {state}" + (f" ({kinds})" if state == "failed" else "") for state, n in sorted(found.counts.items())
    ]
    left = f"; about {duration(found.left)} left" if found.left is not None else ""
    say(f"{len(found.lines)} of {found.asked} trials: {', '.join(states) or 'no trial yet'}{left}")
    for spread in found.spreads:
        say(spread.words(found.metric))
    for failed in found.latest:
        say(f"trial {failed.number} failed ({failed.kind}); more in: raypipe logs {found.where} {failed.number}")
        for text in failed.log:
            say(f"  {text}", "dim")


def show_trials(console: Console, found: pd.DataFrame) -> None:
    """Print a run's trials with the parameters in which they differ, as wide as that is."""
    from raypipe.trials import searched

    shown = ["state", "score", "trained", "seconds", *searched(found), "failure"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("number", *shown):
        table.add_column(Text(name), justify="left" if name in ("state", "failure") else "right", no_wrap=True)
    for number, row in found[shown].astype(object).iterrows():
        cells = ["" if value is None or value != value else _short(value) for value in row]
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
            table.add_column(Text(str(column).replace("_", " ")), justify="right")
        for label, row in frame.astype(object).iterrows():
            cells = [_took(value) if str(name).endswith("seconds") else _short(value) for name, value in row.items()]
            table.add_row(Text(str(label)), *map(Text, cells))
        console.print(table)


def _took(seconds: float) -> str:
    return "unknown" if seconds != seconds else duration(seconds)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
