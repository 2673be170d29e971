"""Pretraining of encoders, in this process or by several Ray Train workers; the same call continues after a crash."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from raypipe.backend.cluster import Cluster
from raypipe.backend.messages import PretrainLayout
from raypipe.backend.process_state import restored_process_state
from raypipe.backend.resources import require_place
from raypipe.core.config import TrialConfig
from raypipe.core.errors import InterruptedEpochError, InterruptedSweepError, UserError
from raypipe.core.folds import FoldMap
from raypipe.core.options import PretrainOptions, document_options, parse_pretrain_options
from raypipe.core.parameters import parse_config
from raypipe.core.progress import Progress, no_progress
from raypipe.core.stop import StopRequest
from raypipe.core.store_names import parse_stores
from raypipe.data.splits import folds_of
from raypipe.data.window_cache import open_windows
from raypipe.data.window_store import WindowStore
from raypipe.pretraining.encoders import PretrainedRun
from raypipe.pretraining.reconcile import reconcile
from raypipe.pretraining.records import PretrainInfo
from raypipe.pretraining.worker import report_progress, train_encoders
from raypipe.search.run_setup import record_of_windows
from raypipe.storage.creation import sole_creator
from raypipe.storage.files import check_places
from raypipe.storage.lease import Lease, in_use_error, read_lease
from raypipe.storage.records import OPTIONS_FILE, read_options, write_options
from raypipe.storage.run_store import RunStore
from raypipe.training.device import require_gpu, worker_device
from raypipe.trial.callback import SweepCallback

POLL_SECONDS = 0.5
"""Seconds between two checks of the workers' progress."""
DEFAULT_MODEL = {"model/name": "vit", "model/filters": 64, "model/heads": 4, "model/depth": 4, "model/dropout": 0.1}


@document_options(PretrainOptions)
@restored_process_state()
def pretrain(
    objective: Literal["mae", "simclr"],
    data: str | Path,
    run: str | Path,
    *,
    params: dict[str, Any] | None = None,
    progress: Progress = no_progress,
    callback: SweepCallback | None = None,
    stop: StopRequest | None = None,
    **options: Any,
) -> PretrainedRun:
    """Pretrain an encoder without targets, on the windows of subjects that are not held out.

    Parameters
    ----------
    objective
        ``mae``: masked autoencoder. ``simclr``: contrastive learning.
    data
        Windows made by `prepare`: a folder, or a URI that ``raypipe push`` copied them to.
    run
        Folder or pyarrow.fs URI of the pretrained run. An existing one is continued.
    params
        Parameters of a trial, such as ``{"epochs": 20, "model/depth": 4}`` (docs/search-spaces.md).
    progress
        Called after every epoch with the epochs trained so far, their number, and a text.
    callback
        Its `on_draining` is called when `stop` is set while several workers train.
    stop
        When another thread sets it, workers stop after the epoch under way; without workers, training stops at once.
    {options}

    Returns
    -------
    PretrainedRun
        The pretrained run, for the `init` of `sweep` and for `load_encoder`.

    Raises
    ------
    UserError
        Bad input, or the run was made with other settings.
    InterruptedSweepError
        Pretraining was stopped, and can be continued.

    Examples
    --------
    >>> pretrain("mae", "demo/store", "demo/mae", params={"epochs": 20})  # doctest: +SKIP
    """
    chosen = parse_pretrain_options(options)
    check_places(data, run)
    if parse_stores(data):
        raise UserError(f"--data {data}: an encoder is pretrained on one store; name one")
    windows = open_windows(data)
    config = parse_config(
        {**DEFAULT_MODEL, **(params or {}), "pretrain/name": objective, "seed": chosen.seed}, "pretrain"
    )
    _check_device(chosen)
    store = _open(run, windows, config, chosen)
    return _drive(store, _layout(chosen), progress, callback or SweepCallback(), stop or StopRequest())


@restored_process_state()
def resume(
    run: str | Path,
    *,
    workers: int | None = None,
    address: str | None = None,
    progress: Progress = no_progress,
    callback: SweepCallback | None = None,
    stop: StopRequest | None = None,
) -> PretrainedRun:
    """Continue pretraining with its last layout, or with another number of workers or another cluster."""
    check_places(run)
    store = PretrainedRun(run)
    given = {"workers": workers, "address": address}
    changes = {name: value for name, value in given.items() if value is not None}
    chosen = parse_pretrain_options(_recorded_options(store) | changes)
    _check_device(chosen)
    return _drive(store, _layout(chosen), progress, callback or SweepCallback(), stop or StopRequest())


def _recorded_options(store: PretrainedRun) -> dict[str, Any]:
    """Return the options that a pretrained run was last driven with.

    Raises
    ------
    UserError
        There are none, or they are damaged.
    """
    recorded = read_options(store.folder, store.info.id)
    if not recorded:
        last = read_lease(store.folder)
        if last and last.alive:  # its driver has only just started
            raise in_use_error(store.folder, last)
        raise UserError(f"{store.where}/{OPTIONS_FILE}: missing; give the same raypipe pretrain command again")
    return recorded


def _layout(options: PretrainOptions) -> PretrainLayout:
    return PretrainLayout(**options.model_dump(include=set(PretrainLayout.__dataclass_fields__)))


def _on_ray(layout: PretrainLayout | PretrainOptions) -> bool:
    """Return whether workers on Ray train, not this process."""
    return layout.workers > 1 or bool(layout.address)


def _check_device(options: PretrainOptions) -> None:
    """Refuse a GPU that this process cannot use, before anything is written; workers on Ray check theirs."""
    if not _on_ray(options):
        require_gpu(options.gpus_per_worker)


def parse_values(given: list[str]) -> dict[str, Any]:
    """Parse ``["model/patch=50"]`` to parameters.

    Raises
    ------
    UserError
        A value has no ``=``.
    """
    found: dict[str, Any] = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign:
            raise UserError(f"--set {text}: must be NAME=VALUE, for example model/patch=50")
        found[name.strip()] = value.strip()
    return found


def _open(run: str | Path, windows: WindowStore, config: TrialConfig, options: PretrainOptions) -> PretrainedRun:
    """Open the pretrained run, or create it."""
    if not PretrainedRun.exists(run):
        folds = _fold_map(windows, options)
        with sole_creator(run):
            if not PretrainedRun.exists(run):  # a driver started at the same time may have made it
                return _create(run, windows, config, options, folds)
    store = PretrainedRun(run)
    _check_unchanged(store, windows, config, options.fold_wise)
    return store


def _create(
    run: str | Path, windows: WindowStore, config: TrialConfig, options: PretrainOptions, folds: FoldMap
) -> PretrainedRun:
    info = PretrainInfo(
        **record_of_windows(windows),
        folds_hash="",  # set when the record is written
        channels=windows.channels,
        n_times=windows.crop_samples,
        sfreq=windows.sfreq,
        config=config,
        fold_wise=options.fold_wise,
        probe_every=options.probe_every,
        tuned_probe=options.tuned_probe,
        micro_batch=options.micro_batch,
    )
    return PretrainedRun.create(run, info, folds)


def _fold_map(windows: WindowStore, options: PretrainOptions) -> FoldMap:
    if options.serves is None:
        return folds_of(windows, options.folds, options.held_out, options.seed)
    served = RunStore.open(options.serves).folds
    if options.fold_wise and served.repeats > 1:
        raise UserError(
            f"--serves {options.serves}: its folds are repeated, and --fold-wise makes encoders for one repeat only; "
            "leave --fold-wise out"
        )
    new = sorted({str(s) for s in windows.subjects} - served.fold_of.keys())
    # Subjects that the run does not have are distributed over the folds in turn.
    extra = {subject: number % served.folds_per_repeat for number, subject in enumerate(new)}
    return served.model_copy(
        update={"fold_of": served.fold_of | extra, "n_folds": served.folds_per_repeat, "repeated": []}
    )


def _check_unchanged(store: PretrainedRun, windows: WindowStore, config: TrialConfig, fold_wise: bool) -> None:
    if store.info.data_hash != windows.data_hash:
        raise UserError(f"{store.where}: it was pretrained on other data ({store.info.data}); name a new run folder")
    if store.info.config != config or store.info.fold_wise != fold_wise:
        raise UserError(
            f"{store.where}: it was started with other settings, which cannot change; name a new run folder"
        )


def _drive(
    store: PretrainedRun, layout: PretrainLayout, progress: Progress, callback: SweepCallback, stop: StopRequest
) -> PretrainedRun:
    with Lease(store.folder, on_wait=callback.on_lease_wait, run=store.info.id) as lease:
        store.remove_leftovers()
        write_options(store.folder, asdict(layout), store.info.id)
        for line in reconcile(store):
            callback.on_warning(line)
        if store.over:
            return store
        if _on_ray(layout):
            _train_on_ray(store, layout, progress, callback, stop, lease)
        else:
            _train_here(store, layout.gpus_per_worker, progress, stop, lease)
        store.finish()
    return store


def _train_here(store: PretrainedRun, gpus: float, progress: Progress, stop: StopRequest, lease: Lease) -> None:
    def interrupted() -> bool:
        return stop.is_set() or lease.lost is not None

    try:
        with stop.accepting():
            train_encoders(
                store.where,
                device=worker_device(gpus),
                gpu_share=gpus or 1.0,
                progress=progress,
                interrupted=interrupted,
            )
    except InterruptedEpochError:
        raise lease.lost or InterruptedSweepError from None


def _train_on_ray(
    store: PretrainedRun,
    layout: PretrainLayout,
    progress: Progress,
    callback: SweepCallback,
    stop: StopRequest,
    lease: Lease,
) -> None:
    with Cluster(layout.address, callback) as cluster, cluster.output.saved_to(store.folder):
        cluster.start()
        from raypipe.backend.pretrain_workers import PretrainWorkers, error_line

        require_place(layout, callback)
        with (
            tempfile.TemporaryDirectory(prefix="train-", dir=cluster.folder) as scratch,
            contextlib.closing(PretrainWorkers(store.where, layout, scratch)) as workers,
            stop.accepting(),
        ):
            draining = False
            while not workers.wait(POLL_SECONDS):
                report_progress(store, progress)
                if lease.lost is not None:
                    raise lease.lost
                if stop.is_set():
                    workers.drain()
                    if not draining:
                        callback.on_draining(layout.workers)
                    draining = True
        report_progress(store, progress)
        if isinstance(workers.error, UserError):
            raise workers.error
        if workers.error is not None:
            raise UserError(
                f"pretraining has stopped ({error_line(workers.error)}); the same command continues from here"
            ) from workers.error
        if not all(store.folder.exists(store.encoder_name(part)) for part in store.parts):
            raise InterruptedSweepError
