"""Read the state of a run from its files, during the run and afterwards, on any machine."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from raypipe.core.metrics import get_metric
from raypipe.reporting.time_left import TimeLeft, TrialWork, time_left
from raypipe.search.reruns import Spread, spreads
from raypipe.storage.driver_record import DriverRecord
from raypipe.storage.files import map_concurrently
from raypipe.storage.lease import read_lease
from raypipe.storage.records import TrialRecord, TrialResult, best_epoch, read_options
from raypipe.storage.requests import Asked, read_requests
from raypipe.storage.run_store import RunStore
from raypipe.storage.trial_log import read_log

MAX_ROWS = 40
"""Maximum number of trials that `Status.top_rows` returns."""
BEST_ROWS = 10
"""Number of these trials that are chosen for their scores."""
MAX_FAILURES = 3
"""Failed trials whose log is shown."""
MAX_REQUESTS = 5
"""Last requests that are shown."""
LOG_LINES = 6
"""Last lines of such a log that are shown."""
_UNFINISHED = ("running", "interrupted")


@dataclass(frozen=True)
class TrialRow:
    """State of one trial."""

    number: int
    state: str
    score: float | None
    best_epoch: int
    epochs: int
    total: int
    """Planned epochs; 0 for a trial without a record."""
    seconds: float
    """Time of one worker, summed over folds."""
    reason: str
    failure: str | None = None
    model: str = ""
    """``model/name``; empty for a trial without a record."""


@dataclass(frozen=True)
class FailureLog:
    """Last lines of a failed trial's log."""

    number: int
    kind: str
    lines: list[str]


@dataclass(frozen=True)
class Status:
    """State of a run."""

    where: str
    target: str
    metric: str
    scored: str
    """What a score is of, in words."""
    driver: str
    """State of the run's driver, in words."""
    rows: list[TrialRow]
    """All trials, by number."""
    planned: int
    """Number of trials that the run will have."""
    time_left: TimeLeft | None
    """Estimate from the trials so far (`time_left`); None where these do not show it, or without a driver."""
    failures: list[FailureLog]
    """Logs of the latest failed trials."""
    spreads: list[Spread] = field(default_factory=list)
    """Scores of trials that were trained again on new seeds."""
    resources: list[str] = field(default_factory=list)
    """Cores and GPUs in use, in words; empty without a driver."""
    requests: list[Asked] = field(default_factory=list)
    """The last requests to the run's drivers, oldest first."""
    last_driver: DriverRecord | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """Options that the run was last driven with."""

    def top_rows(self, limit: int = MAX_ROWS) -> list[TrialRow]:
        """Return up to `limit` trials in order of their numbers; unfinished, best and latest ones take precedence."""
        sign = get_metric(self.metric).sign
        ranked = [row for row in self.rows if row.score is not None and row.state != "failed"]
        ranked.sort(key=lambda row: sign * (row.score or 0.0))
        unfinished = [row for row in self.rows if row.state in _UNFINISHED]
        wanted = [*unfinished, *ranked[:BEST_ROWS], *reversed(self.rows)]
        kept = list({row.number: row for row in wanted}.values())[:limit]
        return sorted(kept, key=lambda row: row.number)

    @property
    def states(self) -> Counter[str]:
        """Return the number of trials by state."""
        return Counter(row.state for row in self.rows)

    @property
    def has_families(self) -> bool:
        """Return whether trials have different models."""
        return len({row.model for row in self.rows if row.model}) > 1

    @property
    def failure_kinds(self) -> Counter[str]:
        """Return the number of failed trials by kind of failure."""
        return Counter(row.failure or "error" for row in self.rows if row.state == "failed")


class ReadTrial(NamedTuple):
    """Records of a trial; one without a record had an invalid configuration."""

    number: int
    record: TrialRecord | None
    result: TrialResult | None


def read_status(run: RunStore, known: dict[int, ReadTrial] | None = None) -> Status:
    """Read the state of a run.

    Parameters
    ----------
    run
        The run.
    known
        Trials that had ended when they were read, which are not read again; those that have ended since are added.
    """
    driver = read_lease(run.folder)
    options = read_options(run.folder, run.run_id)
    trials = _read_trials(run, {} if known is None else known)
    rows = [_row(run, trial, bool(driver and driver.alive)) for trial in trials]
    planned = int(options.get("trials", len(rows)))
    ended = sum(row.state not in _UNFINISHED for row in rows)
    reruns = {trial.number: trial.record.rerun_of for trial in trials if trial.record}
    results = [trial.result for trial in trials if trial.result]
    return Status(
        where=run.where,
        target=run.info.target,
        metric=run.info.metric,
        scored=run.scored,
        driver=_driver_state(driver, options, finished=ended >= planned),
        rows=rows,
        planned=planned,
        time_left=_time_left(driver, rows, planned),
        failures=_failure_logs(run, rows),
        spreads=spreads(run, reruns, results),
        resources=_resources(driver, rows),
        requests=read_requests(run, MAX_REQUESTS),
        last_driver=driver,
        options=options,
    )


def _read_trials(run: RunStore, known: dict[int, ReadTrial]) -> list[ReadTrial]:
    """Read all trials that have a record or a result, by number; `known` is as in `read_status`."""
    found = [(n, names) for n, names in sorted(run.listing().items()) if names & {"trial.json", "result.json"}]
    new = [(n, names) for n, names in found if n not in known]
    read = {trial.number: trial for trial in map_concurrently(run.folder, partial(_read_trial, run), new)}
    known |= {number: trial for number, trial in read.items() if trial.result}
    return [read.get(n) or known[n] for n, _ in found]


def _read_trial(run: RunStore, found: tuple[int, set[str]]) -> ReadTrial:
    number, names = found
    record = run.record(number) if "trial.json" in names else None
    return ReadTrial(number, record, run.result(number) if "result.json" in names else None)


def _row(run: RunStore, trial: ReadTrial, alive: bool) -> TrialRow:
    total = trial.record.config.epochs if trial.record else 0
    model = str(trial.record.config.model.name) if trial.record else ""
    if trial.result is None:
        return _unfinished_row(run, trial.number, total, model, alive)
    result = trial.result
    return TrialRow(
        number=result.number,
        state=result.state,
        score=result.score,
        best_epoch=result.best_epoch,
        epochs=result.epochs,
        total=total,
        seconds=result.seconds,
        reason=result.reason,
        failure=result.failure,
        model=model,
    )


def _unfinished_row(run: RunStore, number: int, total: int, model: str, alive: bool) -> TrialRow:
    """Return the state of a trial that has not ended, from its epochs so far."""
    history = run.history(number)
    best = best_epoch(history, run.info.direction)
    return TrialRow(
        number=number,
        state="running" if alive else "interrupted",
        score=best.score if best else None,
        best_epoch=best.epoch if best else 0,
        epochs=len(history),
        total=total,
        seconds=sum(epoch.seconds for epoch in history),
        reason="",
        model=model,
    )


def _driver_state(driver: DriverRecord | None, options: dict[str, Any], finished: bool) -> str:
    """Return the state of the run's driver, and how to continue a run that has stopped."""
    if driver is None:
        return "not started; start it with: raypipe sweep"
    if driver.alive:
        seconds = max(0, round(time.time() - driver.beat))  # its host's clock may be ahead
        state = f"running (process {driver.pid} on {driver.host}, last heartbeat {seconds} s ago)"
    elif finished:
        state = "finished"
    elif exhausted := _exhausted_budget(driver, options):
        state = exhausted
    elif driver.ended:
        state = "stopped; continue with: raypipe resume RUN"
    else:
        state = "its driver died; continue with: raypipe resume RUN"
    if options.get("gpu_hours"):
        state += f"; {driver.gpu_hours:.3g} of {options['gpu_hours']:g} GPU-hours used"
    return state


def _exhausted_budget(driver: DriverRecord, options: dict[str, Any]) -> str:
    """Return which budget of a run is used up, and how to continue; empty where none is."""
    for name, used, text in (
        ("time_budget", driver.spent, "time budget is"),
        ("gpu_hours", driver.gpu_hours, "GPU-hours are"),
    ):
        if options.get(name) and used >= options[name]:
            return f"its {text} used up; continue with: raypipe resume RUN --{name.replace('_', '-')} MORE"
    return ""


def _resources(driver: DriverRecord | None, rows: Sequence[TrialRow]) -> list[str]:
    if not driver or not driver.alive or not driver.resources:
        return []
    return driver.resources.used(min(driver.resources.concurrent, sum(row.state == "running" for row in rows)))


def _time_left(driver: DriverRecord | None, rows: Sequence[TrialRow], planned: int) -> TimeLeft | None:
    if not driver or not driver.alive or not driver.resources:
        return None
    workers = driver.resources.workers * driver.resources.concurrent
    return time_left([_work(row) for row in rows if row.total], planned, workers)


def _work(row: TrialRow) -> TrialWork:
    """Return what a trial has cost of its workers."""
    ended = row.state not in _UNFINISHED
    done = min(1.0, row.epochs / row.total)
    return TrialWork(row.seconds, 1.0 if ended else done, 0.0 if ended else 1.0 - done, row.total)


def _failure_logs(run: RunStore, rows: Sequence[TrialRow]) -> list[FailureLog]:
    latest = [row for row in rows if row.state == "failed"][-MAX_FAILURES:]
    return [
        FailureLog(row.number, row.failure or "error", read_log(run.folder, row.number)[-LOG_LINES:]) for row in latest
    ]
