"""Act on the requests to a driver: stop a trial, enqueue a point, end the sweep. Each is answered exactly once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from raypipe.core.errors import StorageError, UserError, first_line
from raypipe.core.stop import StopRequest
from raypipe.storage.records import TrialResult
from raypipe.storage.requests import Inbox, Request
from raypipe.storage.run_store import RunStore

STOPPED = "stopped by request"
"""Reason of a trial that was asked to stop."""


class PointQueue(Protocol):
    """Trials of a run, to which points can be added (`raypipe.search.study`)."""

    run: RunStore

    def enqueue_point(self, point: Mapping[str, Any], request: str) -> int:
        """Enqueue a point once; return its trial, or raise `UserError` where it cannot be trained."""


class RequestDesk:
    """Act on the requests of an inbox, and answer them.

    Parameters
    ----------
    inbox
        Requests to this driver.
    queue
        Trials of the run.
    stop
        Is set where the sweep is to end.
    driver
        Lease of this driver.
    """

    def __init__(self, inbox: Inbox, queue: PointQueue, stop: StopRequest, driver: str) -> None:
        self._inbox, self._queue, self._stop, self._driver = inbox, queue, stop, driver
        self._stops: dict[str, Request] = {}

    def act(self, running: int) -> None:
        """Act on new requests; `running` trials are at work."""
        for request in self._inbox.pending():
            if request.id in self._stops:
                continue
            if request.kind == "end":
                self._end(request, running)
            elif request.kind == "enqueue":
                self._enqueue(request)
            else:
                self._stop_trial(request)

    def stops(self, number: int) -> bool:
        """Return whether a trial is to stop after the epoch under way."""
        return any(request.trial == number for request in self._stops.values())

    def settle(self, ended: TrialResult) -> None:
        """Answer the requests to stop a trial that has ended."""
        for request in [one for one in self._stops.values() if one.trial == ended.number]:
            del self._stops[request.id]
            text = f"trial {ended.number} ended: {ended.state}" + (f" ({ended.reason})" if ended.reason else "")
            self._inbox.answer(request, ended.reason == STOPPED, text)

    def _end(self, request: Request, running: int) -> None:
        if request.driver != self._driver:
            self._inbox.answer(request, False, "expired: the driver that was asked to end had ended before")
            return
        self._stop.set()
        self._inbox.answer(request, True, f"the sweep ends: {running} trial(s) finish the epoch under way")

    def _enqueue(self, request: Request) -> None:
        try:
            number = self._queue.enqueue_point(request.point, request.id)
        except StorageError:
            raise
        except UserError as error:
            self._inbox.answer(request, False, f"refused: {first_line(error)}")
            return
        self._inbox.answer(request, True, f"enqueued as trial {number}")

    def _stop_trial(self, request: Request) -> None:
        number, run = request.trial, self._queue.run
        ended = None if number is None else run.result(number)
        if ended is not None:
            text = f"trial {number} had ended: {ended.state}" + (f" ({ended.reason})" if ended.reason else "")
            self._inbox.answer(request, ended.reason == STOPPED, text)
        elif number is None or not run.has_trial(number):
            self._inbox.answer(request, False, f"refused: no trial {number}")
        else:
            self._stops[request.id] = request
