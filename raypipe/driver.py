"""A sweep: a search space, a store of windows and a run folder go in; trained, scored trials come out.

The same call begins a run, goes on with one that was killed, and does nothing when all is done.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raypipe.budget import Budget
from raypipe.cache import open_windows
from raypipe.errors import UserError, disk_full
from raypipe.execution import execute, supervise
from raypipe.files import read_json, write_json
from raypipe.folds import folds_of
from raypipe.hbn import held_out_of
from raypipe.initial import needs_encoder, take_in
from raypipe.launch import Cluster
from raypipe.lease import Lease, current, taken
from raypipe.records import OPTIONS
from raypipe.referee import without_eeg
from raypipe.results import Run
from raypipe.space import SearchSpace, load_space, quiet_optuna
from raypipe.store import RunInfo, RunStore, versions
from raypipe.trackers import Tracked, require
from raypipe.windows import WindowStore

if TYPE_CHECKING:
    from raypipe.warm import WarmStart


Watch = Callable[[str, dict[str, Any]], None]


class Options(BaseModel):
    """How a run is driven. The seed, the folds and the held-out subjects are fixed when it is made."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    trials: int = Field(20, ge=1)
    """Trials the run is to have in all."""
    folds: int = 5
    held_out: float | list[str] | Literal["auto"] = "auto"
    """Share of subjects, or names of subjects and releases of HBN-EEG. auto: the challenge's warm-up release R5 where
    the store holds it among others, else a fifth."""
    seed: int = Field(0, ge=0)
    workers: int | None = Field(None, ge=1)
    """Train workers a trial; its folds are dealt among them. None: as many as keep the cores busy."""
    cpus_per_worker: float = Field(1, gt=0)
    gpus_per_worker: float = Field(0, ge=0)
    concurrent: int | None = Field(None, ge=1)
    """Trials at a time. None: as many as there is room for."""
    time_budget: float | None = Field(None, gt=0)
    """Seconds the run may be driven for in all; trials in flight then end with what they have."""
    gpu_hours: float | None = Field(None, gt=0)
    """The same for hours of GPUs that its workers hold."""
    grace: int | None = Field(None, ge=1)
    """Passes over the training windows before successive halving may stop a trial. None: a ninth of the longest."""
    reduction: int = Field(3, ge=2)
    """Successive halving keeps the best 1/reduction at each rung."""
    prune: bool = True
    """Whether successive halving stops trials at all."""
    stem: Literal["auto", "fourier", "direct"] = "auto"
    """How the Conformer's stem is computed. auto: the quicker, as measured at the start and recorded."""
    stack: Literal["auto", "on", "off"] = "auto"
    """Whether a worker trains its folds as one program. auto: as measured at the start and recorded."""
    track: list[str] = ["tensorboard"]
    """Who is told of trials' curves (`raypipe.trackers`); none: an empty list."""
    address: str | None = None
    """A running Ray cluster; None starts Ray on this machine."""
    storage: str | None = None
    """Folder or URI that all nodes reach, for Ray's own scratch files."""


def sweep(
    space: str | Path,
    data: str | Path,
    run: str | Path,
    *,
    warm_start: str | Path | None = None,
    init: str | Path | None = None,
    watch: Watch = lambda kind, news: None,
    **options: Any,
) -> Run:
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
        have shown (see `raypipe.warm`). Where `run` lies there already, it is not looked at.
    init
        A pretrained run, or an encoder exported from one, that configurations with ``init/name=pretrained`` start from.
        It is copied into a new run; where `run` lies there already, it is not looked at.
    watch
        Told of every event.
    **options
        See `Options`.

    Returns
    -------
    Run
        Its trials, out-of-fold predictions and ensemble, usable without Ray.

    Raises
    ------
    UserError
        Bad input; see the message.
    """
    chosen = options_of(options)
    require(chosen.track)
    windows = open_windows(data)
    chosen = chosen.model_copy(update={"held_out": held_out_of(chosen.held_out, windows.releases)})
    source = load_space(space)
    with Cluster(chosen.address, watch) as cluster:
        warm = None
        if warm_start is not None and not RunStore.exists(run):
            warm = _warm(warm_start, source, windows, watch)
        store = _open(source, windows, str(run), chosen, warm, init, begin=cluster.start)
        return _drive(store, windows, chosen, cluster, watch)


def resume(run: str | Path, *, watch: Watch = lambda kind, news: None, **changes: Any) -> Run:
    """Go on with a run as it was last driven; `changes` replace options (more trials, another address)."""
    return _resume(run, watch, {name: value for name, value in changes.items() if value is not None})


def _resume(run: str | Path, watch: Watch, changes: dict[str, Any], again: tuple[int, int] | None = None) -> Run:
    store = RunStore.open(run)
    if not store.folder.exists(OPTIONS):
        last = current(store.folder)
        if last and last["alive"]:  # its driver has only just begun
            raise taken(store.folder, last)
        raise UserError(f"{run}: the run was never driven; start it with: raypipe sweep")
    chosen = options_of({**read_json(store.folder, OPTIONS), **changes})
    windows = open_windows(store.info.data)
    _same(store, windows, store.space, chosen)
    with Cluster(chosen.address, watch) as cluster:
        return _drive(store, windows, chosen, cluster, watch, again)


def rerun(
    run: str | Path, *, top: int = 3, seeds: int = 5, watch: Watch = lambda kind, news: None, **changes: Any
) -> Run:
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
    watch, **changes
        As for `resume`.

    Raises
    ------
    UserError
        No trial is complete, or the run was never driven.
    """
    lifted: dict[str, Any] = {"time_budget": None, "gpu_hours": None}
    return _resume(run, watch, lifted | {k: v for k, v in changes.items() if v is not None}, (top, seeds))


def options_of(given: dict[str, Any]) -> Options:
    """Options, or one line on what is wrong with them."""
    try:
        options = Options.model_validate(given)
    except ValidationError as error:
        problem = error.errors()[0]
        name = "--" + "-".join(str(part) for part in problem["loc"]).replace("_", "-")
        raise UserError(f"{name}: {problem['msg']} (given {problem['input']!r})") from None
    if options.gpu_hours is not None and not options.gpus_per_worker:
        raise UserError("--gpu-hours: the sweep uses no GPU, so they would never end; say --gpus-per-worker too")
    return options


def _warm(where: str | Path, space: SearchSpace, windows: WindowStore, watch: Watch) -> WarmStart:
    from raypipe.warm import warm_start

    warm = warm_start(RunStore.open(where), space, task=windows.manifest.task, metric=windows.metric)
    watch("warm", {"run": warm.run, "trials": len(warm.trials), "finished": warm.finished})
    return warm


def _open(
    space: SearchSpace,
    windows: WindowStore,
    where: str,
    options: Options,
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
    RunStore.require_room(where)
    begin()
    begun = take_in(init, where, folds, space) if init is not None else None
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
        versions=versions(),
        warm=warm.model_dump(mode="json") if warm else None,
        init=begun,
    )
    return RunStore.create(where, info, folds, space)


def _same(store: RunStore, windows: WindowStore, space: SearchSpace, options: Options) -> None:
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
    before = read_json(store.folder, OPTIONS) if store.folder.exists(OPTIONS) else {}
    if before and Options.model_validate(before).held_out != options.held_out:
        raise UserError(f"{store.where}: the run holds out {before['held_out']}, not {options.held_out}; frozen")
    if options.seed != store.info.seed:
        raise UserError(f"{store.where}: the run has seed {store.info.seed}, not {options.seed}; it is frozen")


def _drive(
    store: RunStore,
    windows: WindowStore,
    options: Options,
    cluster: Cluster,
    watch: Watch,
    again: tuple[int, int] | None = None,
) -> Run:
    from raypipe.journal import open_journal
    from raypipe.study import Halving, Ledger

    try:
        with (
            Lease(store.folder) as lease,
            cluster.noise.kept(store.folder),
            quiet_optuna(),
            closing(Tracked(store, options.track, watch)) as watch,
        ):
            storage = open_journal(store)
            if again is not None:
                total = Ledger(store, windows, storage, trials=None).ask_again(*again)
                options = options.model_copy(update={"trials": total})
            elif options.trials < (there := len(store.listing())):
                watch("fewer", {"asked": options.trials, "there": there})
                options = options.model_copy(update={"trials": there})
            write_json(store.folder, OPTIONS, options.model_dump(mode="json"))
            grace = options.grace or max(1, round(_longest_trial(store.space) / options.reduction**2))
            pruner = Halving(grace, options.reduction) if options.prune else None

            def open_ledger() -> Ledger:
                ledger = Ledger(store, windows, storage, trials=options.trials, pruner=pruner)
                for result in ledger.settled:
                    watch("settled", {"number": result.number, "result": result})
                return ledger

            ledger = open_ledger()
            watch("open", _news(store, windows) | {"trials": options.trials})
            if not ledger.exhausted:
                budget = Budget(lease, options.time_budget, options.gpu_hours)
                if reason := budget.over():
                    watch("late", {"reason": reason})
                else:
                    run = functools.partial(execute, store, windows, options, storage, budget, cluster, watch)
                    supervise(run, ledger, open_ledger, cluster, watch)
            store.tidy()
    except OSError as error:  # Optuna's journal does not know of `DiskFullError`
        raise disk_full(error, store.where) or error from None
    return Run(store)


def _news(store: RunStore, windows: WindowStore) -> dict[str, Any]:
    """What a run has come to before this driver."""
    results = store.results()
    ranked = store.ranked(results)
    return {
        "where": store.where,
        "metric": store.info.metric,
        "direction": store.info.direction,
        "baseline": without_eeg(store, windows),
        "states": [result.state for result in results],
        "failures": [result.failure or "error" for result in results if result.state == "failed"],
        "best": (ranked[0].score, ranked[0].number) if ranked else None,
    }


def _longest_trial(space: SearchSpace) -> int:
    """Passes of the longest of some drawn trials: successive halving's rungs are set below it."""
    import optuna

    drawn = space.draw(20) + [space(optuna.trial.FixedTrial(point)) for point in space.start]
    return int(max(config.epochs * config.passes for config in drawn))
