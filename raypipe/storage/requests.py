"""Requests to the driver of a run, as files in the run's folder: stop a trial, train a point, end the sweep.

Whoever can write to the run can ask. The driver looks for requests at its heartbeats and answers each with a record
beside it. A request without an answer is pending, also while no driver runs.
"""

from __future__ import annotations

import re
import time
import uuid
from typing import Any, Literal, NamedTuple

from pydantic import Field

from raypipe.core.errors import DamagedFileError, StorageError, UserError, first_line
from raypipe.core.record import OtherFormatError
from raypipe.storage.files import map_concurrently, write_record
from raypipe.storage.records import OwnedRecord, read_owned
from raypipe.storage.run_store import RunStore

Kind = Literal["stop-trial", "enqueue", "end"]
FOLDER = "requests"
_ID = r"\d{20}-[0-9a-f]{8}"
_REQUEST = re.compile(rf"{FOLDER}/({_ID})\.json")
_ANSWER = re.compile(rf"{FOLDER}/({_ID})-answer\.json")


class Request(OwnedRecord):
    """What the driver of a run is asked for (``requests/<id>.json``)."""

    format: Literal["raypipe-request/1"] = "raypipe-request/1"
    id: str
    kind: Kind
    trial: int | None = Field(default=None, ge=0)
    """Trial that is to stop after the epoch under way."""
    point: dict[str, str | bool | int | float | None] = Field(default_factory=dict)
    """Drawn parameters of the trial that is to be trained, by name."""
    driver: str = ""
    """Lease of the driver that is to end; for any other driver the request has expired."""
    asked: float
    """Unix time (s)."""

    def describe(self) -> str:
        """Return what is asked for, in words."""
        if self.kind == "stop-trial":
            return f"stop trial {self.trial}"
        if self.kind == "end":
            return "end the sweep"
        return "enqueue " + " ".join(f"{name}={value}" for name, value in self.point.items())


class Answer(OwnedRecord):
    """What has become of a request (``requests/<id>-answer.json``)."""

    format: Literal["raypipe-answer/1"] = "raypipe-answer/1"
    id: str
    done: bool
    """False where it was refused, or had expired."""
    text: str
    answered: float
    """Unix time (s)."""


class Asked(NamedTuple):
    """A request, and its answer once there is one."""

    request: Request
    answer: Answer | None


def ask(
    run: RunStore, kind: Kind, *, trial: int | None = None, point: dict[str, Any] | None = None, driver: str = ""
) -> Request:
    """Write a request to a run; `raypipe.search.requests` checks it before."""
    now = time.time_ns()
    name = f"{now:020d}-{uuid.uuid4().hex[:8]}"  # in order of time
    request = Request(
        run=run.run_id, id=name, kind=kind, trial=trial, point=point or {}, driver=driver, asked=now / 1e9
    )
    write_record(run.folder, f"{FOLDER}/{name}.json", request)
    return request


def read_answer(run: RunStore, request: Request) -> Answer | None:
    """Return the answer to a request, None where it is pending."""
    name = f"{FOLDER}/{request.id}-answer.json"
    return read_owned(Answer, run.folder, name, run.run_id) if run.folder.exists(name) else None


def read_requests(run: RunStore, last: int = 20) -> list[Asked]:
    """Return the last requests to a run with their answers, oldest first; those that are damaged are left out."""
    names = set(run.folder.names(FOLDER))
    ids = [found[1] for name in sorted(names) if (found := _REQUEST.fullmatch(name))][-last:]

    def read(name: str) -> Asked | None:
        try:
            request = read_owned(Request, run.folder, f"{FOLDER}/{name}.json", run.run_id)
            return Asked(request, read_answer(run, request) if f"{FOLDER}/{name}-answer.json" in names else None)
        except (DamagedFileError, OtherFormatError, FileNotFoundError):
            return None

    return [asked for asked in map_concurrently(run.folder, read, ids) if asked is not None]


class Inbox:
    """The requests to a driver that it has not answered.

    `look` is called in the thread of heartbeats, so that a slow storage delays nothing else; the others in the thread
    that runs the sweep.

    Parameters
    ----------
    run
        A run whose lease this process holds.
    """

    def __init__(self, run: RunStore) -> None:
        self._run = run
        self._pending: dict[str, Request] = {}
        self._seen: set[str] = set()

    def look(self) -> None:
        """Read the requests that are new.

        Raises
        ------
        StorageError, OSError
            A request cannot be read now, or its refusal not be written: the others are read nevertheless, and this one
            at the next look.
        """
        names = self._run.folder.names(FOLDER)
        answered = {found[1] for name in names if (found := _ANSWER.fullmatch(name))}
        asked = [found[1] for name in names if (found := _REQUEST.fullmatch(name))]
        failure: Exception | None = None
        for name in asked:
            if name in answered or name in self._seen:
                continue
            try:
                self._read(name)
            except FileNotFoundError:
                continue
            except (StorageError, OSError) as error:
                failure = failure or error
                continue
            self._seen.add(name)
        if failure is not None:
            raise failure

    def _read(self, name: str) -> None:
        """Read a request, or refuse one that is damaged."""
        try:
            request = read_owned(Request, self._run.folder, f"{FOLDER}/{name}.json", self._run.run_id)
        except UserError as error:
            if isinstance(error, StorageError) and not isinstance(error, DamagedFileError):
                raise  # the storage fails, and the request may be a good one
            self._write(name, False, f"refused: {first_line(error)}")
        else:
            self._pending[name] = request.model_copy(update={"id": name})

    def pending(self) -> list[Request]:
        """Return the requests without an answer, oldest first."""
        return [self._pending[name] for name in sorted(self._pending.copy())]

    def answer(self, request: Request, done: bool, text: str) -> None:
        """Record what has become of a request."""
        self._write(request.id, done, text)
        self._pending.pop(request.id, None)

    def _write(self, name: str, done: bool, text: str) -> None:
        answer = Answer(run=self._run.run_id, id=name, done=done, text=text, answered=time.time())
        write_record(self._run.folder, f"{FOLDER}/{name}-answer.json", answer)
