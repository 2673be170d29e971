"""A sweep: a search space, a store of windows and a run folder go in; trained, scored trials come out.

The same call begins a run, goes on with one that was killed, and does nothing when all is done.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raypipe.backend.cluster import Cluster
from raypipe.backend.executor import execute, supervise
from raypipe.core.errors import UserError, disk_full
from raypipe.core.options import SweepOptions, parse_options
from raypipe.core.search_space import SearchSpace, load_space, silence_optuna
from raypipe.core.versions import package_versions
from raypipe.data.splits import folds_of, held_out_of
from raypipe.data.window_cache import open_windows
from raypipe.data.window_store import WindowStore
from raypipe.search.initial_encoder import copy_encoder, needs_encoder
from raypipe.search.trackers import TrackingCallback, require
from raypipe.storage.budget import Budget
from raypipe.storage.files import read_json, write_json
from raypipe.storage.lease import Lease, in_use_error, read_lease
from raypipe.storage.records import OPTIONS_FILE, RunInfo
from raypipe.storage.run_store import RunStore
from raypipe.trial.callback import CallbackList, RunSnapshot, SweepCallback
from raypipe.trial.evaluator import constant_baseline

if TYPE_CHECKING:
    from raypipe.search.warm_start import WarmStart


def sweep(
    space: str | Path,
    data: str | Path,
    run: str | Path,
    *,
    warm_start: str | Path | None = None,
    init: str | Path | None = None,
    callback: SweepCallback | None = None,
    **options: Any,
) -> RunStore:
    """Search `space` on the windows of `data`, in the run folder `run`.

    Parameters
    ----------
    space
        A ``search_spaces/<name>.py``.
    data
        A store made by `prepare`.
    run
        Folder or pyarrow.fs URI. Where a run lies there already, it is continued; `space`, `data` and the fold map
        must be the ones it was made with.
    warm_start
        A run of the same task and metric, in whatever search space: a new run's sampler begins with what its trials
        have shown (see `raypipe.search.warm_start`). Where `run` lies there already, it is not looked at.
    init
        A pretrained run, or an encoder exported from one, that configurations with ``init/name=pretrained`` start from.
        It is copied into a new run; where `run` lies there already, it is not looked at.
    callback
        Called at every event.
    **options
        See `SweepOptions`.

    Returns
    -------
    RunStore
        The run, usable without Ray.

    Raises
    ------
    UserError
        Bad input; see the message.
    """
    chosen = parse_options(options)
    require(chosen.track)
    windows = open_windows(data)
    chosen = chosen.model_copy(update={"held_out": held_out_of(chosen.held_out, windows.releases)})
    source = load_space(space)
    callback = callback or SweepCallback()
    with Cluster(chosen.address, callback, preload=["raypipe.search.study"]) as cluster:
        warm = None
        if warm_start is not None and not RunStore.exists(run):
            warm = _warm(warm_start, source, windows, callback)
        store = _open(source, windows, str(run), chosen, warm, init, begin=cluster.start)
        return _drive(store, windows, chosen, cluster, callback)


def resume(run: str | Path, *, callback: SweepCallback | None = None, **changes: Any) -> RunStore:
    """Go on with a run as it was last driven; `changes` replace options (more trials, another address)."""
    return _resume(run, callback, {name: value for name, value in changes.items() if value is not None})


def _resume(
    run: str | Path,
    callback: SweepCallback | None,
    changes: dict[str, Any],
    again: tuple[int, int] | None = None,
) -> RunStore:
    store = RunStore.open(run)
    if not store.folder.exists(OPTIONS_FILE):
        last = read_lease(store.folder)
        if last and last.alive:  # its driver has only just begun
            raise in_use_error(store.folder, last)
        raise UserError(f"{run}: the run was never driven; start it with: raypipe sweep")
    chosen = parse_options({**read_json(store.folder, OPTIONS_FILE), **changes})
    windows = open_windows(store.info.data)
    _same(store, windows, store.space, chosen)
    callback = callback or SweepCallback()
    with Cluster(chosen.address, callback, preload=["raypipe.search.study"]) as cluster:
        return _drive(store, windows, chosen, cluster, callback, again)


def rerun(
    run: str | Path, *, top: int = 3, seeds: int = 5, callback: SweepCallback | None = None, **changes: Any
) -> RunStore:
    """Train a run's best trials again on new seeds, as trials of the same run on the same folds.

    The same call after a crash, and `resume`, go on with what is missing. Time budget and GPU-hours of the run are
    lifted, unless `changes` give some.

    Parameters
    ----------
    run
        The run.
    top
        How many of its best trials; reruns are never rerun.
    seeds
        How many new seeds for each.
    callback, **changes
        As for `resume`.

    Raises
    ------
    UserError
        No trial is complete, or the run was never driven.
    """
    lifted: dict[str, Any] = {"time_budget": None, "gpu_hours": None}
    return _resume(run, callback, lifted | {k: v for k, v in changes.items() if v is not None}, (top, seeds))


def _warm(where: str | Path, space: SearchSpace, windows: WindowStore, callback: SweepCallback) -> WarmStart:
    from raypipe.search.warm_start import warm_start

    warm = warm_start(RunStore.open(where), space, task=windows.manifest.task, metric=windows.metric)
    callback.on_warm_start(warm.run, len(warm.trials), warm.finished)
    return warm


def _open(
    space: SearchSpace,
    windows: WindowStore,
    where: str,
    options: SweepOptions,
    warm: WarmStart | None = None,
    init: str | Path | None = None,
    begin: Callable[[], None] = lambda: None,
) -> RunStore:
    """The run, made where there is none; `begin` is called once nothing that is known keeps it from being made.

    A run that is there may have nothing left to do: for it nothing is begun.
    """
    if RunStore.exists(where):
        store = RunStore.open(where)
        _same(store, windows, space, options)
        return store
    if init is None and needs_encoder(space):
        raise UserError(f"{space.name}: it has trials with init/name=pretrained; give a pretrained run with --init RUN")
    folds = folds_of(windows, options.folds, options.held_out, options.seed)
    RunStore.check_new(where)
    begin()
    begun = copy_encoder(init, where, folds, space) if init is not None else None
    info = RunInfo(
        created=time.time(),
        data=windows.where,
        data_hash=windows.data_hash,
        task=windows.manifest.task,
        kind=windows.kind,
        metric=windows.metric,
        direction="minimize" if windows.kind == "regression" else "maximize",
        classes=windows.classes,
        seed=options.seed,
        space=space.name,
        space_hash=space.hash,
        folds_hash="",
        versions=package_versions(),
        warm=warm.model_dump(mode="json") if warm else None,
        init=begun,
    )
    return RunStore.create(where, info, folds, space)


def _same(store: RunStore, windows: WindowStore, space: SearchSpace, options: SweepOptions) -> None:
    """Check that a run is continued with what it was made from."""
    if windows.data_hash != store.info.data_hash:
        raise UserError(
            f"{store.where}: the run was made from other data ({store.info.data}, hash {store.info.data_hash[:12]}; "
            f"{windows.where} has {windows.data_hash[:12]}); name a new run folder"
        )
    if space.hash != store.info.space_hash:
        raise UserError(
            f"{store.where}: the run was made with another search space (a copy is its space.py); name a new run folder"
        )
    if options.folds != store.folds.n_folds:
        raise UserError(f"{store.where}: the run has {store.folds.n_folds} folds, not {options.folds}; they are frozen")
    before = read_json(store.folder, OPTIONS_FILE) if store.folder.exists(OPTIONS_FILE) else {}
    if before and SweepOptions.model_validate(before).held_out != options.held_out:
        raise UserError(f"{store.where}: the run holds out {before['held_out']}, not {options.held_out}; frozen")
    if options.seed != store.info.seed:
        raise UserError(f"{store.where}: the run has seed {store.info.seed}, not {options.seed}; it is frozen")


def _drive(
    store: RunStore,
    windows: WindowStore,
    options: SweepOptions,
    cluster: Cluster,
    callback: SweepCallback,
    again: tuple[int, int] | None = None,
) -> RunStore:
    from raypipe.search.pruner import SuccessiveHalving
    from raypipe.search.study import StudyQueue
    from raypipe.storage.journal import open_journal

    try:
        with (
            Lease(store.folder) as lease,
            cluster.noise.kept(store.folder),
            silence_optuna(),
            closing(TrackingCallback(store, options.track)) as tracking,
        ):
            callback = CallbackList([tracking, callback])
            storage = open_journal(store)
            if again is not None:
                total = StudyQueue(store, windows, storage, trials=None).ask_again(*again)
                options = options.model_copy(update={"trials": total})
            elif options.trials < (there := len(store.listing())):
                callback.on_trials_kept(options.trials, there)
                options = options.model_copy(update={"trials": there})
            write_json(store.folder, OPTIONS_FILE, options.model_dump(mode="json"))
            grace = options.grace or max(1, round(_longest_trial(store.space) / options.reduction**2))
            pruner = SuccessiveHalving(grace, options.reduction) if options.prune else None

            def open_ledger() -> StudyQueue:
                ledger = StudyQueue(store, windows, storage, trials=options.trials, pruner=pruner)
                for result in ledger.settled:
                    callback.on_trial_settled(result)
                return ledger

            ledger = open_ledger()
            callback.on_open(_snapshot(store, windows, options.trials))
            if not ledger.exhausted:
                budget = Budget(lease, options.time_budget, options.gpu_hours)
                if reason := budget.used_up():
                    callback.on_budget_used(reason)
                else:
                    run = functools.partial(execute, store, windows, options, storage, budget, cluster, callback)
                    supervise(run, ledger, open_ledger, cluster, callback)
            store.remove_leftovers()
    except OSError as error:  # Optuna's journal does not know of `DiskFullError`
        raise disk_full(error, store.where) or error from None
    return store


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


def _longest_trial(space: SearchSpace) -> int:
    """Passes of the longest of some drawn trials: successive halving's rungs are set below it."""
    import optuna

    drawn = space.draw(20) + [space(optuna.trial.FixedTrial(point)) for point in space.start]
    return int(max(config.epochs * config.passes for config in drawn))
