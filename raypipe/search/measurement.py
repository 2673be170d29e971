"""Measurement of one configuration: seconds per step and epoch, memory, and bytes on disk."""

from __future__ import annotations

import functools
import math
import resource
import socket
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from raypipe.core.config import InitConfig, TrialConfig
from raypipe.core.errors import UserError, first_line, out_of_memory
from raypipe.core.folds import FoldMap
from raypipe.core.parameters import changed_parameters
from raypipe.data.window_cache import open_windows
from raypipe.pretraining.fold_trainer import PretrainTrainer
from raypipe.pretraining.linear_probe import fit_probe
from raypipe.training import checkpoint
from raypipe.training.closed_form import ClosedFormTrainer
from raypipe.training.device import free_memory, missing_gpu, worker_device
from raypipe.training.graphs import UNCAPTURED_CALLS
from raypipe.training.loader import FoldData, WindowLoader
from raypipe.training.store_loaders import StoreLoaders
from raypipe.training.trainer import SupervisedTrainer
from raypipe.trial.autotune import call_seconds, stem_seconds

TIMED_STEPS = 3
"""Steps that are timed, after one that is not."""
PREDICTED_BATCHES = 4
"""Batches of validation windows that are predicted to time it."""
FLOAT32_BYTES = 4


class Cost(NamedTuple):
    """Cost of one configuration."""

    step: float
    """Seconds of a step of one fold."""
    epoch: float
    """Seconds of an epoch of one fold, with its validation."""
    trial: float
    """Seconds of all epochs of all folds on one worker."""
    checkpoint: int
    """Bytes of a fold's checkpoint."""
    result: int
    """Bytes that a trial leaves when it has ended."""
    weights: int
    """Part of `result` that is weights."""
    parameters: int
    """Numbers that are trained, or fitted, in a fold's model."""


class Measurement(NamedTuple):
    """Cost of one configuration, and the machine on which it was measured."""

    cost: Cost
    device: str
    memory: int
    """Peak resident bytes of the process so far."""
    gpu_memory: int = 0
    """Peak bytes on the GPU."""
    worker_gpu_memory: int = 0
    """Bytes of the GPU that a worker may use."""


def measure(where: str, folds: FoldMap, config: TrialConfig, resources: dict[str, float]) -> Measurement:
    """Measure a configuration on this machine.

    Parameters
    ----------
    where
        Path or URI of the store of windows.
    folds
        Fold map of the sweep; the first fold is measured.
    config
        Configuration.
    resources
        ``cpus`` and ``gpus`` of a worker.

    Raises
    ------
    UserError
        Workers have a GPU and this machine has none, or a step does not fit in memory.
    """
    host = socket.gethostname()
    if resources["gpus"] and (problem := missing_gpu()):
        raise UserError(
            f"--gpus-per-worker: {host} has no GPU to measure on; name a cluster that has (--address), "
            f"or run plan on a machine that has one ({problem})"
        )
    device = worker_device(resources["gpus"])
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, int(resources["cpus"])))
    try:
        loader = cached_loaders(where, device, resources["gpus"] or 1.0).of(config.data.store)
        loader.set_resident(True)
        cost = _measure_cost(config, loader, folds)
    except Exception as error:
        if not out_of_memory(error):
            raise
        named = ", ".join(f"{name}={value}" for name, value in changed_parameters(config).items())
        raise UserError(f"a step does not fit in this machine's memory ({first_line(error)}): {named}") from error
    finally:
        torch.set_num_threads(threads)
    if device.type == "cpu":
        return Measurement(cost, f"{host}'s processor", _peak_memory())
    share = int(resources["gpus"] * torch.cuda.get_device_properties(device).total_memory)
    name = f"{host}'s {torch.cuda.get_device_name(device)}"
    return Measurement(cost, name, _peak_memory(), torch.cuda.max_memory_allocated(device), share)


@functools.lru_cache(maxsize=1)
def cached_loaders(where: str, device: torch.device, share: float) -> StoreLoaders:
    """Return the loaders of a sweep's stores, the same ones for all configurations of a forecast."""
    return StoreLoaders(open_windows(where), device, share=share)


def _measure_cost(config: TrialConfig, loader: WindowLoader, folds: FoldMap) -> Cost:
    # A pretrained encoder may not be at hand; training a new one costs the same.
    config = config.model_copy(update={"init": InitConfig()})
    train, validation = folds.split(loader.windows.subjects, 0)
    data = FoldData(config, loader, train, validation, fold=0, groups_N=folds.groups(loader.windows.subjects))
    if config.model.closed_form:
        return _measure_fit(config, data, folds)
    if config.pretrain.name != "none":
        return _measure_pretraining(config, data, folds)
    trainer = SupervisedTrainer(config, data)
    step = _step_seconds(trainer)
    some = validation[: PREDICTED_BATCHES * config.batch_size]
    state: dict[str, Any] = {}

    def predict() -> None:
        state["predictions"] = torch.from_numpy(trainer.predict(some))

    window_seconds = call_seconds(predict, loader.device) / max(1, len(some))
    full_batches = len(trainer.data.train) / trainer.data.batch_sizes[0]
    epoch = full_batches * step + window_seconds * (len(validation) + len(data.inner))
    members = 1 + len(config.cycle_ends)
    weights = members * folds.n_folds * _weights_size(trainer.weights())
    predictions = folds.repeats * len(loader.windows) * loader.windows.n_outputs * FLOAT32_BYTES
    return Cost(
        step=step,
        epoch=epoch,
        trial=epoch * config.epochs * folds.n_folds,
        checkpoint=len(checkpoint.dumps(trainer.state_dict() | state)),
        result=weights + (2 * members + config.epochs) * predictions,
        weights=weights,
        parameters=sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad),
    )


def _measure_fit(config: TrialConfig, data: FoldData, folds: FoldMap) -> Cost:
    """Measure a model that is fitted in closed form, whose epoch is one step."""
    trainer = ClosedFormTrainer(config, data, folds.groups(data.windows.subjects))
    seconds = call_seconds(trainer.run_epoch, data.device)
    weights = folds.n_folds * _weights_size(trainer.weights())
    predictions = folds.repeats * len(data.windows) * data.windows.n_outputs * FLOAT32_BYTES
    return Cost(
        step=seconds,
        epoch=seconds,
        trial=seconds * folds.n_folds,
        checkpoint=len(checkpoint.dumps(trainer.state_dict())) + len(data.validation) * FLOAT32_BYTES,
        result=weights + 3 * predictions,
        weights=weights,
        parameters=trainer.model.weight_OF.numel() + trainer.model.bias_O.numel(),
    )


def _measure_pretraining(config: TrialConfig, data: FoldData, folds: FoldMap) -> Cost:
    """Measure pretraining, whose linear probe is fitted on the features of the training windows after each epoch."""
    windows, groups_N = data.windows, folds.groups(data.windows.subjects)
    trainer = PretrainTrainer(config, data.loader, data.train, data.validation, fold=0, groups_N=groups_N)
    batch = next(trainer.pretrainer.batches())
    (step,) = _median_seconds([lambda number: trainer.pretrainer.step(batch, number)], data.device)
    some = data.train[: PREDICTED_BATCHES * config.batch_size]
    window_seconds = call_seconds(partial(trainer.pretrainer.features, some), data.device) / max(1, len(some))
    features_NF = np.random.default_rng(0).standard_normal((len(data.train), trainer.encoder.width), np.float32)
    fit = partial(fit_probe, features_NF, windows.targets[data.train], groups_N[data.train], len(windows.classes))
    full_batches = len(data.train) / trainer.pretrainer.batch_sizes[0]
    epoch = full_batches * step + window_seconds * (len(data.train) + len(data.validation))
    epoch += call_seconds(fit, torch.device("cpu"))
    weights = folds.n_folds * _weights_size(trainer.encoder.state_dict())
    predictions = folds.repeats * len(windows) * windows.n_outputs * FLOAT32_BYTES
    trained = (parameter for parameter in trainer.pretrainer.module.parameters() if parameter.requires_grad)
    return Cost(
        step=step,
        epoch=epoch,
        trial=epoch * config.epochs * folds.n_folds,
        checkpoint=len(checkpoint.dumps(trainer.state_dict())) + len(data.validation) * FLOAT32_BYTES,
        result=weights + (2 + config.epochs) * predictions,
        weights=weights,
        parameters=sum(parameter.numel() for parameter in trained),
    )


def _weights_size(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _step_seconds(trainer: SupervisedTrainer) -> float:
    """Return the seconds of a step, the mean over an epoch; some steps of LookSAM take two passes, others one."""
    if trainer.config.model.has_stem:
        times = stem_seconds(trainer.config, trainer.data)
        trainer.model.use_stem(min(times, key=times.__getitem__))
    trainer.start_epoch()
    batch, sam, device = next(trainer.batches()), trainer.state.sam, trainer.data.device
    if sam is None or sam.method != "looksam":
        return _median_seconds([lambda number: trainer.step(batch, number)], device)[0]

    def second_pass(number: int) -> None:
        sam.restart()
        trainer.step(batch, number)

    two, one = _median_seconds([second_pass, lambda number: trainer.step(batch, number)], device)
    steps = len(trainer.data.batch_sizes)
    share = math.ceil(steps / sam.every) / steps
    return share * two + (1.0 - share) * one


def _median_seconds(steps: Sequence[Callable[[int], object]], device: torch.device) -> list[float]:
    """Return the seconds of each of several kinds of steps in turns, which are called with a number in an epoch."""
    if device.type == "cuda":  # the memory of what was tried before does not count
        free_memory()
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(1 if device.type == "cpu" else UNCAPTURED_CALLS + 1):
        for step in steps:
            step(0)
    rounds = [[call_seconds(partial(step, n), device) for step in steps] for n in range(1, TIMED_STEPS + 1)]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def _peak_memory() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
