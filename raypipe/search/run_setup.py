"""Creation of a sweep's run, and checks that an existing run is continued with what it was made from."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raypipe.core.errors import UserError
from raypipe.core.folds import FoldMap
from raypipe.core.levels import level_of, ranking_score
from raypipe.core.metrics import get_metric
from raypipe.core.options import SweepOptions
from raypipe.core.outputs import as_columns
from raypipe.core.own_metrics import shown_metric
from raypipe.core.search_space import SearchSpace
from raypipe.core.versions import package_versions
from raypipe.data.splits import audit_subjects, folds_of
from raypipe.data.window_store import WindowStore
from raypipe.search.initial_encoder import copy_encoder, needs_encoder
from raypipe.search.labels import labels_of
from raypipe.search.own_metrics import check_metric_file, metric_of
from raypipe.search.preflight import check_space
from raypipe.storage.code_files import code_file, hashes
from raypipe.storage.creation import sole_creator
from raypipe.storage.records import RunInfo, read_options
from raypipe.storage.run_store import RunStore

if TYPE_CHECKING:
    from raypipe.search.warm_start import WarmStart


def open_run(
    space: SearchSpace,
    windows: WindowStore,
    where: str,
    options: SweepOptions,
    *,
    warm: WarmStart | None = None,
    init: str | Path | None = None,
    before_create: Callable[[], None] = lambda: None,
    warn: Callable[[str], None] = lambda line: None,
) -> RunStore:
    """Open the run at `where`, or create it.

    Parameters
    ----------
    space, windows, where, options
        What the run is made from. An existing run must have been made from the same.
    warm
        Trials of another run that the sampler of a new run starts from.
    init
        Pretrained encoder that trials of a new run start from.
    before_create
        Called before a new run is created, after all checks; not called for an existing run, which may be finished.
    warn
        Called with lines of warning about a new run's space.

    Raises
    ------
    UserError
        The run was made from something else, or cannot be made.
    LeakError
        A recording, a group or windows with the same samples are in two parts of the fold map.
    """
    if not RunStore.exists(where):
        folds = check_new_run(space, windows, options, init, warn)
        _check_new(where)
        metric = metric_of(options, windows)
        before_create()
        with sole_creator(where):
            if not RunStore.exists(where):  # a driver started at the same time may have made it
                return _create(space, windows, where, folds, metric, warm, init)
    store = RunStore.open(where)
    check_unchanged(store, windows, space, options)
    return store


def check_new_run(
    space: SearchSpace,
    windows: WindowStore,
    options: SweepOptions,
    init: str | Path | None = None,
    warn: Callable[[str], None] = lambda line: None,
) -> FoldMap:
    """Check that a new run can be made of these, and return its folds; see `open_run`."""
    check_metric_file(options, space)
    if init is None and needs_encoder(space):
        raise UserError(f"{space.name}: it has trials with init/name=pretrained; give a pretrained run with --init RUN")
    if init is not None:
        _require_one_shape(windows)
    folds = folds_of(windows, options.folds, options.held_out, options.seed, options.repeats)
    audit_subjects(windows, folds)
    _require_scores(windows, folds, metric_of(options, windows))
    for line in check_space(space, windows, folds):
        warn(line)
    return folds


def _require_scores(windows: WindowStore, folds: FoldMap, metric: str) -> None:
    """Check that the search subjects can have a score.

    Raises
    ------
    UserError
        The metric is undefined even where every target is predicted right: no trial would be ranked.
    """
    index, fold_N = folds.predicted_rows(windows.subjects)
    y, level, k = windows.targets[index], level_of(windows.subjects, windows.targets), len(windows.classes)
    right = 0.98 * np.eye(k)[y] + 0.02 / k if k else as_columns(y)
    if np.isnan(ranking_score(metric, level, y, right, windows.subjects[index], fold_N)):
        lacking = "a class is missing among them" if k else "their targets are all equal"
        raise UserError(
            f"--metric {shown_metric(metric)}: it is undefined for the search subjects, even where every target is "
            f"predicted right ({lacking}?); hold out other subjects, or use another metric"
        )


def _require_one_shape(windows: WindowStore) -> None:
    """Check that an encoder fits every store.

    Raises
    ------
    UserError
        Windows of two stores have different channels, samples or rates.
    """
    shapes = {name: (w.channels, w.crop_samples, w.sfreq) for name in windows.names if (w := windows.of(name))}
    first = next(iter(shapes), "")
    for name, shape in shapes.items():
        if shape != shapes[first]:
            raise UserError(f"--init: windows of stores {first} and {name} have different shapes, and it fits one only")


def _check_new(where: str) -> None:
    """Check that a run can be created, unless a driver that was started at the same time has just done it."""
    try:
        RunStore.check_new(where)
    except UserError:
        if not RunStore.exists(where):
            raise


def _create(
    space: SearchSpace,
    windows: WindowStore,
    where: str,
    folds: FoldMap,
    metric: str,
    warm: WarmStart | None,
    init: str | Path | None,
) -> RunStore:
    encoder: dict[str, Any] | None = copy_encoder(init, where, folds, space) if init is not None else None
    info = RunInfo(
        id=uuid.uuid4().hex,
        **record_of_windows(windows) | {"metric": metric},
        folds_hash="",  # set when the record is written
        kind=windows.kind,
        level=level_of(windows.subjects, windows.targets),
        direction=get_metric(metric).direction,
        labels=labels_of(windows),
        classes=windows.classes,
        outputs=windows.outputs,
        stores=windows.hashes,
        seed=folds.seed,
        space=space.name,
        space_hash=space.hash,
        code=hashes(space.files),
        warm=warm.model_dump(mode="json") if warm else None,
        init=encoder,
    )
    return RunStore.create(where, info, folds, space)


def record_of_windows(windows: WindowStore) -> dict[str, Any]:
    """Return the fields that new records of a sweep's run and of a pretrained run share: their data and versions."""
    return {
        "created": time.time(),
        "data": windows.where,
        "data_hash": windows.data_hash,
        "target": windows.manifest.target,
        "metric": windows.metric,
        "versions": package_versions(),
    }


def check_unchanged(store: RunStore, windows: WindowStore, space: SearchSpace, options: SweepOptions) -> None:
    """Check that a run is continued with the data, space, folds and seed that it was made with.

    Raises
    ------
    UserError
        Something has changed; the message names it.
    """
    info = store.info
    if windows.data_hash != info.data_hash:
        raise UserError(
            f"{store.where}: the run was made from other data ({info.data}, hash {info.data_hash[:12]}; "
            f"{windows.where} has {windows.data_hash[:12]}); name a new run folder"
        )
    if space.hash != info.space_hash:
        raise UserError(
            f"{store.where}: the run was made with another search space (a copy is its space.py); name a new run folder"
        )
    for path, sha256 in hashes(space.files).items():
        if info.code.get(path, sha256) != sha256:
            raise UserError(
                f"{store.where}: {path} has changed since the run was made (its copy is "
                f"{code_file(path, info.code[path])}, which `raypipe resume` uses); name a new run folder"
            )
    for name, asked, made in (
        ("folds", options.folds, store.folds.folds_per_repeat),
        ("repeats", options.repeats, store.folds.repeats),
    ):
        if asked != made:
            raise UserError(f"{store.where}: the run has {made} {name}, not {asked}; they cannot change")
    before = read_options(store.folder, store.run_id)
    if before and SweepOptions.model_validate(before).held_out != options.held_out:
        raise UserError(
            f"{store.where}: the run holds out {before['held_out']}, not {options.held_out}; this cannot change"
        )
    if options.metric is not None and options.metric != info.metric:
        ranked, wanted = shown_metric(info.metric), shown_metric(options.metric)
        if ranked == wanted:
            raise UserError(f"{store.where}: {ranked} has changed since the run was made; name a new run folder")
        raise UserError(f"{store.where}: the run's trials are ranked by {ranked}, not {wanted}; this cannot change")
    if options.seed != info.seed:
        raise UserError(f"{store.where}: the run has seed {info.seed}, not {options.seed}; it cannot change")
