"""Nested cross-validation of a whole search: every subject is held out once, by a search that has not seen them.

Each part is a run of its own, so it resumes, reports and fails as any run does. All parts share Ray and its workers.
The score of all subjects together estimates how well the procedure does, choices included (Varma & Simon 2006,
doi:10.1186/1471-2105-7-91).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raypipe.backend.executor import WorkerPool
from raypipe.backend.process_state import restored_process_state
from raypipe.core.errors import UserError
from raypipe.core.options import MAX_SEED, SweepOptions, parse_options
from raypipe.core.search_space import SearchSpace, Space, load_space
from raypipe.core.seeds import derive_seed
from raypipe.core.stop import StopRequest
from raypipe.core.store_names import Data, places_of
from raypipe.data.splits import outer_parts_of
from raypipe.data.window_cache import open_windows
from raypipe.data.window_store import WindowStore
from raypipe.search.own_metrics import find_own_metric, metric_of
from raypipe.search.preflight import foreseen_warnings
from raypipe.search.run_setup import check_new_run, open_run, record_of_windows
from raypipe.search.sweep import drive, open_cluster
from raypipe.search.trackers import check_trackers
from raypipe.storage.code_files import hashes
from raypipe.storage.creation import sole_creator
from raypipe.storage.files import check_places, open_folder
from raypipe.storage.outer_run import EncoderInfo, OuterInfo, OuterRun
from raypipe.storage.records import read_options, write_options
from raypipe.storage.run_store import RunStore
from raypipe.trial.callback import SweepCallback

OPTIONS_OF_ALL = ("time_budget", "gpu_hours")
"""Limits of all parts together; each part has an equal share."""


@restored_process_state()
def sweep_outer(
    space: Space,
    data: Data,
    run: str | Path,
    *,
    outer: int,
    init: str | Path | None = None,
    callback: SweepCallback | None = None,
    stop: StopRequest | None = None,
    **options: Any,
) -> OuterRun:
    """Search a space once for each of `outer` parts of the subjects, which that search does not see.

    The same call continues after a crash. See `raypipe.api.sweep` for the other parameters and the errors.
    """
    chosen = find_own_metric(parse_options(options))
    if chosen.held_out != "auto":
        raise UserError("--outer holds every subject out once, so --held-out cannot be given with it; leave one out")
    check_places(*places_of(data), run, init, chosen.storage)
    check_trackers(chosen.track)
    windows, callback = open_windows(data), callback or SweepCallback()
    source = load_space(space, windows.names)
    for line in foreseen_warnings(source, windows):
        callback.on_warning(line)
    found = _open(source, windows, str(run), chosen, outer, init)
    return _drive_parts(found, source, windows, chosen, _encoder_of(found, init), callback, stop)


@restored_process_state()
def resume_outer(
    run: str | Path, *, callback: SweepCallback | None = None, stop: StopRequest | None = None, **changes: Any
) -> OuterRun:
    """Continue all parts with the options of the last driver, some replaced by `changes`."""
    check_places(run)
    found = OuterRun(run)
    recorded = read_options(found.folder)
    if not recorded:
        raise UserError(f"{run}: its search has not begun; start it with: raypipe sweep")
    chosen = parse_options(recorded | {name: value for name, value in changes.items() if value is not None})
    check_places(chosen.storage)
    windows, space = open_windows(found.info.data), found.read_space()
    _check_unchanged(found, windows, space, chosen, len(found.info.parts))
    return _drive_parts(found, space, windows, chosen, _encoder_of(found), callback, stop)


def _open(
    space: SearchSpace,
    windows: WindowStore,
    where: str,
    options: SweepOptions,
    outer: int,
    init: str | Path | None,
) -> OuterRun:
    """Open an outer cross-validation, or create it."""
    if not OuterRun.exists(where):
        if RunStore.exists(where):
            raise UserError(f"{where}: a run without --outer; name a new run folder")
        metric = metric_of(options, windows)
        info = OuterInfo(
            **record_of_windows(windows) | {"metric": metric},
            kind=windows.kind,
            classes=windows.classes,
            seed=options.seed,
            folds=options.folds,
            repeats=options.repeats,
            space=space.name,
            space_hash=space.hash,
            code=hashes(space.files),
            parts=outer_parts_of(windows, outer, options.seed),
            init=_describe_encoder(init) if init is not None else None,
        )
        for number in range(1, outer + 1):  # before anything is written
            check_new_run(space, windows, _options_of_part(options, info, number), init)
        with sole_creator(where):
            if not OuterRun.exists(where):
                return OuterRun.create(where, info, space)
    found = OuterRun(where)
    _check_unchanged(found, windows, space, options, outer)
    return found


def _describe_encoder(init: str | Path) -> EncoderInfo:
    from raypipe.pretraining.encoders import read_card  # torch takes seconds to import

    return EncoderInfo(run=open_folder(init).where, files=read_card(init).files)


def _encoder_of(found: OuterRun, init: str | Path | None = None) -> str | Path | None:
    """Return where the encoder of the parts that are not made yet is: `init`, or where it was at first.

    Raises
    ------
    UserError
        There is none any more, or another one than that of the other parts.
    """
    made = found.info.init
    if made is None or all(RunStore.exists(place) for place in found.places):
        return init
    place = made.run if init is None else init
    if _describe_encoder(place).files != made.files:
        raise UserError(
            f"{place}: not the encoder that {found.where} was made with ({made.run} at that time); this cannot change: "
            "name a new run"
        )
    return place


def _check_unchanged(
    found: OuterRun, windows: WindowStore, space: SearchSpace, options: SweepOptions, outer: int
) -> None:
    """Check that an outer cross-validation is continued with what it was made from."""
    info, where = found.info, found.where
    checks = (
        ("data", windows.data_hash[:12], info.data_hash[:12]),
        ("search space", space.hash[:12], info.space_hash[:12]),
        ("code", _digests(hashes(space.files)), _digests(info.code)),
        ("--outer", outer, len(info.parts)),
        ("--folds", options.folds, info.folds),
        ("--repeats", options.repeats, info.repeats),
        ("--seed", options.seed, info.seed),
        ("--metric", options.metric or info.metric, info.metric),
    )
    for name, asked, made in checks:
        if asked != made:
            raise UserError(f"{where}: it was made with {name} {made}, not {asked}; this cannot change: name a new run")


def _digests(code: dict[str, str]) -> str:
    return ", ".join(f"{path} {sha256[:12]}" for path, sha256 in sorted(code.items()))


def _drive_parts(
    found: OuterRun,
    space: SearchSpace,
    windows: WindowStore,
    options: SweepOptions,
    init: str | Path | None,
    callback: SweepCallback | None,
    stop: StopRequest | None,
) -> OuterRun:
    """Make the runs of all parts, then search one after another with the same workers."""
    callback, stop, parts = callback or SweepCallback(), stop or StopRequest(), found.info.parts
    write_options(found.folder, options.model_dump(mode="json"))
    with open_cluster(options, callback) as cluster, WorkerPool() as pool:
        chosen = [_options_of_part(options, found.info, number) for number in range(1, len(parts) + 1)]
        runs: list[RunStore] = []
        for place, each in zip(found.places, chosen, strict=True):
            how: dict[str, Any] = {} if runs else {"warn": callback.on_warning}
            runs.append(open_run(space, windows, place, each, init=init, before_create=cluster.start, **how))
        for number, (run, each) in enumerate(zip(runs, chosen, strict=True), start=1):
            callback.on_part(number, len(runs), len(run.folds.held_out))
            drive(run, windows, each, cluster, callback, stop, pool=pool)
    return found


def _options_of_part(options: SweepOptions, info: OuterInfo, number: int) -> SweepOptions:
    """Return the options of a part: whom it holds out, its share of the limits, and its seed.

    With one seed for all parts they would draw the same configurations at first, and share the luck that is in them.
    """
    parts = info.parts
    shares = {name: value / len(parts) for name in OPTIONS_OF_ALL if (value := getattr(options, name))}
    seed = derive_seed("outer", options.seed, number) % (MAX_SEED + 1)
    return options.model_copy(update={"held_out": parts[number - 1], "seed": seed, **shares})
