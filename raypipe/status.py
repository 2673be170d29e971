"""The state of a run in a few lines, from its store alone: while it runs and afterwards, from any machine."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

from raypipe.files import read_json
from raypipe.lease import current
from raypipe.store import RunStore, best_epoch


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

    @property
    def counts(self) -> Counter[str]:
        """Trials by state."""
        return Counter(line.state for line in self.lines)

    @property
    def failures(self) -> Counter[str]:
        """Failed trials by reason."""
        return Counter(line.reason for line in self.lines if line.state == "failed")


def read_status(run: RunStore) -> Status:
    """Read a run's state."""
    driver = current(run.folder)
    alive = bool(driver and driver["alive"])
    lines = []
    for number in run.numbers():
        history, ended = run.history(number), run.result(number)
        best = best_epoch(history, run.info.direction)
        lines.append(
            Line(
                number=number,
                state=ended.state if ended else ("running" if alive else "interrupted"),
                score=best.score if best else None,
                best_epoch=best.epoch if best else 0,
                epochs=len(history),
                total=run.config(number).epochs,
                seconds=sum(epoch.seconds for epoch in history),
                reason=ended.reason if ended else "",
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
    return Status(run.where, run.info.task, run.info.metric, words, lines, asked, left)
