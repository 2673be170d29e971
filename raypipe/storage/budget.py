"""What a run may use in all, and what its drivers have used: time, and hours of GPUs held."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from raypipe.storage.lease import Lease

TIME, GPUS = "the time budget was used up", "the GPU-hours were used up"
MORE = {TIME: "--time-budget", GPUS: "--gpu-hours"}
"""What may be used up, and the option that gives more of it."""
EVERY = 10.0
"""Seconds between two looks at how many GPUs the cluster has."""


class Budget:
    """A run's limits beside its number of trials.

    GPUs count from when a sweep asks for its workers to when it gives them back, trained on or not, as many of those as
    the cluster has.

    Parameters
    ----------
    lease
        Of the run; keeps what has been used from driver to driver.
    seconds, gpu_hours
        What the run may use in all; None: without end.
    """

    def __init__(self, lease: Lease, seconds: float | None, gpu_hours: float | None) -> None:
        self._lease, self._seconds, self._gpu_hours = lease, seconds, gpu_hours
        self._asked = self._held = 0.0
        self._counted = self._known = time.monotonic()
        self._there: Callable[[], float] = lambda: 0.0
        self._lock = threading.Lock()
        lease.before_beat = self._count  # what a kill may take is what was used since

    @contextlib.contextmanager
    def holding(self, gpus: float, there: Callable[[], float]) -> Iterator[None]:
        """While so many GPUs are asked for; `there` says how many the cluster has."""
        self._asked, self._there = gpus, there
        self._hold(min(gpus, there()) if gpus else 0.0)
        try:
            yield
        finally:
            self._hold(0.0)
            self._asked = 0.0

    def _hold(self, gpus: float) -> None:
        with self._lock:
            self._add()
            self._held, self._known = gpus, time.monotonic()

    def _count(self) -> None:
        with self._lock:
            self._add()

    def _add(self) -> None:
        now = time.monotonic()
        self._lease.gpu_hours += self._held * (now - self._counted) / 3600
        self._counted = now

    def over(self) -> str:
        """What has been used up, in words; nothing while the run may go on."""
        if self._asked and time.monotonic() - self._known > EVERY:
            self._hold(min(self._asked, self._there()))
        self._count()
        if self._seconds is not None and self._lease.spent > self._seconds:
            return TIME
        if self._gpu_hours is not None and self._lease.gpu_hours > self._gpu_hours:
            return GPUS
        return ""
