"""Has Ray run what a run's ledger hands out: desk, worker groups, Tune. What executes may die; then it begins again."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from raypipe.errors import InterruptedSweepError, LostSweepError, UserError, first_line
from raypipe.launch import Cluster, on_first_interrupt
from raypipe.store import RunStore
from raypipe.windows import WindowStore

if TYPE_CHECKING:
    from raypipe.budget import Budget
    from raypipe.driver import Options
    from raypipe.study import Ledger

Watch = Callable[[str, dict[str, Any]], None]

PATIENCE = 600.0
"""Seconds that a cluster without room is waited for: a machine from a cloud takes minutes."""

SLOT = 120 * 10**6
"""Bytes that a slot takes, on whichever machine (benchmarks/RESULTS.md)."""

LIVES = 4
"""Times on end that what executes a sweep may die without an epoch in between."""


def supervise(
    run: Callable[[Ledger], None], ledger: Ledger, open_ledger: Callable[[], Ledger], cluster: Cluster, watch: Watch
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
    watch
        Told of it.

    Raises
    ------
    UserError
        It died again and again without an epoch in between.
    """
    lives = LIVES
    while not ledger.exhausted:
        try:
            return run(ledger)
        except LostSweepError as error:
            lives = LIVES if error.progress else lives - 1
            if not lives:
                raise UserError(f"{error}, {LIVES} times on end; the same command goes on from here") from error
            watch("again", {"reason": str(error)})
        cluster.restart()
        ledger = open_ledger()


def execute(
    store: RunStore,
    windows: WindowStore,
    options: Options,
    storage: Any,
    budget: Budget,
    cluster: Cluster,
    watch: Watch,
    ledger: Ledger,
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

        from raypipe.groups import Groups
        from raypipe.messages import Crew
        from raypipe.pulse import Watchdog
        from raypipe.search import RunScheduler, RunSearch, RunStopper
        from raypipe.slot import Slot

        home = ray.get_runtime_context().get_node_id()
        most = beside_the_driver(home, Groups.FOOTPRINT)
        if options.concurrent and options.concurrent > most:
            watch("crowded", {"asked": options.concurrent, "most": most})
            options = options.model_copy(update={"concurrent": most})
        workers, concurrent = room(options, store.folds.n_folds, watch)
        if concurrent > most:
            watch("crowded", {"asked": concurrent, "most": most})
            concurrent = most
        ledger.parallel = concurrent
        there, each = ray.cluster_resources(), {"cpus": options.cpus_per_worker, "gpus": options.gpus_per_worker}
        all_of = {"cores": there.get("CPU", 0.0), "GPUs": there.get("GPU", 0.0)}
        watch("layout", {"workers": workers, "concurrent": concurrent} | each | all_of)
        gpus = workers * concurrent * options.gpus_per_worker
        stack.enter_context(budget.holding(gpus, lambda: float(ray.cluster_resources().get("GPU", 0.0))))
        desk = open_desk(home, workers, concurrent)
        ends = desk.live.remote()
        crew = Crew(
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
        watchdog = Watchdog(desk, tell=lambda: watch("silent", {}))
        search = RunSearch(ledger, storage, over=budget.over, watch=watch, lost=lost, look=watchdog.look)
        try:
            groups = Groups(crew, concurrent)
            stack.push(lambda kind, *_: groups.close(now=kind is KeyboardInterrupt))
            tuner = tune.Tuner(
                # No CPU: the slot only waits for its workers. By memory they are dealt among the machines.
                tune.with_resources(tune.with_parameters(Slot, crew=crew), {"CPU": 0, "memory": SLOT}),
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
            watch("late", {"reason": search.used_up})


def open_desk(node: str, workers: int, concurrent: int) -> Any:
    """The desk of a sweep, on the driver's node: it is lost with that only.

    It must be able to keep every worker and slot waiting, some without an end, and still hear one more.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from raypipe.desk import Desk

    here = NodeAffinitySchedulingStrategy(node, soft=False)
    calls = concurrent * (workers + 1) + 1000
    return ray.remote(num_cpus=0, max_concurrency=calls, scheduling_strategy=here)(Desk).remote()


def beside_the_driver(node: str, each: int) -> int:
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


def room(
    options: Options,
    n_folds: int,
    watch: Watch,
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
            found = layout(options, n_folds, ray.cluster_resources())
        except UserError as error:
            refusal = error
        enough = found is not None and found[1] >= (options.concurrent or 1)
        if not options.address or enough or (begun is not None and clock() - begun > PATIENCE):
            break
        if begun is None:
            begun = clock()
            some = (
                f"room for {found[1]} trial(s) at a time; --concurrent {found[1]} begins at once" if found else refusal
            )
            watch("wait", {"reason": str(some)})
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


def layout(options: Options, n_folds: int, resources: dict[str, float]) -> tuple[int, int]:
    """Workers a trial and trials at a time, from what the cluster has.

    Raises
    ------
    UserError
        Not even one worker group fits.
    """
    room = int(resources.get("CPU", 0) / options.cpus_per_worker)
    if options.gpus_per_worker:
        room = min(room, int(resources.get("GPU", 0) / options.gpus_per_worker))
    wanted = min(options.workers, n_folds) if options.workers else crew_size(n_folds, room)
    if room < wanted:
        has = f"{resources.get('CPU', 0):g} CPU(s) and {resources.get('GPU', 0):g} GPU(s)"
        needs = f"{options.cpus_per_worker:g} CPU(s) and {options.gpus_per_worker:g} GPU(s)"
        raise UserError(
            f"{wanted} worker(s) of {needs} each do not fit: there are {has}; "
            "use fewer --workers, --cpus-per-worker or --gpus-per-worker"
        )
    fits = room // wanted
    return wanted, min(options.concurrent, fits) if options.concurrent else fits


def crew_size(n_folds: int, slots_of_one: int) -> int:
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
