"""What a run may use in all, and what its drivers have used: time, and hours of GPUs held."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from raypipe.lease import Lease

EVERY = 10.0
"""Seconds between two looks at how many GPUs the cluster has."""


class Budget:
    """A run's limits beside its number of trials.

    GPUs count from when workers ask for them to when they are given back, trained on or not, as a cloud's bill does; no
    more of them than the cluster has at the time.

    Parameters
    ----------
    lease
        Of the run; keeps what has been used from driver to driver.
    seconds, gpu_hours
        What the run may use in all; None: without end.
    """

    def __init__(self, lease: Lease, seconds: float | None, gpu_hours: float | None) -> None:
        self._lease, self._seconds, self._gpu_hours = lease, seconds, gpu_hours
        self._asked, self._held, self._looked = 0.0, 0.0, 0.0
        self._there: Callable[[], float] = lambda: 0.0

    @contextlib.contextmanager
    def holding(self, gpus: float, there: Callable[[], float]) -> Iterator[None]:
        """While so many GPUs are asked for; `there` says how many the cluster has."""
        self._asked, self._there = gpus, there
        self._held, self._looked = min(gpus, there()) if gpus else 0.0, time.monotonic()
        try:
            yield
        finally:
            self._count()
            self._asked = self._held = 0.0

    def _count(self) -> None:
        now = time.monotonic()
        self._lease.gpu_hours += self._held * (now - self._looked) / 3600
        self._looked = now

    def over(self) -> str:
        """What has been used up, in words; nothing while the run may go on."""
        if self._asked and time.monotonic() - self._looked > EVERY:
            self._count()
            self._held = min(self._asked, self._there())
        else:
            self._count()
        if self._seconds is not None and self._lease.spent > self._seconds:
            return "the time budget was used up"
        if self._gpu_hours is not None and self._lease.gpu_hours > self._gpu_hours:
            return "the GPU-hours were used up"
        return ""
