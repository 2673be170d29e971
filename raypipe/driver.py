"""A sweep: a search space, a store of windows and a run folder go in; trained, scored trials come out.

The same call begins a run, goes on with one that was killed, and does nothing when all is done.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raypipe.errors import InterruptedSweepError, UserError, disk_full
from raypipe.files import read_json, write_json
from raypipe.folds import make_folds
from raypipe.launch import Cluster
from raypipe.lease import Lease
from raypipe.results import Run
from raypipe.space import SearchSpace, load_space, quiet_optuna
from raypipe.store import RunInfo, RunStore, versions
from raypipe.windows import WindowStore

OPTIONS = "options.json"

Watch = Callable[[str, dict[str, Any]], None]


class Options(BaseModel):
    """How a run is driven. The seed, the folds and the held-out subjects are fixed when it is made."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    trials: int = Field(20, ge=1)
    """Trials the run is to have in all."""
    folds: int = 5
    held_out: float | list[str] = 0.2
    seed: int = Field(0, ge=0)
    workers: int | None = Field(None, ge=1)
    """Train workers a trial; its folds are dealt among them. None: as many as keep the cores busy."""
    cpus_per_worker: float = Field(1, gt=0)
    gpus_per_worker: float = Field(0, ge=0)
    concurrent: int | None = Field(None, ge=1)
    """Trials at a time. None: as many as there is room for."""
    time_budget: float | None = Field(None, gt=0)
    """Seconds the run may be driven for in all; trials in flight then end with what they have."""
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
    address: str | None = None
    """A running Ray cluster; None starts Ray on this machine."""
    storage: str | None = None
    """Folder or URI that all nodes reach, for Ray's own scratch files."""


def sweep(
    space: str | Path, data: str | Path, run: str | Path, *, watch: Watch = lambda kind, news: None, **options: Any
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
    chosen = _options(options)
    windows = WindowStore(data)
    source = load_space(space)
    with Cluster(chosen.address, watch) as cluster:
        if not RunStore.exists(run):  # one that is there may have nothing left to do
            cluster.start()
        return _drive(_open(source, windows, str(run), chosen), windows, chosen, cluster, watch)


def resume(run: str | Path, *, watch: Watch = lambda kind, news: None, **changes: Any) -> Run:
    """Go on with a run as it was last driven; `changes` replace options (more trials, another address)."""
    store = RunStore.open(run)
    if not store.folder.exists(OPTIONS):
        raise UserError(f"{run}: the run was never driven; start it with: raypipe sweep")
    chosen = _options({**read_json(store.folder, OPTIONS), **{k: v for k, v in changes.items() if v is not None}})
    windows = WindowStore(store.info.data)
    _same(store, windows, store.space, chosen)
    with Cluster(chosen.address, watch) as cluster:
        return _drive(store, windows, chosen, cluster, watch)


def _options(given: dict[str, Any]) -> Options:
    try:
        return Options.model_validate(given)
    except ValidationError as error:
        problem = error.errors()[0]
        name = "--" + "-".join(str(part) for part in problem["loc"]).replace("_", "-")
        raise UserError(f"{name}: {problem['msg']} (given {problem['input']!r})") from None


def _open(space: SearchSpace, windows: WindowStore, where: str, options: Options) -> RunStore:
    if RunStore.exists(where):
        store = RunStore.open(where)
        _same(store, windows, space, options)
        return store
    folds = make_folds(
        windows.subjects,
        windows.targets,
        classes=bool(windows.classes),
        n_folds=options.folds,
        held_out=options.held_out,
        seed=options.seed,
    )
    info = RunInfo(
        created=time.time(),
        data=str(windows.path),
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
    )
    return RunStore.create(where, info, folds, space)


def _same(store: RunStore, windows: WindowStore, space: SearchSpace, options: Options) -> None:
    """Check that a run is continued with what it was made from."""
    if windows.data_hash != store.info.data_hash:
        raise UserError(
            f"{store.where}: the run was made from other data ({store.info.data}, hash {store.info.data_hash[:12]}; "
            f"{windows.path} has {windows.data_hash[:12]}); name a new run folder"
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


def _drive(store: RunStore, windows: WindowStore, options: Options, cluster: Cluster, watch: Watch) -> Run:
    from raypipe.study import Halving, Ledger, open_journal

    try:
        with Lease(store.folder) as lease, quiet_optuna():
            write_json(store.folder, OPTIONS, options.model_dump(mode="json"))
            grace = options.grace or max(1, round(_longest_trial(store.space) / options.reduction**2))
            pruner = Halving(grace, options.reduction) if options.prune else None
            storage = open_journal(store)
            ledger = Ledger(store, windows, storage, trials=options.trials, pruner=pruner)
            ranked = store.ranked()
            best = (ranked[0].score, ranked[0].number) if ranked else None
            news = {"trials": options.trials, "ended": len(store.results()), "best": best}
            watch("open", news | {"direction": store.info.direction})
            if not ledger.exhausted:
                deadline = None
                if options.time_budget is not None:
                    deadline = time.time() + options.time_budget - lease.spent
                _execute(store, windows, options, ledger, storage, deadline, cluster, watch)
            store.tidy()
    except OSError as error:  # Optuna's journal does not know of `DiskFullError`
        raise disk_full(error, store.where) or error from None
    return Run(store)


def _longest_trial(space: SearchSpace) -> int:
    """Passes of the longest of some drawn trials: successive halving's rungs are set below it."""
    import optuna

    drawn = space.draw(20) + [space(optuna.trial.FixedTrial(point)) for point in space.start]
    return int(max(config.epochs * config.passes for config in drawn))


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


def _execute(
    store: RunStore,
    windows: WindowStore,
    options: Options,
    ledger: Any,
    storage: Any,
    deadline: float | None,
    cluster: Cluster,
    watch: Watch,
) -> None:
    """Have Ray run what the ledger hands out."""
    cluster.start()
    with contextlib.ExitStack() as stack:
        scratch = options.storage or stack.enter_context(tempfile.TemporaryDirectory(prefix="raypipe-"))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        import ray
        from ray import tune

        from raypipe.desk import Desk
        from raypipe.groups import Groups
        from raypipe.messages import Crew
        from raypipe.search import RunScheduler, RunSearch, RunStopper
        from raypipe.slot import Slot

        workers, concurrent = _layout(options, store.folds.n_folds, ray.cluster_resources())
        ledger.parallel = concurrent
        watch("layout", {"workers": workers, "concurrent": concurrent, "cpus": options.cpus_per_worker})
        desk = ray.remote(num_cpus=0, max_concurrency=1000)(Desk).remote()
        crew = Crew(
            run=store.where,
            windows=str(windows.path),
            desk=desk,
            scratch=str(scratch),
            workers=workers,
            cpus=options.cpus_per_worker,
            gpus=options.gpus_per_worker,
            stem=options.stem,
            stack=options.stack,
            grows=bool(options.address),
        )
        groups = Groups(crew, concurrent)
        stack.callback(groups.close)
        search = RunSearch(ledger, storage, deadline=deadline, watch=watch)
        tuner = tune.Tuner(
            # No CPU: the slot only waits for its workers. Ray refuses an empty request, hence a byte of memory.
            tune.with_resources(tune.with_parameters(Slot, crew=crew), {"CPU": 0, "memory": 1}),
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
        tuner.fit()
        if search.fatal:
            raise search.fatal
        if search.interrupted:  # Tune takes the first Ctrl-C as a wish to stop in good order
            raise InterruptedSweepError
        if search.timed_out:
            watch("late", {})


def _layout(options: Options, n_folds: int, resources: dict[str, float]) -> tuple[int, int]:
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
