"""The state of a run as the live page shows it: what `raypipe status` reads, as values that are JSON."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any

from raypipe.core.metrics import get_metric
from raypipe.core.own_metrics import shown_metric
from raypipe.core.text import format_duration, format_value, one_line
from raypipe.ensembles.fitted import read_ensemble_record
from raypipe.reporting.page import PAGE_FILE
from raypipe.reporting.status import MAX_ROWS, ReadTrial, Status, TrialRow, read_status
from raypipe.storage.records import best_first
from raypipe.storage.remote import shell_quoted, without_settings
from raypipe.storage.requests import Asked
from raypipe.storage.run_store import RunStore

MAX_TABLE_ROWS = 200
"""Trials in the table; unfinished, best and latest ones take precedence."""


class LiveReader:
    """Read the state of a run again and again; records of trials that have ended are read once."""

    def __init__(self, run: RunStore) -> None:
        self.run = run
        self._ended: dict[int, ReadTrial] = {}
        self._curves: dict[int, list[float | None]] = {}

    def read(self) -> dict[str, Any]:
        """Return the state.

        Raises
        ------
        UserError
            A record is damaged, or the storage fails.
        """
        status = read_status(self.run, self._ended)
        rows = status.top_rows(MAX_TABLE_ROWS)
        shown = {row.number for row in status.top_rows(MAX_ROWS)}
        drawn = {row.number: self._drawn(row.number) for row in rows}
        ensemble = read_ensemble_record(self.run)
        return {
            "where": one_line(without_settings(self.run.where)),
            "target": status.target,
            "metric": shown_metric(status.metric),
            "better": "lower" if get_metric(status.metric).sign > 0 else "higher",
            "scored": status.scored,
            "driver": driver_state(status, self.run.where),
            "planned": status.planned,
            "states": dict(status.states),
            "left": status.time_left and str(status.time_left),
            "used": time_used(status),
            "resources": status.resources,
            "parameters": varied(list(drawn.values())),
            "best": best_trial(status),
            "trials": [self._trial(row, drawn[row.number], row.number in shown) for row in rows],
            "hidden": len(status.rows) - len(rows),
            "failures": [{"trial": f.number, "kind": f.kind, "lines": f.lines} for f in status.failures],
            "spreads": [spread.describe(shown_metric(status.metric)) for spread in status.spreads],
            "requests": [asked_state(asked) for asked in status.requests],
            "report": self.run.folder.exists(PAGE_FILE),
            "verdict": None if ensemble is None else ensemble.verdict,
        }

    def _drawn(self, number: int) -> dict[str, Any]:
        """Return the parameters that a trial drew, by name."""
        read = self._ended.get(number)
        record = read.record if read else self.run.record(number)
        return dict(record.params) if record else {}

    def _trial(self, row: TrialRow, drawn: dict[str, Any], curve: bool) -> dict[str, Any]:
        return {
            "number": row.number,
            "state": row.state,
            "score": row.score,
            "epoch": row.epochs,
            "total": row.total,
            "best_epoch": row.best_epoch,
            "time": format_duration(row.seconds) if row.epochs else "",
            "why": "" if row.state == "complete" else row.reason,
            "failure": row.failure,
            "drawn": {name: format_value(value) for name, value in drawn.items()},
            "point": point_text(drawn),
            "curve": self._curve(row) if curve else [],
        }

    def _curve(self, row: TrialRow) -> list[float | None]:
        """Return a trial's score after each epoch; None where it is undefined."""
        if row.number in self._curves:
            return self._curves[row.number]
        scores = [epoch.score for epoch in self.run.history(row.number)] if row.total else []
        if row.number in self._ended:
            self._curves[row.number] = scores
        return scores


def point_text(drawn: dict[str, Any]) -> str:
    """Return parameters as words for `raypipe enqueue`, so that `search.requests.parse_point` gives them again."""
    words = []
    for name, value in drawn.items():
        plain = isinstance(value, str) and not _is_json(value)
        words.append(f"{name}={value if plain else json.dumps(value)}")
    return shlex.join(words)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def driver_state(status: Status, where: str) -> dict[str, Any]:
    """Return the state of a run's driver: a word, a line, and the Unix time (s) of its last heartbeat."""
    driver = status.last_driver
    if driver is None:
        return {"word": "not started", "line": status.driver, "beat": None}
    if driver.alive:
        return {"word": "running", "line": f"process {driver.pid} on {driver.host}", "beat": driver.beat}
    line = status.driver.replace("resume RUN", f"resume {shell_quoted(without_settings(where))}")
    word = "finished" if line.startswith("finished") else "stopped" if driver.ended else "gone"
    return {"word": word, "line": one_line(line), "beat": driver.beat}


def time_used(status: Status) -> list[str]:
    """Return the time and the GPU-hours that a run has used, with their limits, in words."""
    driver, options = status.last_driver, status.options
    if driver is None:
        return []
    lines = [f"wall-clock {format_duration(driver.spent)}{_limit(options.get('time_budget'), format_duration)}"]
    if driver.gpu_hours or options.get("gpu_hours"):
        lines.append(f"{driver.gpu_hours:.3g}{_limit(options.get('gpu_hours'), lambda h: f'{h:g}')} GPU-hours")
    return lines


def _limit(value: float | None, text: Any) -> str:
    return f" of {text(float(value))}" if value else ""


def varied(drawn: Sequence[dict[str, Any]]) -> list[str]:
    """Return the names of parameters that differ between trials, in the order in which they are drawn.

    The first trials of a search may be of one family: a name of the model that was drawn is always there.
    """
    names = dict.fromkeys(name for each in drawn for name in each)
    different = (len({repr(each[name]) for each in drawn if name in each}) > 1 for name in names)
    return [name for name, differs in zip(names, different, strict=True) if differs or name == "model/name"]


def best_trial(status: Status) -> int | None:
    """Return the number of the ended trial with the best score, None where there is none."""
    ranked = best_first(status.rows, status.metric)
    return ranked[0].number if ranked else None


def asked_state(asked: Asked) -> dict[str, Any]:
    """Return a request and its answer."""
    request, answer = asked
    return {
        "what": request.describe(),
        "asked": request.asked,
        "trial": request.trial,
        "done": answer.done if answer else None,
        "answer": answer.text if answer else None,
    }


def encode_state(state: dict[str, Any]) -> bytes:
    """Return a state as JSON in one line of ASCII; numbers that are not finite are null."""
    return json.dumps(_finite(state)).encode()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value
