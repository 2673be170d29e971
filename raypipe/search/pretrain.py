"""Pretraining, driven: in this process, or by Ray Train with several workers; the same call goes on after a kill."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Literal

from raypipe.backend.cluster import Cluster, on_first_interrupt
from raypipe.core.config import TrialConfig, parse_config
from raypipe.core.errors import InterruptedEpochError, InterruptedSweepError, UserError
from raypipe.core.folds import FoldMap
from raypipe.core.progress import Progress, no_progress
from raypipe.core.versions import package_versions
from raypipe.data.splits import folds_of
from raypipe.data.window_cache import open_windows
from raypipe.data.window_store import WindowStore
from raypipe.pretraining.encoders import PretrainedRun, PretrainInfo
from raypipe.pretraining.worker import tell, work
from raypipe.storage.files import read_json, write_json
from raypipe.storage.lease import Lease
from raypipe.storage.records import OPTIONS_FILE
from raypipe.storage.run_store import RunStore
from raypipe.trial.callback import SweepCallback

LOOK = 0.5


def pretrain(
    objective: Literal["mae", "simclr"],
    data: str | Path,
    run: str | Path,
    *,
    params: dict[str, Any] | None = None,
    folds: int = 5,
    held_out: float | list[str] | Literal["auto"] = "auto",
    seed: int = 0,
    serves: str | Path | None = None,
    fold_wise: bool = False,
    probe_every: int = 5,
    tuned_probe: int = 0,
    micro_batch: int | None = None,
    workers: int = 1,
    cpus_per_worker: float = 1,
    gpus_per_worker: float = 0,
    address: str | None = None,
    progress: Progress = no_progress,
    callback: SweepCallback | None = None,
) -> PretrainedRun:
    """Pretrain an encoder on windows of all subjects that are not held out.

    Parameters
    ----------
    objective, data, run
        What is learnt, from which store of windows, and the folder or URI where it is kept; one that is there goes on.
    params
        Values of a `TrialConfig`, such as ``{"epochs": 20, "model/depth": 4}``.
    folds, held_out, seed
        As of the sweep that the encoder is for: the same store and values give the same fold map.
    serves
        A run whose fold map is taken instead, so that its held-out subjects are not seen.
    fold_wise
        One encoder a fold, which has not seen the fold's subjects either.
    probe_every
        Epochs from one linear probe to the next; 0 for none.
    tuned_probe
        With every linear probe, one more: a copy of the encoder for each fold is trained on for so many epochs, by the
        targets of the fold's training subjects. It costs as much as a trial of so many epochs.
    micro_batch
        Windows a worker keeps the activations of at a time.
    workers, cpus_per_worker, gpus_per_worker, address
        More than one worker, or an address, are run by Ray Train. They may change from one call to the next.
    progress
        Called after every epoch.
    callback
        Its `on_draining` is called after a Ctrl-C.

    Raises
    ------
    UserError
        Bad input, or the run was made otherwise.
    """
    if workers < 1:
        raise UserError(f"--workers {workers}: must be 1 or more")
    windows = open_windows(data)
    given = {"model/name": "vit", "model/filters": 64, "model/heads": 4, "model/depth": 4, "model/dropout": 0.1}
    config = parse_config({**given, **(params or {}), "pretrain/name": objective, "seed": seed}, "pretrain")
    if PretrainedRun.exists(run):
        store = PretrainedRun(run)
        _same(store, windows, config, fold_wise)
    else:
        made = _fold_map(windows, folds, held_out, seed, serves)
        info = PretrainInfo(
            created=time.time(),
            data=windows.where,
            data_hash=windows.data_hash,
            task=windows.manifest.task,
            metric=windows.metric,
            channels=windows.channels,
            n_times=windows.crop_samples,
            sfreq=windows.sfreq,
            config=config,
            folds_hash="",
            fold_wise=fold_wise,
            probe_every=probe_every,
            tuned_probe=tuned_probe,
            micro_batch=micro_batch,
            versions=package_versions(),
        )
        store = PretrainedRun.create(run, info, made)
    layout = {"workers": workers, "cpus": cpus_per_worker, "gpus": gpus_per_worker, "address": address}
    return _drive(store, layout, progress, callback or SweepCallback())


def resume(
    run: str | Path,
    *,
    workers: int | None = None,
    address: str | None = None,
    progress: Progress = no_progress,
    callback: SweepCallback | None = None,
) -> PretrainedRun:
    """Go on with pretraining, as it was last driven or with another number of workers."""
    store = PretrainedRun(run)
    layout = (
        read_json(store.folder, OPTIONS_FILE)
        if store.folder.exists(OPTIONS_FILE)
        else {"workers": 1, "cpus": 1, "gpus": 0}
    )
    changes = {"workers": workers, "address": address}
    return _drive(
        store, layout | {k: v for k, v in changes.items() if v is not None}, progress, callback or SweepCallback()
    )


def parse_values(given: list[str]) -> dict[str, Any]:
    """``["model/patch=50"]`` to parameters.

    Raises
    ------
    UserError
        One has no ``=``.
    """
    found: dict[str, Any] = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign:
            raise UserError(f"--set {text}: say NAME=VALUE, for example model/patch=50")
        found[name.strip()] = value.strip()
    return found


def _fold_map(
    windows: WindowStore, folds: int, held_out: float | list[str] | str, seed: int, serves: str | Path | None
) -> FoldMap:
    if serves is None:
        return folds_of(windows, folds, held_out, seed)
    served = RunStore.open(serves).folds
    new = sorted({str(s) for s in windows.subjects} - served.fold_of.keys())
    # Subjects that the run does not have are learnt from in every fold; the map gives them the folds in turn.
    extra = {subject: number % served.n_folds for number, subject in enumerate(new)}
    return served.model_copy(update={"fold_of": served.fold_of | extra})


def _same(store: PretrainedRun, windows: WindowStore, config: TrialConfig, fold_wise: bool) -> None:
    if store.info.data_hash != windows.data_hash:
        raise UserError(f"{store.where}: it was pretrained on other data ({store.info.data}); name a new run folder")
    if store.info.config != config or store.info.fold_wise != fold_wise:
        raise UserError(f"{store.where}: it was begun with other settings, and they are frozen; name a new run folder")


def _drive(store: PretrainedRun, layout: dict[str, Any], progress: Progress, callback: SweepCallback) -> PretrainedRun:
    with Lease(store.folder):
        write_json(store.folder, OPTIONS_FILE, layout)
        if store.over:
            return store
        if layout["workers"] > 1 or layout.get("address"):
            _with_ray(store, layout, progress, callback)
        else:
            stop = threading.Event()
            with on_first_interrupt(stop.set):
                try:
                    work(store.where, progress=progress, interrupted=stop.is_set)
                except InterruptedEpochError:
                    raise InterruptedSweepError from None
        store.finish()
    return store


def _with_ray(store: PretrainedRun, layout: dict[str, Any], progress: Progress, callback: SweepCallback) -> None:
    with Cluster(layout.get("address"), callback) as cluster, cluster.noise.kept(store.folder):
        cluster.start()
        from raypipe.backend.pretrain_workers import PretrainWorkers, error_line

        with contextlib.redirect_stdout(cluster.noise), tempfile.TemporaryDirectory(prefix="raypipe-") as scratch:
            stop, asked = threading.Event(), False
            going = PretrainWorkers(store.where, layout, scratch)
            with contextlib.closing(going), on_first_interrupt(stop.set):
                while not going.over(LOOK):
                    tell(store, progress)
                    if stop.is_set():
                        going.drain()
                        if not asked:
                            callback.on_draining(int(layout["workers"]))
                        asked = True
            tell(store, progress)
        if isinstance(going.error, UserError):
            raise going.error
        if going.error is not None:
            raise UserError(
                f"pretraining has stopped ({error_line(going.error)}); the same command goes on from here"
            ) from going.error
        if not all(store.folder.exists(store.encoder_name(part)) for part in store.parts):
            raise InterruptedSweepError
