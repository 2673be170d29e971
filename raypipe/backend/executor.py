"""Run the trials of a queue on Ray with a broker, worker groups and Tune, and restart them when one of these dies."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from raypipe.backend.cluster import Cluster
from raypipe.backend.process_state import deferred_interrupt, run_in_thread
from raypipe.backend.ray_compat import keys_not_forwarded
from raypipe.backend.resources import PROCESS_BYTES, GpuCount, max_trials_in_memory, wait_for_resources
from raypipe.core.errors import InterruptedSweepError, LostSweepError, UserError, first_line
from raypipe.core.gpu_share import reserved_gpu_share
from raypipe.core.stop import StopRequest
from raypipe.data.window_store import WindowStore
from raypipe.storage.driver_record import Resources
from raypipe.storage.run_store import RunStore
from raypipe.trial.callback import Layout, SweepCallback

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from ray.actor import ActorHandle
    from ray.tune import Tuner

    from raypipe.backend.messages import SweepContext
    from raypipe.backend.trial_queue import TrialQueue
    from raypipe.backend.tune import RunSearch
    from raypipe.backend.worker_groups import WorkerGroups
    from raypipe.core.options import SweepOptions
    from raypipe.storage.budget import Budget
    from raypipe.storage.lease import Lease
    from raypipe.storage.requests import Inbox

BROKER_SPARE_CALLS = 1000
"""Calls that the broker can answer while every worker and every trial actor waits in one."""
MAX_RESTARTS = 4
"""Consecutive restarts of a sweep without an epoch in between, before it stops."""


@dataclass(frozen=True)
class Driver:
    """Everything that a driver needs to execute a sweep."""

    store: RunStore
    windows: WindowStore
    options: SweepOptions
    study_storage: BaseStorage
    """Optuna's storage."""
    lease: Lease
    budget: Budget
    cluster: Cluster
    pool: WorkerPool
    callback: SweepCallback
    stop: StopRequest
    inbox: Inbox
    """Requests from outside."""


def supervise(
    run: Callable[[TrialQueue], None],
    queue: TrialQueue,
    open_queue: Callable[[], TrialQueue],
    restart: Callable[[], None],
    callback: SweepCallback,
) -> None:
    """Run a queue's trials; restart when Tune or the broker has died, as a new driver would.

    Parameters
    ----------
    run
        Runs the trials of a queue until none is left, or raises `LostSweepError`.
    queue, open_queue
        The queue, and a function that opens it again and settles what was left open.
    restart
        Restarts Ray.
    callback
        Its `on_restart` is called.

    Raises
    ------
    UserError
        Tune or the broker has died `MAX_RESTARTS` times without an epoch in between.
    """
    attempts = MAX_RESTARTS
    while not queue.exhausted:
        try:
            return run(queue)
        except LostSweepError as error:
            attempts = MAX_RESTARTS if error.progress else attempts - 1
            if not attempts:
                raise UserError(
                    f"{error}, {MAX_RESTARTS} times without an epoch in between; the same command continues from here"
                ) from error
            callback.on_restart(str(error))
        restart()
        queue = open_queue()


def execute(driver: Driver, queue: TrialQueue) -> None:
    """Run the trials of a queue on Ray until none is left.

    Raises
    ------
    LostSweepError
        Tune, the broker or another part of the sweep has died.
    InterruptedSweepError
        The sweep was asked to stop, and has stopped.
    UserError
        The workers do not fit in the cluster, or the sweep cannot continue.
    """
    driver.cluster.start()
    import ray

    try:
        _execute(driver, queue)
    except ray.exceptions.RayError as error:  # while workers are started, before Tune runs
        raise LostSweepError(f"Ray has lost a part of the sweep ({first_line(error)})", False) from error


def _execute(driver: Driver, queue: TrialQueue) -> None:
    import ray
    from ray import tune

    with contextlib.ExitStack() as stack:
        stack.push(lambda kind, *_: driver.pool.close(now=kind is KeyboardInterrupt) if kind else None)
        layout, context, groups = driver.pool.open(driver)
        queue.parallel = layout.concurrent
        driver.callback.on_layout(layout)
        driver.lease.resources = Resources(**asdict(layout))
        gpus = layout.workers * layout.concurrent * reserved_gpu_share(layout.gpus)
        stack.enter_context(driver.budget.holding(gpus, GpuCount()))
        search = _search(driver, queue, context.broker)
        try:
            tuner = _tuner(search, driver.store, context, layout.concurrent)
            with driver.stop.accepting(), keys_not_forwarded():
                run_in_thread(
                    tuner.fit,
                    interrupt=lambda: _interrupt(driver.cluster, search, groups),
                    left=lambda: _leave_lost_store(driver.cluster, search),
                )
        except (RuntimeError, tune.TuneError, ray.exceptions.RayError) as error:
            # Tune does not handle an actor that Ray has killed to save memory, for example.
            search.fatal = search.fatal or LostSweepError(f"Ray Tune has died ({first_line(error)})", search.progress)
        _raise_end(search)
        if search.budget_used:
            driver.callback.on_budget_used(search.budget_used)


class WorkerPool:
    """Context manager that ends a driver's broker and worker groups, once `open` has started them.

    The parts of an outer cross-validation are searched one after another by the same groups.
    """

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._opened: tuple[Layout, SweepContext, WorkerGroups] | None = None
        self._now = False

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(now=kind is KeyboardInterrupt)

    def open(self, driver: Driver) -> tuple[Layout, SweepContext, WorkerGroups]:
        """Return how many trials run, the settings of their actors, and the groups; start them if they do not run.

        Raises
        ------
        UserError
            The workers do not fit in the cluster.
        """
        if self._opened is None:
            self._opened = self._start(driver)
        return self._opened

    def _start(self, driver: Driver) -> tuple[Layout, SweepContext, WorkerGroups]:
        import ray

        from raypipe.backend.worker_groups import WorkerGroups

        folder = tempfile.TemporaryDirectory(
            prefix="tune-",
            dir=driver.cluster.folder,
            ignore_cleanup_errors=True,  # a thread of Tune that is left waiting may still write to it
        )
        temporary = self._stack.enter_context(folder)
        layout = _fit_layout(driver, WorkerGroups.DRIVER_BYTES, WorkerGroups.PROCESSES)
        broker = start_broker(ray.get_runtime_context().get_node_id(), layout.workers, layout.concurrent)
        self._stack.callback(_kill, broker)
        context = _sweep_context(driver, layout, broker, str(driver.options.storage or temporary))
        with deferred_interrupt():
            groups = WorkerGroups(context, layout.concurrent)
            self._stack.callback(lambda: _close(groups, now=self._now, abandon=driver.cluster.store_away))
        return layout, context, groups

    def close(self, *, now: bool = False) -> None:
        """End the workers and the broker; with `now`, without waiting for the epoch under way."""
        self._opened, self._now = None, now
        self._stack.close()


def _fit_layout(driver: Driver, driver_bytes: int, processes: int) -> Layout:
    """Return how many trials and workers run, once the cluster has the resources."""
    import ray

    options, callback = driver.options, driver.callback
    workers, concurrent = wait_for_resources(options, driver.store.folds.n_folds, callback, driver.stop)
    limit = max_trials_in_memory(ray.get_runtime_context().get_node_id(), driver_bytes, processes)
    if concurrent > limit:
        callback.on_concurrency_limited(concurrent, limit)
        concurrent = limit
    total = ray.cluster_resources()
    return Layout(
        workers=workers,
        concurrent=concurrent,
        cpus=options.cpus_per_worker,
        gpus=options.gpus_per_worker,
        total_cpus=total.get("CPU", 0.0),
        total_gpus=total.get("GPU", 0.0),
    )


def start_broker(node: str, workers: int, concurrent: int) -> ActorHandle:
    """Start a driver's broker on a node, the driver's, so that it is lost with that node only.

    An actor answers a limited number of calls at a time, by default 1000. All workers and trial actors may wait in a
    call, for as long as a trial takes, and the broker must still answer other calls.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from raypipe.backend.broker import Broker

    calls = concurrent * (workers + 1) + BROKER_SPARE_CALLS
    on_node = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0, max_concurrency=calls, scheduling_strategy=on_node)(Broker).remote()


def _close(groups: WorkerGroups, *, now: bool, abandon: bool) -> None:
    with deferred_interrupt():
        groups.close(now=now, abandon=abandon)


def _kill(broker: ActorHandle) -> None:
    import ray

    with deferred_interrupt(), contextlib.suppress(ray.exceptions.RayError):
        ray.kill(broker)


def _leave_lost_store(cluster: Cluster, search: RunSearch) -> bool:
    """Return whether Ray's control store is lost; then make Tune end, and the sweep restart."""
    lost = cluster.store_lost
    if lost:
        search.abandon(LostSweepError("Ray's control store (GCS) is away", search.progress))
    return lost


def _interrupt(cluster: Cluster, search: RunSearch, groups: WorkerGroups) -> None:
    search.fatal = KeyboardInterrupt()
    if cluster.store_away:
        search.abandon(search.fatal)
    groups.close(now=True, abandon=cluster.store_away)


def _sweep_context(driver: Driver, layout: Layout, broker: ActorHandle, scratch: str) -> SweepContext:
    from raypipe.backend.messages import SweepContext

    return SweepContext(
        windows=driver.windows.where,
        broker=broker,
        scratch=scratch,
        workers=layout.workers,
        cpus=layout.cpus,
        gpus=layout.gpus,
        stem=driver.options.stem,
        stack=driver.options.stack,
        autoscaling=bool(driver.options.address),
    )


def _search(driver: Driver, queue: TrialQueue, broker: ActorHandle) -> RunSearch:
    import ray

    from raypipe.backend.heartbeat import Watchdog
    from raypipe.backend.tune import RunSearch
    from raypipe.trial.requests import RequestDesk

    ended = broker.block.remote()
    return RunSearch(
        queue,
        driver.study_storage,
        callback=driver.callback,
        stop=driver.stop,
        lease=driver.lease,
        check_budget=driver.budget.used_up,
        broker_died=lambda seconds: bool(ray.wait([ended], timeout=seconds)[0]),
        actor_not_replaced=Watchdog(broker, driver.callback.on_actor_lost).check,
        desk=RequestDesk(driver.inbox, queue, driver.stop, driver.lease.id),
    )


def _tuner(search: RunSearch, run: RunStore, context: SweepContext, concurrent: int) -> Tuner:
    from ray import tune

    from raypipe.backend.trainable import TrialTrainable
    from raypipe.backend.tune import RunScheduler, RunStopper

    # No CPU: a trial actor only waits for its workers. Its memory distributes the actors over the machines.
    resources = {"CPU": 0, "memory": PROCESS_BYTES}
    return tune.Tuner(
        tune.with_resources(tune.with_parameters(TrialTrainable, context=context, run=run.where), resources),
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=RunScheduler(search),
            num_samples=-1,
            max_concurrent_trials=concurrent,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=f"trials-{run.run_id}",
            storage_path=context.scratch,
            failure_config=tune.FailureConfig(max_failures=3),
            stop=RunStopper(search),
            verbose=0,
            progress_reporter=tune.CLIReporter(),  # in a notebook, Tune's own choice clears the cell's output
        ),
    )


def _raise_end(search: RunSearch) -> None:
    """Raise why a sweep has ended before its trials, if it has."""
    if search.fatal and not (search.stop.is_set() and isinstance(search.fatal, LostSweepError)):
        raise search.fatal
    if search.interrupted:
        raise InterruptedSweepError
