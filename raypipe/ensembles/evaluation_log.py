"""Record every time that held-out people are scored: in the run, and in a registry beside its store of windows.

The run's log is ``ensemble/evaluations.json``. The registry is the folder ``STORE.looks`` beside the store, with one
file for each scoring by any run on the store. A file is written whole and never changed, so concurrent processes cannot
lose each other's, and a process that dies leaves a whole file or none.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections import Counter
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit

from raypipe.core.errors import DiskFullError, StorageError, UserError
from raypipe.core.record import FrozenModel, Record
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.fitted import read_ensemble_record
from raypipe.storage.files import map_concurrently, open_folder, read_record, write_record
from raypipe.storage.records import OwnedRecord, read_owned
from raypipe.storage.run_store import RunStore

EVALUATION_LOG = "ensemble/evaluations.json"
REGISTRY_SUFFIX = ".looks"
"""Ending of the registry's folder, after the name of the store."""
OPTIMISTIC = "Choosing the best of several scores makes it optimistic."
UNCOUNTED = "Scorings of these subjects by other runs are not counted"
"""Beginning of the note on a registry that cannot be written."""

DEFAULT_TOP = 10
"""Trials that are candidates where none are named."""


class HeldOutEvaluation(FrozenModel):
    """One scoring of held-out subjects."""

    time: float
    """Unix time."""
    trials: list[int]
    """Candidates, best first."""
    method: str
    """Requested method, which may be ``auto`` or ``all``."""
    top: int
    """Requested number of trials, beside the best one of each other family."""
    max_members: int | None
    max_mb: float | None
    """Limits; None where there are none."""


class EvaluationLog(OwnedRecord):
    """All scorings of a run's held-out subjects, in order."""

    format: Literal["raypipe-evaluations/3"] = "raypipe-evaluations/3"
    evaluations: list[HeldOutEvaluation]


class Look(Record):
    """One scoring of held-out people, by any run on a store (a file of the registry)."""

    format: Literal["raypipe-look/1"] = "raypipe-look/1"
    run: str
    """`RunInfo.id`."""
    where: str
    """Path or URI of the run."""
    time: float
    """Unix time."""
    people: list[str]


class Evaluations(NamedTuple):
    """How often a run's held-out people have been scored, the latest scoring included."""

    times: int = 1
    """Scorings of the person who was scored most often, by all runs on the store."""
    runs: int = 1
    """Runs that have scored some of these people."""
    uncounted: str | None = None
    """Why scorings by other runs are not counted; None where they are."""


def read_evaluations(run: RunStore) -> list[HeldOutEvaluation]:
    """Return all scorings of a run's held-out subjects by this run so far."""
    if not run.folder.exists(EVALUATION_LOG):
        return []
    return read_owned(EvaluationLog, run.folder, EVALUATION_LOG, run.run_id).evaluations


def record_evaluation(
    run: RunStore,
    windows: WindowStore,
    trials: list[int],
    method: str,
    *,
    top: int = DEFAULT_TOP,
    max_members: int | None = None,
    max_mb: float | None = None,
) -> Evaluations:
    """Record a scoring of the held-out people before its score is shown; return the scorings so far.

    Where the registry cannot be written, as beside a store on a read-only disk, only the run's own are counted.
    """
    earlier = _reported(run)
    new = HeldOutEvaluation(
        time=time.time(), trials=trials, method=method, top=top, max_members=max_members, max_mb=max_mb
    )
    evaluations = [*read_evaluations(run), new]
    write_record(run.folder, EVALUATION_LOG, EvaluationLog(run=run.run_id, evaluations=evaluations))
    own = Evaluations(max(len(evaluations), earlier + 1))
    registries = registries_of(windows)
    if not registries:
        return own
    look = Look(run=run.run_id, where=run.where, time=time.time(), people=run.folds.held_out)
    name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.json"
    uncounted = []
    for place in registries:
        try:
            write_record(open_folder(place), name, look)
        except DiskFullError:
            raise
        except (OSError, StorageError) as error:
            uncounted.append(f"{place} cannot be written ({error.__class__.__name__})")
    if uncounted:
        return own._replace(uncounted="; ".join(uncounted))
    found = _count(read_looks(windows), run)
    return found._replace(times=max(found.times, own.times))


def _reported(run: RunStore) -> int:
    """Return the scorings that the run's ensemble reports: a lost log or registry does not restart the count."""
    with contextlib.suppress(UserError):  # the ensemble is about to be written again
        if record := read_ensemble_record(run):
            return record.held_out_evaluations
    return 0


def read_looks(windows: WindowStore) -> list[Look]:
    """Return all scorings of held-out people by runs on a store, or on one of several, oldest first.

    Raises
    ------
    UserError
        A record is damaged.
    """
    found: dict[str, Look] = {}
    for place in registries_of(windows):
        folder = open_folder(place)
        names = [name for name in folder.names() if name.endswith(".json") and name not in found]
        looks = map_concurrently(folder, partial(read_record, Look, folder), names)
        found |= dict(zip(names, looks, strict=True))
    return [look for _, look in sorted(found.items(), key=itemgetter(0))]


def registries_of(windows: WindowStore) -> list[str]:
    """Return the path or URI of the registry of each store; empty for windows that are in no folder."""
    places = (place for store in windows.places if (place := _registry_of(store)) is not None)
    return list(dict.fromkeys(places))


def _registry_of(store: str) -> str | None:
    """Return where a store's registry is: beside the folder itself, by whichever link or URI it is reached."""
    parts = urlsplit(store) if "://" in store else None
    if parts is not None and parts.scheme != "file":
        return urlunsplit(parts._replace(path=parts.path.rstrip("/") + REGISTRY_SUFFIX))
    path = Path(store if parts is None else unquote(parts.path)).resolve()
    return str(path.with_name(path.name + REGISTRY_SUFFIX)) if path.is_dir() else None


def _count(looks: list[Look], run: RunStore) -> Evaluations:
    held_out = set(run.folds.held_out)
    seen = [look for look in looks if held_out & set(look.people)]
    times = Counter(person for look in seen for person in held_out & set(look.people))
    return Evaluations(max(times.values(), default=0), len({look.run for look in seen}))
