"""Has Ray run what a run's ledger hands out: desk, worker groups, Tune. What executes may die; then it begins again."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from raypipe.backend.cluster import Cluster, on_first_interrupt
from raypipe.backend.resources import max_trials_on_driver, wait_for_resources
from raypipe.core.errors import InterruptedSweepError, LostSweepError, UserError, first_line
from raypipe.data.window_store import WindowStore
from raypipe.storage.run_store import RunStore
from raypipe.trial.callback import Layout, SweepCallback

if TYPE_CHECKING:
    from raypipe.backend.tune import TrialQueue
    from raypipe.core.options import SweepOptions
    from raypipe.storage.budget import Budget

ACTOR_BYTES = 120 * 10**6
"""Bytes that a slot takes, on whichever machine (benchmarks/RESULTS.md)."""

MAX_RESTARTS = 4
"""Times on end that what executes a sweep may die without an epoch in between."""


def supervise(
    run: Callable[[TrialQueue], None],
    ledger: TrialQueue,
    open_ledger: Callable[[], TrialQueue],
    cluster: Cluster,
    callback: SweepCallback,
) -> None:
    """Execute a sweep; again, as another driver would, where what executes it has died.

    Parameters
    ----------
    run
        Has the trials of a ledger run until none is left; `LostSweepError` where it cannot.
    ledger, open_ledger
        The ledger, and what opens it anew: that settles what was left in mid-air.
    cluster
        Started anew in between.
    callback
        Its `on_restart` is called.

    Raises
    ------
    UserError
        It died again and again without an epoch in between.
    """
    lives = MAX_RESTARTS
    while not ledger.exhausted:
        try:
            return run(ledger)
        except LostSweepError as error:
            lives = MAX_RESTARTS if error.progress else lives - 1
            if not lives:
                raise UserError(f"{error}, {MAX_RESTARTS} times on end; the same command goes on from here") from error
            callback.on_restart(str(error))
        cluster.restart()
        ledger = open_ledger()


def execute(
    store: RunStore,
    windows: WindowStore,
    options: SweepOptions,
    storage: Any,
    budget: Budget,
    cluster: Cluster,
    callback: SweepCallback,
    ledger: TrialQueue,
) -> None:
    """Have Ray run what the ledger hands out."""
    cluster.start()
    with contextlib.ExitStack() as stack:
        scratch = options.storage or stack.enter_context(tempfile.TemporaryDirectory(prefix="raypipe-"))
        stack.enter_context(contextlib.redirect_stdout(cluster.noise))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        import ray
        from ray import tune

        from raypipe.backend.heartbeat import Watchdog
        from raypipe.backend.messages import SweepContext
        from raypipe.backend.trainable import TrialTrainable
        from raypipe.backend.tune import RunScheduler, RunSearch, RunStopper
        from raypipe.backend.worker_groups import WorkerGroups

        home = ray.get_runtime_context().get_node_id()
        most = max_trials_on_driver(home, WorkerGroups.FOOTPRINT)
        if options.concurrent and options.concurrent > most:
            callback.on_concurrency_limited(options.concurrent, most)
            options = options.model_copy(update={"concurrent": most})
        workers, concurrent = wait_for_resources(options, store.folds.n_folds, callback)
        if concurrent > most:
            callback.on_concurrency_limited(concurrent, most)
            concurrent = most
        ledger.parallel = concurrent
        there = ray.cluster_resources()
        callback.on_layout(
            Layout(
                workers=workers,
                concurrent=concurrent,
                cpus=options.cpus_per_worker,
                gpus=options.gpus_per_worker,
                total_cpus=there.get("CPU", 0.0),
                total_gpus=there.get("GPU", 0.0),
            )
        )
        gpus = workers * concurrent * options.gpus_per_worker
        stack.enter_context(budget.holding(gpus, lambda: float(ray.cluster_resources().get("GPU", 0.0))))
        desk = open_broker(home, workers, concurrent)
        ends = desk.live.remote()
        crew = SweepContext(
            run=store.where,
            windows=windows.where,
            desk=desk,
            scratch=str(scratch),
            workers=workers,
            cpus=options.cpus_per_worker,
            gpus=options.gpus_per_worker,
            stem=options.stem,
            stack=options.stack,
            grows=bool(options.address),
        )
        lost = lambda seconds: bool(ray.wait([ends], timeout=seconds)[0])  # noqa: E731
        watchdog = Watchdog(desk, tell=callback.on_actor_lost)
        search = RunSearch(ledger, storage, over=budget.used_up, callback=callback, lost=lost, look=watchdog.look)
        try:
            groups = WorkerGroups(crew, concurrent)
            stack.push(lambda kind, *_: groups.close(now=kind is KeyboardInterrupt))
            tuner = tune.Tuner(
                # No CPU: the slot only waits for its workers. By memory they are dealt among the machines.
                tune.with_resources(tune.with_parameters(TrialTrainable, crew=crew), {"CPU": 0, "memory": ACTOR_BYTES}),
                tune_config=tune.TuneConfig(
                    search_alg=search,
                    scheduler=RunScheduler(search),
                    num_samples=-1,
                    max_concurrent_trials=concurrent,
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(
                    name="slots",
                    storage_path=str(scratch),
                    failure_config=tune.FailureConfig(max_failures=3),
                    stop=RunStopper(search),
                    verbose=0,
                ),
            )
            with on_first_interrupt(search.drain):
                tuner.fit()
        except (RuntimeError, tune.TuneError, ray.exceptions.RayError) as error:
            # Of an actor that Ray has killed to save memory, for one, Tune does not take care.
            search.fatal = search.fatal or LostSweepError(f"Ray Tune has died ({first_line(error)})", search.progress)
        if search.fatal and not (search.draining and isinstance(search.fatal, LostSweepError)):
            raise search.fatal
        if search.interrupted:
            raise InterruptedSweepError
        if search.used_up:
            callback.on_budget_used(search.used_up)


def open_broker(node: str, workers: int, concurrent: int) -> Any:
    """The desk of a sweep, on the driver's node: it is lost with that only.

    It must be able to keep every worker and slot waiting, some without an end, and still hear one more.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from raypipe.backend.broker import Broker

    here = NodeAffinitySchedulingStrategy(node, soft=False)
    calls = concurrent * (workers + 1) + 1000
    return ray.remote(num_cpus=0, max_concurrency=calls, scheduling_strategy=here)(Broker).remote()
