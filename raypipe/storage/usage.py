"""The time and the GPU-hours of a run by the records of its trials, where the record of its drivers is lost."""

from __future__ import annotations

from collections.abc import Iterable

from raypipe.core.gpu_share import reserved_gpu_share
from raypipe.storage.driver_record import Usage
from raypipe.storage.run_store import RunStore


def usage_by_trials(run: RunStore, gpus_per_worker: float) -> Usage:
    """Return the seconds in which some epoch was trained, and the GPU-hours of the workers that trained.

    Idle time is in no record of a trial, so a run has used at least this much.

    Parameters
    ----------
    run
        The run.
    gpus_per_worker
        Share of a GPU that each worker asked for.

    Raises
    ------
    UserError
        A record is damaged.
    """
    spans, busy = [], 0.0
    for number in run.recorded():
        history = run.history(number)
        before = run.started(number) if history else 0.0
        for epoch in history:
            # A driver may have died before an epoch; a worker did not train for longer than the epoch's seconds.
            spans.append((max(before, epoch.finished - epoch.seconds), epoch.finished))
            before, busy = epoch.finished, busy + epoch.seconds
    return Usage(_union(spans), busy * reserved_gpu_share(gpus_per_worker) / 3600)


def _union(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
