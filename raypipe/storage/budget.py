"""Limits on the time and the GPU-hours of a run."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from raypipe.storage.lease import Lease

TIME_USED, GPU_HOURS_USED = "the time budget was used up", "the GPU-hours were used up"
BUDGET_OPTIONS = {TIME_USED: "--time-budget", GPU_HOURS_USED: "--gpu-hours"}
"""What `Budget.used_up` returns, and the option that raises the limit."""
RECOUNT_SECONDS = 10.0
"""Seconds between two counts of the cluster's GPUs."""


class Budget:
    """Count the time and the GPU-hours of a run, and compare them with limits.

    GPUs count from the sweep's request for workers until their release, also while they are idle. At most as many count
    as the cluster has.

    Parameters
    ----------
    lease
        Lease of the run; stores what earlier drivers have used.
    seconds, gpu_hours
        Limits over all drivers; None for no limit.
    """

    def __init__(self, lease: Lease, seconds: float | None, gpu_hours: float | None) -> None:
        self._lease, self._seconds, self._gpu_hours = lease, seconds, gpu_hours
        self._requested = self._held = 0.0
        self._added_at = self._recounted_at = time.monotonic()
        self._count_gpus: Callable[[], float] = lambda: 0.0
        self._lock = threading.Lock()
        lease.before_beat = self._update  # so that a killed driver's use is recorded up to its last heartbeat

    @contextlib.contextmanager
    def holding(self, gpus: float, count_gpus: Callable[[], float]) -> Iterator[None]:
        """Count GPU-hours for the duration of the block.

        Parameters
        ----------
        gpus
            GPUs that the sweep requests.
        count_gpus
            Returns the number of GPUs of the cluster.
        """
        self._requested, self._count_gpus = gpus, count_gpus
        self._hold(min(gpus, count_gpus()) if gpus else 0.0)
        try:
            yield
        finally:
            self._hold(0.0)
            self._requested = 0.0

    def used_up(self) -> str:
        """Return which limit is reached (`TIME_USED`, `GPU_HOURS_USED`), or an empty string."""
        if self._requested and time.monotonic() - self._recounted_at > RECOUNT_SECONDS:
            self._hold(min(self._requested, self._count_gpus()))
        self._update()
        if self._seconds is not None and self._lease.spent > self._seconds:
            return TIME_USED
        if self._gpu_hours is not None and self._lease.gpu_hours > self._gpu_hours:
            return GPU_HOURS_USED
        return ""

    def _hold(self, gpus: float) -> None:
        with self._lock:
            self._add()
            self._held, self._recounted_at = gpus, time.monotonic()

    def _update(self) -> None:
        with self._lock:
            self._add()

    def _add(self) -> None:
        now = time.monotonic()
        self._lease.gpu_hours += self._held * (now - self._added_at) / 3600
        self._added_at = now
