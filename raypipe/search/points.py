"""Points that users have enqueued while a sweep ran (`raypipe enqueue`): the record of them, and their trials.

The record is written before the study has the trial, so a driver that is killed in between loses no point and trains
none twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import optuna

from raypipe.core.errors import UserError
from raypipe.core.record import FrozenModel
from raypipe.storage.files import write_record
from raypipe.storage.records import OwnedRecord, read_owned
from raypipe.storage.remote import shell_quoted
from raypipe.storage.run_store import RunStore

POINTS_FILE = "points.json"


class Point(FrozenModel):
    """A point that was enqueued."""

    number: int
    """Its trial."""
    params: dict[str, str | bool | int | float | None]
    """Drawn parameters, by name."""
    request: str = ""
    """The request for it (`raypipe.storage.requests`)."""


class PointsRecord(OwnedRecord):
    """All enqueued points of a run, in order (``points.json``); written before the study has them."""

    format: Literal["raypipe-points/1"] = "raypipe-points/1"
    points: list[Point]


def read_points(run: RunStore) -> list[Point]:
    """Return the points that were enqueued, by number.

    Raises
    ------
    DamagedFileError
        The record is damaged.
    """
    if not run.folder.exists(POINTS_FILE):
        return []
    return read_owned(PointsRecord, run.folder, POINTS_FILE, run.run_id).points


def write_points(run: RunStore, points: Sequence[Point]) -> None:
    """Record all enqueued points of a run."""
    write_record(run.folder, POINTS_FILE, PointsRecord(run=run.run_id, points=list(points)))


def enqueue_point(
    study: optuna.Study, run: RunStore, point: Mapping[str, Any], request: str, trials: int | None, warm: int
) -> int:
    """Enqueue a point as one of the run's trials, and return its number; a request is enqueued once.

    Parameters
    ----------
    study, run
        The study and its run.
    point
        Drawn parameters, by name.
    request
        Id of the request for it.
    trials
        Number of trials that the run is to have; None for no limit.
    warm
        Trials of another run that the study starts with.

    Raises
    ------
    UserError
        The search space cannot have drawn the point, or all trials of the run are drawn.
    """
    points = read_points(run)
    found = next((known.number for known in points if known.request == request), None)
    if found is not None:
        return found
    drawn = run.space.check_point(point, "the point")
    number = len(study.get_trials(deepcopy=False))
    if trials is not None and number - warm >= trials:
        more = f"raypipe resume {shell_quoted(run.where)} --trials {trials + 1}"
        raise UserError(f"all {trials} trials of the run are drawn; extend it, then ask again: {more}")
    write_points(run, [*points, Point(number=number, params=drawn, request=request)])
    study.enqueue_trial(drawn)
    return number


def enqueue_missing(study: optuna.Study, run: RunStore) -> None:
    """Enqueue recorded points that the study does not have, since an earlier attempt was broken off."""
    for point in read_points(run):
        if point.number == len(study.get_trials(deepcopy=False)):
            study.enqueue_trial(dict(point.params))
