"""What a sweep will take, told before it is launched: time, memory and disk, from a few steps of some of its trials."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import resource
import socket
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import torch

from raypipe.backend.remote_call import connect
from raypipe.backend.resources import divide_resources
from raypipe.core.config import InitConfig, TrialConfig, flat
from raypipe.core.errors import UserError, first_line, out_of_memory
from raypipe.core.folds import FoldMap
from raypipe.core.options import parse_options
from raypipe.core.progress import Progress, no_progress
from raypipe.core.search_space import load_space
from raypipe.data.splits import folds_of
from raypipe.data.window_cache import open_windows
from raypipe.models.conformer import Conformer
from raypipe.training import checkpoint
from raypipe.training.loader import WindowLoader
from raypipe.training.trainer import FoldTrainer
from raypipe.trial.autotune import stem_seconds
from raypipe.trial.callback import SweepCallback

MOST = 6
"""Configurations that are measured: the START points, then draws."""
STEPS = 3
"""Steps that are timed of each, after one that is not."""
START_UP = 30.0
"""Seconds from the command to the first epoch (benchmarks/RESULTS.md)."""


class Measured(NamedTuple):
    """What one configuration takes."""

    step: float
    """Seconds of a step of one fold, as are `epoch`, for an epoch with its validation, and `trial`, for all epochs of
    all folds on one worker."""
    epoch: float
    trial: float
    checkpoint: int
    """Bytes of a fold's checkpoint, and of what a trial leaves when it has ended (`result`)."""
    result: int


@dataclass(frozen=True)
class Forecast:
    """What a sweep takes if no trial stops early: early stopping and halving make it less."""

    trials: int
    folds: int
    workers: int
    """Of a trial."""
    concurrent: int
    cpus: float
    """Cores a worker, and GPUs (`gpus`)."""
    gpus: float
    device: str
    measured: list[Measured]
    memory: int
    """Peak resident bytes of the process that measured, which had one fold."""
    gpu_memory: int = 0
    """Peak bytes of the GPU with one fold, and those of it that a worker has (`gpu_share`)."""
    gpu_share: int = 0

    def seconds(self, trial: float) -> float:
        """Seconds of the sweep if every trial took `trial` seconds of one worker."""
        busiest = -(-self.folds // self.workers) / self.folds  # the worker with the most folds
        rounds = -(-self.trials // self.concurrent)
        return START_UP + rounds * trial * busiest

    @property
    def likely(self) -> float:
        """Seconds by the mean of the configurations."""
        return self.seconds(statistics.fmean(m.trial for m in self.measured))

    @property
    def range(self) -> tuple[float, float]:
        """Seconds if all trials were as the quickest of them, and as the slowest."""
        trials = [m.trial for m in self.measured]
        return self.seconds(min(trials)), self.seconds(max(trials))

    @property
    def gpu_hours(self) -> float:
        """Of all that its workers hold from the beginning to the end, as ``--gpu-hours`` counts them."""
        return self.likely * self.workers * self.concurrent * self.gpus / 3600

    @property
    def disk(self) -> int:
        """Bytes of the run: what trials leave, and three checkpoints a fold of those under way."""
        left = self.trials * max(m.result for m in self.measured)
        return left + 3 * self.folds * self.concurrent * max(m.checkpoint for m in self.measured)

    def render(self) -> str:
        """The forecast in words."""
        steps, epochs = [m.step for m in self.measured], [m.epoch for m in self.measured]
        low, high = self.range
        lines = [
            f"{self.trials} trials of {self.folds} folds: {self.concurrent} at a time, "
            f"{self.workers} worker(s) each with {self.cpus:g} core(s)"
            + (f" and {self.gpus:g} GPU(s)" if self.gpus else ""),
            f"measured   {len(self.measured)} configurations on {self.device}: a step takes "
            f"{_span(steps)}, an epoch of a fold {_span(epochs)}",
            f"time       {_clock(self.likely)} ({_clock(low)} to {_clock(high)}, were all as the quickest or slowest)",
        ]
        if self.gpus:
            lines.append(f"GPU-hours  {self.gpu_hours:.2g}, all that is held from beginning to end")
            lines.append(f"GPU memory {_size(self.gpu_memory)} a worker with one fold, of {_size(self.gpu_share)}")
        lines += [
            f"memory     {_size(self.memory)} a worker with one fold, of the machine",
            f"disk       {_size(self.disk)} in the run",
            "Early stopping and halving make it less; cores that share their memory's speed make it more.",
        ]
        return "\n".join(lines)


def forecast(
    space: str | Path,
    data: str | Path,
    *,
    cpus: float | None = None,
    gpus: float | None = None,
    address: str | None = None,
    progress: Progress = no_progress,
    callback: SweepCallback | None = None,
    **options: Any,
) -> Forecast:
    """Measure a few steps of a space's START points and of some draws, and reckon what the sweep takes.

    Parameters
    ----------
    space, data
        As of `sweep`.
    cpus, gpus
        What the sweep will have in all. None: the cores of this machine and no GPU; of a cluster, what it has.
    address
        A Ray cluster on one of whose machines is measured, with a worker's share of it; None: here.
    progress
        Told of configurations measured, of how many, and a text.
    callback
        Its `on_waiting` is called while no machine of the cluster is free.
    **options
        As of `sweep`: `trials`, `folds`, `held_out`, `workers`, `cpus_per_worker`, `gpus_per_worker`, `concurrent`.

    Raises
    ------
    UserError
        Bad input, workers that do not fit, or a cluster that is not there.
    """
    chosen = parse_options({name: value for name, value in options.items() if value is not None})
    source, windows = load_space(space), open_windows(data)
    folds = folds_of(windows, chosen.folds, chosen.held_out, chosen.seed)
    given = {"CPU": cpus, "GPU": gpus}
    here = {"CPU": float(os.cpu_count() or 1), "GPU": 0.0}
    asked = {name: amount for name, amount in given.items() if amount is not None}
    for name, amount in asked.items():
        if not (math.isfinite(amount) and (amount > 0 or (name == "GPU" and amount == 0))):
            raise UserError(f"--{name.lower()}s {amount:g}: how many the sweep will have; must be more than nothing")
    if not address:
        divide_resources(chosen, folds.n_folds, here | asked)  # what does not fit is told at once
    source.check()
    points = [source(optuna.trial.FixedTrial(point)) for point in source.start]
    configs = [*points, *source.draw(MOST)][:MOST]
    share = {"cpus": chosen.cpus_per_worker, "gpus": chosen.gpus_per_worker}
    samples = []
    with contextlib.ExitStack() as stack:
        stack.callback(_feed.cache_clear)
        site = stack.enter_context(connect(address, callback or SweepCallback(), **share)) if address else None
        run: Callable[..., Sample] = functools.partial(site.run, measure) if site else measure
        for number, config in enumerate(configs):
            progress(number, len(configs), "configurations measured")
            samples.append(run(windows.where, folds, config, share))
        workers, concurrent = divide_resources(chosen, folds.n_folds, (site.resources() if site else here) | asked)
    return Forecast(
        trials=chosen.trials,
        folds=folds.n_folds,
        workers=workers,
        concurrent=concurrent,
        cpus=chosen.cpus_per_worker,
        gpus=chosen.gpus_per_worker,
        device=samples[-1].device,
        measured=[sample.measured for sample in samples],
        memory=max(sample.memory for sample in samples),
        gpu_memory=max(sample.gpu_memory for sample in samples),
        gpu_share=min(sample.gpu_share for sample in samples),
    )


class Sample(NamedTuple):
    """One configuration, where it was measured."""

    measured: Measured
    device: str
    memory: int
    """Peak resident bytes of the process so far."""
    gpu_memory: int
    """Peak bytes of the GPU, and those of it that are a worker's (`gpu_share`); none without one."""
    gpu_share: int


def measure(where: str, folds: FoldMap, config: TrialConfig, share: dict[str, float]) -> Sample:
    """Measure a configuration with a worker's share of this machine's cores and GPUs.

    Raises
    ------
    UserError
        There is to be a GPU, and none is here; or a step does not fit in memory.
    """
    device = "cuda" if share["gpus"] and torch.cuda.is_available() else "cpu"
    if share["gpus"] and device == "cpu":
        raise UserError(
            f"--gpus-per-worker: {socket.gethostname()} has no GPU to measure on; name a cluster that has (--address), "
            "or run plan where there is one"
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, int(share["cpus"])))
    try:
        found = _measured(config, _feed(where, device), folds)
    except Exception as error:
        if not out_of_memory(error):
            raise
        default = flat(TrialConfig())
        named = ", ".join(f"{name}={value}" for name, value in flat(config).items() if value != default[name])
        raise UserError(f"a step does not fit in this machine's memory ({first_line(error)}): {named}") from error
    finally:
        torch.set_num_threads(threads)
    if device == "cpu":
        return Sample(found, f"{socket.gethostname()}'s processor", _peak(), 0, 0)
    part = int(min(1.0, share["gpus"]) * torch.cuda.get_device_properties(0).total_memory)
    name = f"{socket.gethostname()}'s {torch.cuda.get_device_name(0)}"
    return Sample(found, name, _peak(), torch.cuda.max_memory_allocated(0), part)


@functools.lru_cache(maxsize=1)
def _feed(where: str, device: str) -> WindowLoader:
    """The windows: one configuration after another is measured with them."""
    return WindowLoader(open_windows(where), device)


def _measured(config: TrialConfig, feed: WindowLoader, folds: FoldMap) -> Measured:
    # Of an encoder that is not at hand, the cost is that of training all of it.
    config = config.model_copy(update={"init": InitConfig()})
    train, validation = folds.split(feed.windows.subjects, 0)
    trainer = FoldTrainer(config, feed, train, validation, fold=0)
    batches = trainer.batches()
    batch = next(batches)
    if isinstance(trainer.model, Conformer):
        times = stem_seconds(trainer.model, batch.x)
        trainer.model.stem.algorithm = min(times, key=times.__getitem__)
    trainer.begin()
    trainer.step(batch, 0)
    step = statistics.median(_timed(partial(trainer.step, batch, number)) for number in range(1, STEPS + 1))
    some = validation[: 4 * config.batch_size]
    state: dict[str, Any] = {}
    predicting = _timed(lambda: state.update(predictions=torch.from_numpy(trainer.predict(some)))) / max(1, len(some))
    epoch = trainer.steps_per_epoch * step + predicting * len(validation)
    whole = len(checkpoint.dumps(trainer.state_dict() | state))
    weights = sum(tensor.numel() * tensor.element_size() for tensor in trainer.weights().values())
    predictions = len(feed.windows) * feed.windows.n_outputs * 4
    left = (1 + len(config.cycle_ends)) * (folds.n_folds * weights + 2 * predictions)
    return Measured(step, epoch, epoch * config.epochs * folds.n_folds, whole, left)


def _timed(work: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _span(seconds: list[float]) -> str:
    middle, low, high = statistics.median(seconds), min(seconds), max(seconds)
    return f"{middle:.2g} s ({low:.2g} to {high:.2g})"


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _size(count: int) -> str:
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"
