"""Run a sweep: search a space on a store of windows, and write trained and scored trials to a run.

The same call starts a run, continues one that was interrupted, and does nothing when all trials have ended.
"""

from __future__ import annotations

import contextlib
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from raypipe.backend.cluster import Cluster
from raypipe.backend.executor import Driver, WorkerPool, execute, supervise
from raypipe.backend.process_state import restored_process_state
from raypipe.core.errors import UserError, disk_full
from raypipe.core.options import SweepOptions, parse_options
from raypipe.core.search_space import SearchSpace, Space, load_space, silence_optuna
from raypipe.core.stop import StopRequest
from raypipe.core.store_names import Data, places_of
from raypipe.data.splits import folds_of, held_out_of
from raypipe.data.window_cache import open_windows
from raypipe.data.window_store import WindowStore
from raypipe.search.example_configs import example_configs
from raypipe.search.own_metrics import find_own_metric, metric_of
from raypipe.search.preflight import foreseen_warnings
from raypipe.search.run_setup import check_unchanged, open_run
from raypipe.search.trackers import TrackingCallback, check_trackers
from raypipe.storage.budget import Budget
from raypipe.storage.driver_record import Usage
from raypipe.storage.files import check_places
from raypipe.storage.lease import DRIVER_FILE, Lease, in_use_error, read_lease
from raypipe.storage.records import OPTIONS_FILE, read_options, write_options
from raypipe.storage.remote import shell_quoted
from raypipe.storage.requests import Inbox
from raypipe.storage.run_store import RunStore
from raypipe.storage.usage import usage_by_trials
from raypipe.trial.callback import CallbackList, RunSnapshot, SweepCallback
from raypipe.trial.evaluator import constant_baseline

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.storages import BaseStorage

    from raypipe.search.study import StudyQueue


class Reruns(NamedTuple):
    """Trials to train again: the best `top`, each on so many new `seeds`."""

    top: int
    seeds: int


@restored_process_state()
def sweep(
    space: Space,
    data: Data,
    run: str | Path,
    *,
    warm_start: str | Path | None = None,
    init: str | Path | None = None,
    callback: SweepCallback | None = None,
    stop: StopRequest | None = None,
    **options: Any,
) -> RunStore:
    """Search a space over subject folds; see `raypipe.api.sweep` for parameters and errors."""
    chosen = find_own_metric(parse_options(options))
    check_places(space if isinstance(space, str | Path) else None, *places_of(data), run, init, chosen.storage)
    check_trackers(chosen.track)
    windows = open_windows(data)
    chosen = chosen.model_copy(update={"held_out": held_out_of(chosen.held_out, windows)})
    metric = metric_of(chosen, windows)
    source, callback = load_space(space, windows.names), callback or SweepCallback()
    for line in foreseen_warnings(source, windows):
        callback.on_warning(line)
    with open_cluster(chosen, callback) as cluster:
        warm = None
        if warm_start is not None and not RunStore.exists(run):
            from raypipe.search.labels import labels_of
            from raypipe.search.warm_start import collect_warm_trials

            warm = collect_warm_trials(
                RunStore.open(warm_start),
                source,
                target=windows.manifest.target,
                metric=metric,
                labels=labels_of(windows),
                folds=folds_of(windows, chosen.folds, chosen.held_out, chosen.seed, chosen.repeats),
                stores=windows.hashes,
            )
            callback.on_warm_start(warm.run, len(warm.trials), warm.finished)
        how: dict[str, Any] = {"before_create": cluster.start, "warn": callback.on_warning}
        store = open_run(source, windows, str(run), chosen, warm=warm, init=init, **how)
        return drive(store, windows, chosen, cluster, callback, stop or StopRequest())


@restored_process_state()
def resume(
    run: str | Path, *, callback: SweepCallback | None = None, stop: StopRequest | None = None, **changes: Any
) -> RunStore:
    """Continue a run with the options of its last driver, some replaced by `changes`; see `raypipe.api.resume`."""
    given = {name: value for name, value in changes.items() if value is not None}
    return _resume(run, given, callback, stop)


@restored_process_state()
def rerun(
    run: str | Path,
    *,
    top: int = 3,
    seeds: int = 5,
    callback: SweepCallback | None = None,
    stop: StopRequest | None = None,
    **changes: Any,
) -> RunStore:
    """Train the best trials of a run again on new seeds; see `raypipe.api.rerun` for parameters and errors."""
    unlimited: dict[str, Any] = {"time_budget": None, "gpu_hours": None}
    given = {name: value for name, value in changes.items() if value is not None}
    return _resume(run, unlimited | given, callback, stop, Reruns(top, seeds))


def _resume(
    run: str | Path,
    changes: dict[str, Any],
    callback: SweepCallback | None,
    stop: StopRequest | None,
    reruns: Reruns | None = None,
) -> RunStore:
    check_places(run)
    store = RunStore.open(run)
    chosen = parse_options(recorded_options(store) | changes)
    check_places(chosen.storage)
    windows = open_windows(store.info.data)
    check_unchanged(store, windows, store.space, chosen)
    callback = callback or SweepCallback()
    with open_cluster(chosen, callback) as cluster:
        return drive(store, windows, chosen, cluster, callback, stop or StopRequest(), reruns=reruns)


def recorded_options(store: RunStore) -> dict[str, Any]:
    """Return the options that a run was last driven with.

    Raises
    ------
    UserError
        There are none, or they are damaged.
    """
    recorded = read_options(store.folder, store.run_id)
    if not recorded:
        last = read_lease(store.folder)
        if last and last.alive:  # its driver has only just started
            raise in_use_error(store.folder, last)
        lost = f" ({OPTIONS_FILE} is lost)" if store.numbers() else ""
        raise UserError(f"{store.where}: no sweep was started in this run{lost}; start one with: raypipe sweep")
    return recorded


def open_cluster(options: SweepOptions, callback: SweepCallback) -> Cluster:
    """Return the Ray of a sweep, which is not started yet."""
    return Cluster(options.address, callback, preload=["raypipe.search.study"])


def drive(
    store: RunStore,
    windows: WindowStore,
    options: SweepOptions,
    cluster: Cluster,
    callback: SweepCallback,
    stop: StopRequest,
    *,
    pool: WorkerPool | None = None,
    reruns: Reruns | None = None,
) -> RunStore:
    """Hold the run's lease and run its trials until none is left.

    Parameters
    ----------
    pool
        Workers that are kept for the next run; None for workers that end with this one.
    reruns
        Trials to train again, in place of new ones.
    """
    from raypipe.search.reconcile import open_study

    try:
        with (
            Lease(
                store.folder,
                callback.on_lease_wait,
                run=store.run_id,
                on_lost=partial(recount_usage, store, options, callback),
            ) as lease,
            cluster.output.saved_to(store.folder),
            silence_optuna(),
            closing(TrackingCallback(store, options.track)) as tracking,
        ):
            callback = CallbackList([tracking, callback])
            storage = open_study(store, callback)
            options = _fix_trials(store, windows, options, storage, callback, reruns)
            write_options(store.folder, options.model_dump(mode="json"), store.run_id)
            with contextlib.nullcontext(pool) if pool else WorkerPool() as workers:
                _run_trials(store, windows, options, storage, lease, cluster, workers, callback, stop)
            store.remove_leftovers()
    except OSError as error:  # Optuna's journal knows neither `DiskFullError` nor `StorageError`
        raise disk_full(error, store.where) or store.gone_error() or error from None
    return store


def recount_usage(store: RunStore, options: SweepOptions, callback: SweepCallback) -> Usage:
    """Return what a run whose record of its drivers is lost has used, by the records of its trials, and report it."""
    if not store.recorded():
        return Usage()
    found = usage_by_trials(store, options.gpus_per_worker)
    callback.on_warning(
        f"{store.where}/{DRIVER_FILE} is missing: counted {found.seconds:.0f} s and {found.gpu_hours:.2f} GPU-hours "
        "from the records of the trials, without idle time; --time-budget and --gpu-hours count from there"
    )
    return found


def _run_trials(
    store: RunStore,
    windows: WindowStore,
    options: SweepOptions,
    storage: BaseStorage,
    lease: Lease,
    cluster: Cluster,
    pool: WorkerPool,
    callback: SweepCallback,
    stop: StopRequest,
) -> None:
    """Open the queue of a run's trials and run them, unless none is left or the budget is used up."""
    from raypipe.search.study import StudyQueue

    pruner = _pruner(store.space, options)

    def open_queue() -> StudyQueue:
        queue = StudyQueue(store, windows, storage, trials=options.trials, pruner=pruner)
        for result in queue.settled:
            callback.on_trial_settled(result)
        return queue

    queue = open_queue()
    callback.on_open(_snapshot(store, windows, options.trials))
    budget = Budget(lease, options.time_budget, options.gpu_hours)
    inbox = Inbox(store)
    inbox.look()
    lease.after_beat = inbox.look
    driver = Driver(store, windows, options, storage, lease, budget, cluster, pool, callback, stop, inbox)
    if not queue.exhausted and (used := budget.used_up()):
        _stop_open(queue, used, callback)
        callback.on_budget_used(used)
    elif not queue.exhausted:
        supervise(partial(execute, driver), queue, open_queue, cluster.restart, callback)
        if used := budget.used_up():  # the actor of a trial may have died since, and none was started
            _stop_open(open_queue(), used, callback)


def _stop_open(queue: StudyQueue, reason: str, callback: SweepCallback) -> None:
    for result in queue.stop_open(reason):
        callback.on_trial_end(result)


def _fix_trials(
    store: RunStore,
    windows: WindowStore,
    options: SweepOptions,
    storage: BaseStorage,
    callback: SweepCallback,
    reruns: Reruns | None,
) -> SweepOptions:
    """Set the number of trials: with all reruns, and not less than the run has."""
    from raypipe.search.study import StudyQueue

    if reruns is not None:
        queue = StudyQueue(store, windows, storage, trials=None)
        left = queue.not_drawn(options.trials)
        total = queue.enqueue_reruns(reruns.top, reruns.seeds)
        if left:
            more = f"raypipe resume {shell_quoted(store.where)} --trials {total + left}{_limits(store)}"
            callback.on_warning(
                f"the search has not drawn {left} of its {options.trials} trials, and rerun draws none; "
                f"continue it after the reruns with: {more}"
            )
        return options.model_copy(update={"trials": total})
    existing = len(store.recorded())
    if options.trials >= existing:
        return options
    callback.on_trials_kept(options.trials, existing)
    return options.model_copy(update={"trials": existing})


def _limits(store: RunStore) -> str:
    """Return the flags of the limits that a run was last driven with."""
    recorded = recorded_options(store)
    found = {name: recorded.get(name) for name in ("time_budget", "gpu_hours")}
    return "".join(f" --{name.replace('_', '-')} {value:g}" for name, value in found.items() if value)


def _pruner(space: SearchSpace, options: SweepOptions) -> BasePruner | None:
    from raypipe.search.pruner import SuccessiveHalving

    if not options.prune:
        return None
    grace = options.grace or max(1, round(_longest_trial(space) / options.reduction**2))
    return SuccessiveHalving(grace, options.reduction)


def _longest_trial(space: SearchSpace) -> int:
    """Return the passes over the data of the longest of some drawn trials, below which the rungs are set."""
    return int(max(config.epochs * config.passes for config in example_configs(space)))


def _snapshot(store: RunStore, windows: WindowStore, trials: int) -> RunSnapshot:
    """Return the state of a run before this driver."""
    results = store.results()
    ranked = store.ranked(results)
    return RunSnapshot(
        where=store.where,
        metric=store.info.metric,
        direction=store.info.direction,
        baseline=constant_baseline(store, windows),
        trials=trials,
        results=results,
        best=ranked[0] if ranked else None,
    )
