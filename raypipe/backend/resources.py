"""Number of workers per trial and of trials at a time, from the resources of the cluster."""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from raypipe.core.errors import InterruptedSweepError, UserError
from raypipe.core.gpu_share import PARTS, reserved_gpu_share
from raypipe.core.stop import StopRequest
from raypipe.trial.callback import SweepCallback

if TYPE_CHECKING:
    from raypipe.backend.messages import PretrainLayout
    from raypipe.core.options import SweepOptions

WAIT_SECONDS = 600.0
"""Seconds that a cluster may take to grow: a machine from a cloud takes minutes."""
MIN_UTILISATION = 0.95
"""Fraction of a trial's workers that train, on average, where the number of workers is chosen."""
PROCESS_BYTES = 140 * 10**6
"""Bytes of memory that a trial actor requests, and a group's controller on a cluster (benchmarks/RESULTS.md)."""
COUNT_SECONDS = 1.0
"""Seconds that a count of the cluster's GPUs may take, usually milliseconds."""


class GpuCount:
    """Count the GPUs of the cluster; return the last count where its control store (GCS) does not answer.

    Ray waits for a control store that is away, and Tune's loop, which calls this, would wait with it. Until there is a
    first answer the count is infinite.
    """

    def __init__(self) -> None:
        self._gpus = math.inf
        self._asking: threading.Thread | None = None

    def __call__(self) -> float:
        """Return the number of GPUs."""
        if self._asking is None or not self._asking.is_alive():
            self._asking = threading.Thread(target=self._ask, name="raypipe-gpus", daemon=True)
            self._asking.start()
        self._asking.join(COUNT_SECONDS)
        return self._gpus

    def _ask(self) -> None:
        import ray

        with contextlib.suppress(Exception):  # Ray has no common base class for these
            self._gpus = float(ray.cluster_resources().get("GPU", 0.0))


def max_trials_in_memory(driver: str, driver_bytes: int, processes: int) -> int:
    """Return how many trials at a time fit in the memory of the cluster's machines, at least one.

    Parameters
    ----------
    driver
        Id of the driver's node.
    driver_bytes
        Bytes per trial on that node, beside processes that may run on any.
    processes
        Processes of `PROCESS_BYTES` per trial, on any node. As they are of one size, all fit in whatever order Ray
        places them.
    """
    import ray

    memory = {node["NodeID"]: node["Resources"].get("memory", 0.0) for node in ray.nodes() if node["Alive"]}
    if not any(memory.values()):  # a Ray that counts none
        return sys.maxsize
    places = sum(int(each // PROCESS_BYTES) for each in memory.values())
    limits = [places // processes] if processes else []
    if driver_bytes and memory.get(driver):
        limits.append(int(memory[driver] // driver_bytes))
    return max(1, min(limits, default=sys.maxsize))


def workers_per_trial(n_folds: int, fitting: int) -> int:
    """Return the largest number of workers over which the folds are distributed almost evenly.

    Parameters
    ----------
    n_folds
        Folds of a trial.
    fitting
        Workers that fit in the cluster.
    """
    counts = range(min(n_folds, max(1, fitting)), 0, -1)
    return next(count for count in counts if n_folds / (count * -(-n_folds // count)) >= MIN_UTILISATION)


def worker_resources(cpus: float, gpus: float) -> dict[str, float]:
    """Return what is requested of Ray for a worker, by name."""
    return {"CPU": cpus, **({"GPU": reserved_gpu_share(gpus)} if gpus else {})}


def cluster_nodes() -> list[dict[str, float]]:
    """Return the resources of each node of the cluster that is alive, by name, whether they are free or not."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def count_places(nodes: Iterable[Mapping[str, float]], worker: Mapping[str, float]) -> int:
    """Return how many workers fit on nodes, each of them on one.

    All are of one size, so whichever Ray places first, none takes the place of another. The workers of a trial may be
    on several nodes.

    Parameters
    ----------
    nodes
        Resources of each node, by name.
    worker
        Resources of a worker, by name.
    """
    # As Ray counts them: three times 0.1 is 0.3.
    needs = {name: max(1, round(amount * PARTS)) for name, amount in worker.items() if amount > 0}
    return sum(min(round(node.get(name, 0.0) * PARTS) // need for name, need in needs.items()) for node in nodes)


def divide_resources(options: SweepOptions, n_folds: int, nodes: Sequence[Mapping[str, float]]) -> tuple[int, int]:
    """Return the number of workers per trial and of trials at a time that fit on `nodes`.

    Raises
    ------
    UserError
        Not even one trial fits.
    """
    fitting = count_places(nodes, worker_resources(options.cpus_per_worker, options.gpus_per_worker))
    workers = min(options.workers, n_folds) if options.workers else workers_per_trial(n_folds, fitting)
    if fitting < workers:
        raise UserError(_too_small(options, workers, nodes, fitting))
    trials = fitting // workers
    return workers, min(options.concurrent, trials) if options.concurrent else trials


def require_place(layout: PretrainLayout, callback: SweepCallback) -> None:
    """Check that a worker of pretraining fits on a node; say so where a cluster has to grow for it.

    Raises
    ------
    UserError
        It does not, and this machine does not grow.
    """
    nodes = cluster_nodes()
    if count_places(nodes, worker_resources(layout.cpus_per_worker, layout.gpus_per_worker)):
        return
    reason = _too_small(layout, 1, nodes, 0)
    if not layout.address:
        raise UserError(reason)
    callback.on_waiting(reason)


def _too_small(
    options: SweepOptions | PretrainLayout, workers: int, nodes: Sequence[Mapping[str, float]], fitting: int
) -> str:
    cpus, gpus = (sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU"))
    has = f"{cpus:g} CPU(s) and {gpus:g} GPU(s)"
    if len(nodes) > 1:
        has += f" on {len(nodes)} machines"
    needs = f"{options.cpus_per_worker:g} CPU(s) and {options.gpus_per_worker:g} GPU(s)"
    return (
        f"{workers} worker(s) of {needs} each do not fit: there are {has}, enough for {fitting}; "
        "use fewer --workers, --cpus-per-worker or --gpus-per-worker"
    )


def wait_for_resources(
    options: SweepOptions,
    n_folds: int,
    callback: SweepCallback,
    stop: StopRequest,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[int, int]:
    """Return `divide_resources` of Ray's cluster; request machines and wait for them if it is too small.

    Raises
    ------
    UserError
        Nothing fits; on a cluster, even after `WAIT_SECONDS`.
    InterruptedSweepError
        The sweep was asked to stop.
    """
    from ray.autoscaler.sdk import request_resources

    def try_to_fit() -> tuple[int, int] | UserError:
        try:
            return divide_resources(options, n_folds, cluster_nodes())
        except UserError as error:
            return error

    found = try_to_fit()
    if options.address and not _enough(found, options):
        start = clock()
        callback.on_waiting(_reason(found))
        request_resources(bundles=_bundles(options, n_folds))
        try:
            while not _enough(found, options) and clock() - start <= WAIT_SECONDS:
                if stop.is_set():
                    raise InterruptedSweepError
                sleep(1)
                found = try_to_fit()
        finally:
            request_resources(bundles=[])  # from here on the workers request their own
    if isinstance(found, UserError):
        raise found
    return found


def _enough(found: tuple[int, int] | UserError, options: SweepOptions) -> bool:
    return not isinstance(found, UserError) and found[1] >= (options.concurrent or 1)


def _reason(found: tuple[int, int] | UserError) -> str:
    if isinstance(found, UserError):
        return str(found)
    return f"{found[1]} trial(s) at a time fit; --concurrent {found[1]} starts now"


def _bundles(options: SweepOptions, n_folds: int) -> list[dict[str, float]]:
    """Return the resources of every worker that was asked for."""
    worker = worker_resources(options.cpus_per_worker, options.gpus_per_worker)
    return [worker] * min(options.workers or 1, n_folds) * (options.concurrent or 1)
