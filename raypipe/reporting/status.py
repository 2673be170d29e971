"""The state of a run in a few lines, from its store alone: while it runs and afterwards, from any machine."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from raypipe.core.metrics import get_metric
from raypipe.search.reruns import Spread, spreads
from raypipe.storage.files import map_concurrently, read_json
from raypipe.storage.lease import DriverRecord, read_lease
from raypipe.storage.records import TrialRecord
from raypipe.storage.run_store import RunStore, TrialResult, best_epoch
from raypipe.storage.trial_log import read_log

MOST, BEST = 40, 10
"""How many trials `Status.shown` gives at most, and how many of them for their scores."""
FEW, LAST = 3, 6
"""How many failed trials are shown with how many last lines of their logs."""


@dataclass(frozen=True)
class Line:
    """One trial, as `status` shows it."""

    number: int
    state: str
    score: float | None
    best_epoch: int
    epochs: int
    total: int
    seconds: float
    reason: str
    failure: str | None = None


@dataclass(frozen=True)
class Failed:
    """The end of a failed trial's log."""

    number: int
    kind: str
    log: list[str]


@dataclass(frozen=True)
class Status:
    """A run at one moment."""

    where: str
    task: str
    metric: str
    driver: str
    """Who drives it, in words."""
    lines: list[Line]
    asked: int
    """Trials the run is to have."""
    left: float | None
    """Rough seconds to the end, by the mean of the trials that have ended; None before the first."""
    latest: list[Failed]
    """The newest of the failed trials."""
    spreads: list[Spread] = field(default_factory=list)
    """Trials that were trained again on new seeds."""

    def shown(self, most: int = MOST) -> list[Line]:
        """What is worth a line, in order: trials under way, the best, then the newest, `most` in all."""
        sign = get_metric(self.metric).sign
        ranked = [line for line in self.lines if line.score is not None and line.state != "failed"]
        ranked.sort(key=lambda line: sign * (line.score or 0.0))
        under_way = [line for line in self.lines if line.state in ("running", "interrupted")]
        wanted = [*under_way, *ranked[:BEST], *reversed(self.lines)]
        kept = list({line.number: line for line in wanted}.values())[:most]
        return sorted(kept, key=lambda line: line.number)

    @property
    def counts(self) -> Counter[str]:
        """Trials by state."""
        return Counter(line.state for line in self.lines)

    @property
    def failures(self) -> Counter[str]:
        """Failed trials by kind."""
        return Counter(line.failure or "error" for line in self.lines if line.state == "failed")


def _ended(ended: TrialResult, total: int) -> Line:
    return Line(
        number=ended.number,
        state=ended.state,
        score=ended.score,
        best_epoch=ended.best_epoch,
        epochs=ended.epochs,
        total=total,
        seconds=ended.seconds,
        reason=ended.reason,
        failure=ended.failure,
    )


def _open(run: RunStore, number: int, total: int, alive: bool) -> Line:
    """A trial that has not ended: what its epochs so far say."""
    history = run.history(number)
    best = best_epoch(history, run.info.direction)
    return Line(
        number=number,
        state="running" if alive else "interrupted",
        score=best.score if best else None,
        best_epoch=best.epoch if best else 0,
        epochs=len(history),
        total=total,
        seconds=sum(epoch.seconds for epoch in history),
        reason="",
    )


def _read(run: RunStore, trial: tuple[int, set[str]]) -> tuple[TrialRecord | None, TrialResult | None]:
    """Record and end of a trial with files of these names; an invalid draw has an end only."""
    number, names = trial
    return run.record(number) if "trial.json" in names else None, run.result(number) if "result.json" in names else None


def _used_up(driver: DriverRecord, options: dict[str, Any]) -> str:
    """What a run has used up beside its trials, in words."""
    for name, used in {"time_budget": driver.spent, "gpu_hours": driver.gpu_hours}.items():
        if options.get(name) and float(used) >= options[name]:
            what = "time budget is" if name == "time_budget" else "GPU-hours are"
            return f"its {what} used up; go on with: raypipe resume RUN --{name.replace('_', '-')} MORE"
    return ""


def read_status(run: RunStore) -> Status:
    """Read a run's state."""
    driver = read_lease(run.folder)
    alive = bool(driver and driver.alive)
    lines: list[Line] = []
    reruns: dict[int, int | None] = {}
    results: list[TrialResult] = []
    trials = [(n, names) for n, names in sorted(run.listing().items()) if names & {"trial.json", "result.json"}]
    for (number, _), (record, ended) in zip(
        trials, map_concurrently(run.folder, partial(_read, run), trials), strict=True
    ):
        if record:
            reruns[number] = record.rerun_of
        total = record.config.epochs if record else 0
        results += [ended] if ended else []
        lines.append(_ended(ended, total) if ended else _open(run, number, total, alive))
    options = read_json(run.folder, "options.json") if run.folder.exists("options.json") else {}
    asked = int(options.get("trials", len(lines)))
    late = _used_up(driver, options) if driver else ""
    over = sum(line.state not in ("running", "interrupted") for line in lines)
    left = None
    if driver is None:
        words = "never driven"
    elif alive:
        words = f"running (process {driver.pid} on {driver.host}, {round(time.time() - driver.beat)} s ago)"
        if over:
            left = max(0.0, (driver.spent / over) * (asked - over))
    elif over >= asked:
        words = "finished"
    elif late:
        words = late
    elif driver.ended:
        words = "stopped; go on with: raypipe resume RUN"
    else:
        words = "its driver died; go on with: raypipe resume RUN"
    if driver and options.get("gpu_hours"):
        words += f"; {driver.gpu_hours:.3g} of {options['gpu_hours']:g} GPU-hours used"
    failed = [line for line in lines if line.state == "failed"][-FEW:]
    latest = [Failed(f.number, f.failure or "error", read_log(run.folder, f.number)[-LAST:]) for f in failed]
    again = spreads(run, reruns, results)
    return Status(run.where, run.info.task, run.info.metric, words, lines, asked, left, latest, again)
