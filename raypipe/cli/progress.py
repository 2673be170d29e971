"""A sweep while it runs: one view that renews itself in a terminal, a plain line now and then where there is none."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raypipe.cli.console import PLAIN_EVERY, bound, duration, short
from raypipe.core.config import TrialConfig, flat
from raypipe.storage.budget import MORE
from raypipe.storage.remote import shell_quoted
from raypipe.storage.run_store import TrialResult

SHOWN = 12
"""Running trials that have a line of their own."""
WIDE = 100
"""Columns of a terminal in which a trial's parameters have room too."""
MOST_FOLDS = 5
"""Folds whose scores are written out; of more, the lowest and the highest."""


@dataclass
class Running:
    """A trial under way."""

    config: TrialConfig
    since: float
    epoch: int = 0
    score: float | None = None
    best: float | None = None
    folds: Sequence[float | None] = ()
    begun: int = 0
    """Epochs that an earlier driver had trained."""
    first: float | None = None
    """When this driver heard of its first epoch."""

    @property
    def done(self) -> float:
        """Share of its epochs."""
        return min(1.0, self.epoch / self.config.epochs)

    def pace(self) -> float | None:
        """Seconds an epoch; None before the second."""
        steps = self.epoch - self.begun - 1
        return None if self.first is None or steps < 1 else (self.since - self.first) / steps


@dataclass
class Sweep:
    """What is known of a sweep from its events (the keywords of `SweepView`'s calls)."""

    clock: Callable[[], float] = time.monotonic
    where: str = ""
    metric: str = "score"
    direction: str = ""
    baseline: float | None = None
    trials: int | None = None
    best: tuple[float, int] | None = None
    states: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    restarts: int = 0
    running: dict[int, Running] = field(default_factory=dict)
    layout: dict[str, Any] = field(default_factory=dict)
    started: float = 0.0
    begun: float | None = None
    """When the first trial of this driver started."""
    gained: float = 0.0
    """Trials, in parts too, that this driver has brought forward."""
    epochs: int = 0
    """Epochs that this driver has heard of."""

    def __post_init__(self) -> None:
        self.started = self.clock()

    def better(self, a: float, b: float) -> bool:
        """Whether score `a` is better than `b`."""
        return a < b if self.direction == "minimize" else a > b

    def start(self, number: int, config: TrialConfig) -> None:
        """A trial is handed out."""
        now = self.clock()
        self.begun = now if self.begun is None else self.begun
        self.running[number] = Running(config, now)

    def epoch(self, number: int, epoch: int, score: float, folds: Sequence[float | None]) -> None:
        """A trial has been scored; one that was gone on with begins with an epoch other than its first."""
        if epoch < 1:  # it has failed before its first
            return
        trial, now = self.running[number], self.clock()
        if trial.first is None:
            trial.first, trial.begun = now, epoch - 1
        self.epochs += max(0, epoch - max(trial.epoch, trial.begun))
        trial.since, trial.epoch, trial.score, trial.folds = now, epoch, score, folds
        if trial.best is None or self.better(score, trial.best):
            trial.best = score

    def end(self, number: int, result: TrialResult) -> None:
        """A trial has ended."""
        trial = self.running.pop(number, None)
        self.gained += 1.0 - (min(1.0, trial.begun / trial.config.epochs) if trial else 0.0)
        self.states[result.state] += 1
        if result.state == "failed":
            self.failures[result.failure or "error"] += 1
        elif result.score is not None and (self.best is None or self.better(result.score, self.best[0])):
            self.best = result.score, number

    @property
    def ended(self) -> int:
        """Trials that have ended."""
        return self.states.total()

    @property
    def done(self) -> float | None:
        """Share of the sweep."""
        if not self.trials:
            return None
        return min(1.0, (self.ended + sum(trial.done for trial in self.running.values())) / self.trials)

    @property
    def left(self) -> float | None:
        """Rough seconds to the end, by what this driver has brought forward so far."""
        partly = sum(t.done - min(1.0, t.begun / t.config.epochs) for t in self.running.values() if t.epoch)
        gained, done = self.gained + partly, self.done
        if self.begun is None or done is None or self.trials is None or gained <= 0:
            return None
        return (1.0 - done) * self.trials * (self.clock() - self.begun) / gained

    @property
    def busy(self) -> list[str]:
        """Cores and GPUs that trials have taken, of those there are."""
        if not self.layout:
            return []
        workers, found = len(self.running) * self.layout["workers"], []
        for what, each in (("cores", "cpus"), ("GPUs", "gpus")):
            if there := self.layout[what]:
                found.append(f"{min(workers * self.layout[each], there):g} of {there:g} {what} taken")
        return found


class SweepView(AbstractContextManager["SweepView"]):
    """A sweep while it runs, as the callback `sweep` reports to.

    Parameters
    ----------
    console
        Where to show it. What happens is a line each; below them, in a terminal, the view renews itself.
    clock
        Seconds.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = bound(console)
        self._clock = clock
        self.sweep = Sweep(clock)
        self._said = clock()
        self._live: Live | None = None

    def __enter__(self) -> SweepView:
        if self._console.is_terminal:
            # Standard output is Ray's to be kept out of, and the log's; the view leaves it alone.
            options: dict[str, Any] = {"redirect_stdout": False, "redirect_stderr": False, "transient": True}
            self._live = Live(get_renderable=self.render, console=self._console, refresh_per_second=2, **options)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, kind: str, news: dict[str, Any]) -> None:
        """Show one event."""
        getattr(self, f"_on_{kind}")(**news)
        if not self._live and kind == "epoch" and self._clock() - self._said > PLAIN_EVERY:
            self._say(self.line())

    def _say(self, line: str) -> None:
        self._said = self._clock()
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    # What is shown

    def line(self) -> str:
        """The sweep in one line."""
        sweep = self.sweep
        parts = [duration(self._clock() - sweep.started), f"{sweep.ended}/{sweep.trials or '?'} trials ended"]
        if best := self._best():
            parts.append(best)
        parts += [f"trial {number}: {_course(trial)}" for number, trial in sorted(sweep.running.items())[:4]]
        parts += [f"about {duration(sweep.left)} left"] if sweep.left is not None else []
        return "  ".join(parts)

    def _best(self) -> str:
        best, baseline = self.sweep.best, self.sweep.baseline
        known = f"without EEG {baseline:.4f}" if baseline is not None else ""
        if best is None:
            return known
        return f"best {best[0]:.4f} (trial {best[1]}{'; ' + known if known else ''})"

    def render(self) -> RenderableType:
        """The view as it is now."""
        # A copy, for rich draws in a thread of its own.
        sweep, running = self.sweep, sorted(self.sweep.running.items())
        counts = [f"{count} {state}" for state, count in sweep.states.items()]
        counts += [f"{len(running)} running"]
        head = Text(f"{sweep.where or 'opening the run'}  ", style="bold")
        head.append(f"{sweep.ended} of {sweep.trials or '?'} trials ended: {', '.join(counts)}", style="not bold")
        rows: list[RenderableType] = [Text(""), head]
        if sweep.done is not None:
            rows.append(self._bar(sweep.done))
        if best := self._best():
            beats = sweep.best and sweep.baseline is not None and sweep.better(sweep.best[0], sweep.baseline)
            rows.append(Text(f"{sweep.metric}: {best}", style="green" if beats else ""))
        if running:
            rows.append(_table(running[:SHOWN], self._console.width >= WIDE))
        if len(running) > SHOWN:
            rows.append(Text(f"and {len(running) - SHOWN} more", style="dim"))
        rows.append(Text("  ".join(self._speed())))
        if troubles := self._troubles():
            rows.append(Text(troubles, style="yellow"))
        return Group(*rows)

    def _bar(self, done: float) -> RenderableType:
        sweep, grid = self.sweep, Table.grid(padding=(0, 2))
        left = f"about {duration(sweep.left)} left" if sweep.left is not None else ""
        took = duration(self._clock() - sweep.started)
        grid.add_row(ProgressBar(total=1.0, completed=done, width=40), f"{done:.0%}", took, left)
        return grid

    def _speed(self) -> list[str]:
        sweep, parts = self.sweep, []
        if sweep.begun is not None and sweep.epochs:
            took = max(1e-9, self._clock() - sweep.begun)
            parts.append(f"{60 * sweep.epochs / took:.1f} epochs a minute")
            parts += [f"{3600 * sweep.gained / took:.0f} trials an hour"] if sweep.gained else []
        parts += sweep.busy
        if hasattr(os, "getloadavg"):
            parts.append(f"load here {os.getloadavg()[0]:.1f}")
        return parts

    def _troubles(self) -> str:
        failed = ", ".join(f"{count} {kind}" for kind, count in self.sweep.failures.most_common())
        parts = [f"failures: {failed}"] if failed else []
        parts += [f"begun again: {self.sweep.restarts}"] if self.sweep.restarts else []
        return "  ".join(parts)

    # Events

    def _on_open(self, **news: Any) -> None:
        for name, value in news.items():
            setattr(self.sweep, name, Counter(value) if name in ("states", "failures") else value)
        if self.sweep.ended:
            self._say(f"going on: {self.sweep.ended} of {news['trials']} trials have ended")

    def _on_fewer(self, asked: int, there: int) -> None:
        self._say(f"--trials {asked}: the run has {there} trials already, and keeps them")

    def _on_launch(self, address: str | None) -> None:
        self._say(f"joining Ray at {address}" if address else "starting Ray on this machine")

    def _on_warm(self, run: str, trials: int, finished: int) -> None:
        self._say(f"warm start: the sampler begins with {trials} of the {finished} trials of {run}")

    def _on_layout(self, **news: Any) -> None:
        self.sweep.layout = news
        self._say(
            f"{news['concurrent']} trial(s) at a time, {news['workers']} train worker(s) each with {news['cpus']:g} "
            "core(s)" + (f" and {news['gpus']:g} GPU(s)" if news["gpus"] else "")
        )

    def _on_crowded(self, asked: int, most: int) -> None:
        self._say(
            f"{most} trial(s) at a time, not {asked}: the driver's machine keeps 0.35 GB for each, and has memory for "
            "no more; where a trial has fewer workers than folds, more --workers use the other machines all the same"
        )

    def _on_start(self, number: int, config: TrialConfig) -> None:
        self.sweep.start(number, config)
        self._say(f"trial {number}: {_chosen(config)}")

    def _on_epoch(self, number: int, epoch: int, score: float, folds: Sequence[float | None] = ()) -> None:
        self.sweep.epoch(number, epoch, score, folds)

    def _on_settled(self, number: int, result: TrialResult) -> None:
        if self.sweep.where:  # else `open`, which follows, has counted it
            self.sweep.end(number, result)

    def _on_end(self, number: int, result: TrialResult) -> None:
        self.sweep.end(number, result)
        score = "no score" if result.score is None else f"score {result.score:.4f} (epoch {result.best_epoch})"
        best = f", {self._best()}" if self.sweep.best else ""
        why = "" if result.state == "complete" else f": {result.reason}"
        self._say(f"trial {number} {result.state}, {score}{best}, {duration(result.seconds)} of workers{why}")

    def _on_drain(self, running: int) -> None:
        self._say(f"stopping: {running} trial(s) finish the epoch under way; Ctrl-C again stops now")

    def _on_wait(self, reason: str) -> None:
        self._say(f"waiting for the cluster to grow: {reason}")

    def _on_again(self, reason: str) -> None:
        self.sweep.running.clear()
        self.sweep.restarts += 1
        self._say(f"{reason}; going on from the run's records")

    def _on_silent(self) -> None:
        self._say("a slot has fallen silent: its trial goes on in another")

    def _on_late(self, reason: str) -> None:
        self._say(f"{reason}; go on with: raypipe resume {shell_quoted(self.sweep.where)} {MORE[reason]} MORE")


def _chosen(config: TrialConfig) -> str:
    default = flat(TrialConfig())
    return " ".join(f"{name}={short(value)}" for name, value in flat(config).items() if value != default[name])


def _course(trial: Running) -> str:
    if trial.score is None:
        return "starting"
    return f"epoch {trial.epoch}/{trial.config.epochs}, score {trial.score:.4f}"


def _folds(scores: Sequence[float | None]) -> str:
    told = [score for score in scores if score is not None]
    if not told:
        return ""
    if len(scores) > MOST_FOLDS:
        return f"{min(told):.3f} to {max(told):.3f}"
    return " ".join("-" if score is None else f"{score:.3f}" for score in scores)


def _table(running: Sequence[tuple[int, Running]], wide: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", expand=wide)
    for name in ("trial", "epoch", "", "score", "best", "folds", "s/epoch"):
        table.add_column(name, justify="left" if name in ("", "folds") else "right", no_wrap=True)
    if wide:
        table.add_column("chosen", no_wrap=True, overflow="ellipsis", ratio=1)
    for number, trial in running:
        pace = trial.pace()
        cells: list[RenderableType] = [
            str(number),
            f"{trial.epoch}/{trial.config.epochs}" if trial.epoch else "starting",
            ProgressBar(total=1.0, completed=trial.done, width=8),
            "" if trial.score is None else f"{trial.score:.4f}",
            "" if trial.best is None else f"{trial.best:.4f}",
            _folds(trial.folds),
            "" if pace is None else f"{pace:.1f}",
        ]
        table.add_row(*cells, *([Text(_chosen(trial.config), style="dim")] if wide else []))
    return table
