"""Ask the driver of a run for something from outside: checked here, written as a request, carried out by the driver."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from raypipe.core.choices import as_drawn
from raypipe.core.errors import UserError
from raypipe.search.points import read_points
from raypipe.storage.lease import read_lease
from raypipe.storage.records import read_options
from raypipe.storage.remote import shell_quoted
from raypipe.storage.requests import Request, ask, read_requests
from raypipe.storage.run_store import RunStore

MAX_ASKED = 1000
"""Last requests among which those without an answer are counted."""


def ask_to_stop(run: RunStore, number: int) -> Request:
    """Ask that a trial stops after the epoch under way, and keeps what it has trained.

    Raises
    ------
    UserError
        There is no such trial, or it has ended.
    """
    ended = run.result(number)
    if ended is not None:
        raise UserError(f"{run.where}: trial {number} has ended ({ended.state})")
    if not run.has_trial(number):
        raise UserError(f"{run.where}: no trial {number}")
    return ask(run, "stop-trial", trial=number)


def ask_to_enqueue(run: RunStore, words: Iterable[str]) -> Request:
    """Ask that a point of the run's search space is trained; runs the space's code to check it.

    Parameters
    ----------
    run
        The run.
    words
        Every parameter that the space draws, such as ``optim/lr=0.003``.

    Raises
    ------
    UserError
        The space cannot have drawn the point.
    """
    point = run.space.check_point(parse_point(words), "the point")
    return ask(run, "enqueue", point=point)


def ask_to_end(run: RunStore) -> Request:
    """Ask that the sweep ends as after one Ctrl-C: running trials finish their epoch, and stay open.

    Raises
    ------
    UserError
        No driver runs.
    """
    driver = read_lease(run.folder)
    if driver is None or not driver.alive:
        raise UserError(f"{run.where}: no sweep is running; start one with: raypipe resume {shell_quoted(run.where)}")
    return ask(run, "end", driver=driver.id)


def next_driver(run: RunStore, request: Request) -> str:
    """Return the command that takes up a request that was written, in words; empty where a sweep is running.

    A point is one of the run's trials, so the command extends a run that has none left for it.
    """
    driver = read_lease(run.folder)
    if driver is not None and driver.alive:
        return ""
    resume = f"raypipe resume {shell_quoted(run.where)}"
    if request.kind == "stop-trial":
        return f"no sweep is running; the trial stops after one more epoch of: {resume}"
    trials, taken = read_options(run.folder, run.run_id).get("trials"), _taken(run)
    if trials is None or taken <= trials:
        return f"no sweep is running; it is taken up by: {resume}"
    return f"no sweep is running, and no trial of {trials} is left; it is taken up by: {resume} --trials {taken}"


def _taken(run: RunStore) -> int:
    """Return the number of trials that are drawn, wait to be drawn, or are asked for."""
    drawn = set(run.recorded())
    waiting = [point for point in read_points(run) if point.number not in drawn]
    asked = read_requests(run, last=MAX_ASKED)
    pending = [each for each in asked if each.answer is None and each.request.kind == "enqueue"]
    return max(len(drawn), len(run.space.start)) + len(waiting) + len(pending)


def parse_point(words: Iterable[str]) -> dict[str, Any]:
    """Parse ``["optim/lr=0.003", "sam/name=none"]``; a value is JSON, or else text; lists are as a study has them.

    Raises
    ------
    UserError
        There is none, one has no ``=``, or a name is given twice.
    """
    point: dict[str, Any] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign or not name:
            raise UserError(f"{word}: must be NAME=VALUE, for example optim/lr=0.003")
        if name in point:
            raise UserError(f"{word}: {name} is given twice")
        point[name] = _parse_value(value)
    if not point:
        raise UserError("a point needs parameters as NAME=VALUE, for example optim/lr=0.003")
    return point


def _parse_value(text: str) -> str | bool | int | float | None:
    try:
        found = as_drawn(json.loads(text, parse_constant=lambda name: name))  # NaN is no number of a record
    except (ValueError, RecursionError):
        return text
    finite = not isinstance(found, float) or abs(found) < float("inf")
    return found if finite and not isinstance(found, dict) else text
