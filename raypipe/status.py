"""The state of a run in a few lines, from its store alone: while it runs and afterwards, from any machine."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from raypipe.files import read_json
from raypipe.lease import current
from raypipe.logs import read_log
from raypipe.rerun import Spread, spreads
from raypipe.store import RunStore, best_epoch

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

    @property
    def counts(self) -> Counter[str]:
        """Trials by state."""
        return Counter(line.state for line in self.lines)

    @property
    def failures(self) -> Counter[str]:
        """Failed trials by kind."""
        return Counter(line.failure or "error" for line in self.lines if line.state == "failed")


def read_status(run: RunStore) -> Status:
    """Read a run's state."""
    driver = current(run.folder)
    alive = bool(driver and driver["alive"])
    lines = []
    recorded, ended_ones = set(run.numbers()), set(run.numbers("result.json"))
    for number in sorted(recorded | ended_ones):  # an invalid draw has an end, and no configuration
        history, ended = run.history(number), run.result(number)
        best = best_epoch(history, run.info.direction)
        lines.append(
            Line(
                number=number,
                state=ended.state if ended else ("running" if alive else "interrupted"),
                score=best.score if best else None,
                best_epoch=best.epoch if best else 0,
                epochs=len(history),
                total=run.config(number).epochs if number in recorded else 0,
                seconds=sum(epoch.seconds for epoch in history),
                reason=ended.reason if ended else "",
                failure=ended.failure if ended else None,
            )
        )
    options = read_json(run.folder, "options.json") if run.folder.exists("options.json") else {}
    asked = int(options.get("trials", len(lines)))
    late = driver is not None and options.get("time_budget") and float(driver["spent"]) >= options["time_budget"]
    over = sum(line.state not in ("running", "interrupted") for line in lines)
    left = None
    if driver is None:
        words = "never driven"
    elif alive:
        words = f"running (process {driver['pid']} on {driver['host']}, {round(time.time() - driver['beat'])} s ago)"
        if over:
            left = max(0.0, (float(driver["spent"]) / over) * (asked - over))
    elif over >= asked:
        words = "finished"
    elif late:
        words = "its time budget is used up; go on with: raypipe resume RUN --time-budget MORE"
    elif driver.get("ended"):
        words = "stopped; go on with: raypipe resume RUN"
    else:
        words = "its driver died; go on with: raypipe resume RUN"
    failed = [line for line in lines if line.state == "failed"][-FEW:]
    latest = [Failed(f.number, f.failure or "error", read_log(run.folder, f.number)[-LAST:]) for f in failed]
    again = spreads(run)
    return Status(run.where, run.info.task, run.info.metric, words, lines, asked, left, latest, again)
