"""Resources of the cluster: how many workers a trial has and how many trials run at a time."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from raypipe.core.errors import UserError
from raypipe.trial.callback import SweepCallback

if TYPE_CHECKING:
    from raypipe.core.options import SweepOptions


WAIT_SECONDS = 600.0
"""Seconds that a cluster without room is waited for: a machine from a cloud takes minutes."""


def max_trials_on_driver(node: str, each: int) -> int:
    """How many trials at a time the driver's machine has the memory for, at least one.

    Parameters
    ----------
    node
        Of the driver.
    each
        Bytes that a trial takes there, whichever machines its workers are on.
    """
    import ray

    memory = next((found["Resources"].get("memory") for found in ray.nodes() if found["NodeID"] == node), None)
    return max(1, int(memory / each)) if each and memory else sys.maxsize


def workers_per_trial(n_folds: int, slots_of_one: int) -> int:
    """Workers a trial: the most among which the folds can be dealt with hardly any idle share.

    Parameters
    ----------
    n_folds
        Folds of a trial.
    slots_of_one
        Workers there is room for.
    """
    sizes = range(min(n_folds, max(1, slots_of_one)), 0, -1)
    return next(w for w in sizes if n_folds / (w * -(-n_folds // w)) >= 0.95)


def divide_resources(options: SweepOptions, n_folds: int, resources: dict[str, float]) -> tuple[int, int]:
    """Workers a trial and trials at a time, from what the cluster has.

    Raises
    ------
    UserError
        Not even one worker group fits.
    """
    room = int(resources.get("CPU", 0) / options.cpus_per_worker)
    if options.gpus_per_worker:
        room = min(room, int(resources.get("GPU", 0) / options.gpus_per_worker))
    wanted = min(options.workers, n_folds) if options.workers else workers_per_trial(n_folds, room)
    if room < wanted:
        has = f"{resources.get('CPU', 0):g} CPU(s) and {resources.get('GPU', 0):g} GPU(s)"
        needs = f"{options.cpus_per_worker:g} CPU(s) and {options.gpus_per_worker:g} GPU(s)"
        raise UserError(
            f"{wanted} worker(s) of {needs} each do not fit: there are {has}; "
            "use fewer --workers, --cpus-per-worker or --gpus-per-worker"
        )
    fits = room // wanted
    return wanted, min(options.concurrent, fits) if options.concurrent else fits


def wait_for_resources(
    options: SweepOptions,
    n_folds: int,
    callback: SweepCallback,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[int, int]:
    """`layout` on this Ray. A cluster that has less room than was asked for is asked for machines, and waited for.

    Raises
    ------
    UserError
        Nothing fits; on a cluster, even after ten minutes.
    """
    import ray
    from ray.autoscaler.sdk import request_resources

    begun: float | None = None
    while True:
        refusal, found = None, None
        try:
            found = divide_resources(options, n_folds, ray.cluster_resources())
        except UserError as error:
            refusal = error
        enough = found is not None and found[1] >= (options.concurrent or 1)
        if not options.address or enough or (begun is not None and clock() - begun > WAIT_SECONDS):
            break
        if begun is None:
            begun = clock()
            some = (
                f"room for {found[1]} trial(s) at a time; --concurrent {found[1]} begins at once" if found else refusal
            )
            callback.on_waiting(str(some))
            one = {"CPU": options.cpus_per_worker, "GPU": options.gpus_per_worker}
            wanted = {name: amount for name, amount in one.items() if amount}
            request_resources(bundles=[wanted] * min(options.workers or 1, n_folds) * (options.concurrent or 1))
        sleep(1)
    if begun is not None:
        request_resources(bundles=[])  # from here on the workers ask for themselves
    if found is None:
        assert refusal is not None
        raise refusal
    return found
