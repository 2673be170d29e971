"""Choose how a trial is computed: the stem's algorithm, and folds stacked or one by one; measured once per shape.

Either choice changes numbers by rounding only. A run stores what was chosen for each shape of network and data. So a
trial that continues after a crash, and the trials after it, get the numbers of an undisturbed run.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import Literal

import torch

from raypipe.core.config import InitConfig, SamConfig, TrialConfig
from raypipe.core.errors import first_line, out_of_memory
from raypipe.core.options import StackOption, StemOption
from raypipe.core.record import FrozenModel
from raypipe.storage.records import OwnedRecord
from raypipe.storage.run_store import RunStore
from raypipe.training.device import available_bytes, pass_type
from raypipe.training.graphs import UNCAPTURED_CALLS
from raypipe.training.loader import FoldData, WindowLoader
from raypipe.training.stacked_trainer import StackedTrainer, stackable
from raypipe.training.trainer import SupervisedTrainer

log = logging.getLogger(__name__)

MAX_TIME_FRACTION = 0.9
"""The direct stem replaces the Fourier stem, and a stack folds one by one, if it takes less than this fraction."""
MAX_MEMORY_FRACTION = 0.8
"""A stack may use this fraction of a worker's part of a GPU."""
TIMING_LEARNING_RATE = 1e-30
"""Learning rate of the steps that are timed, so that they change no weights."""
MAX_TIMED_CALLS, MAX_TIMED_SECONDS = 5, 0.2
"""Limits of a measurement, which a sweep waits for: calls, and seconds after which there is no other call."""

StemName = Literal["fourier", "direct"]


class ComputeOptions(FrozenModel):
    """Options of how a trial is computed; `auto` measures."""

    stem: StemOption = "auto"
    stack: StackOption = "auto"


class ComputePlan(OwnedRecord):
    """The choice, and the seconds of each alternative that was measured (``compute/<key>.json``)."""

    format: Literal["raypipe-compute/3"] = "raypipe-compute/3"
    key: str = ""
    """Hash of the shape and of the options, by which the file is named."""
    stem: StemName
    stacked: bool
    what: str
    seconds: dict[str, float]


def choose_compute(
    run: RunStore,
    loader: WindowLoader,
    config: TrialConfig,
    folds: Sequence[int],
    options: ComputeOptions,
    claim: Callable[[str], bool] = lambda key: True,
    share: float = 1.0,
) -> ComputePlan:
    """Return how the folds of one worker are trained: as asked for, as the run has stored it, or as measured now.

    Parameters
    ----------
    run
        The run, which stores what is chosen.
    loader, config, folds
        The worker's windows, the trial's configuration, and the worker's folds.
    options
        What the user asks for.
    claim
        Called with the choice's key; True allows this worker to measure. After False the store is read again, for
        another worker's choice. Called repeatedly, it returns True in the end.
    share
        The worker's part of a GPU. A stack that would not fit into it is not chosen.
    """
    if not config.model.compute_parameters:
        return ComputePlan(stem="fourier", stacked=False, what=config.model.name, seconds={})
    what = _shape(loader, config, len(folds), share)
    key = hashlib.sha256(json.dumps([what, options.model_dump()]).encode()).hexdigest()[:12]
    while (plan := run.compute(ComputePlan, key)) is None:
        if claim(key):
            measured = _measure(run, loader, config, list(folds), options, what, share)
            if run.compute(ComputePlan, key) is None:  # a claim expires, and the first choice is kept
                run.write_compute(key, measured.model_copy(update={"key": key}))
                log.info("%s: %s", what, measured)
    return plan


def _shape(loader: WindowLoader, config: TrialConfig, n_folds: int, share: float) -> str:
    """Describe everything that a choice depends on."""
    device = "cpu"
    if loader.device.type == "cuda":
        device = torch.cuda.get_device_name(loader.device) + ("" if share >= 1 else f" ({share:g} of a GPU)")
    windows = loader.windows
    sizes = ", ".join(f"{name} {getattr(config.model, name)}" for name in config.model.compute_parameters)
    trained = str(pass_type(config, loader.device)).removeprefix("torch.")
    return (
        f"{device}, {torch.get_num_threads()} thread(s), {n_folds} fold(s) of {windows.n_channels} x "
        f"{windows.crop_samples} at {windows.sfreq:g} Hz, batches of {config.batch_size} in {trained}, "
        f"{config.model.name} of {sizes}"
    )


def _measure(
    run: RunStore,
    loader: WindowLoader,
    config: TrialConfig,
    folds: list[int],
    options: ComputeOptions,
    what: str,
    share: float,
) -> ComputePlan:
    # Without SAM, whose second pass would take the same time again, and from random weights, which take the same time.
    optim = config.optim.model_copy(update={"lr": TIMING_LEARNING_RATE})
    config = config.model_copy(update={"optim": optim, "sam": SamConfig(), "init": InitConfig()})
    subjects = loader.windows.subjects
    groups_N = run.folds.groups(subjects)
    fold_data = [
        FoldData(config, loader, *run.folds.split(subjects, fold), fold=fold, groups_N=groups_N) for fold in folds
    ]

    seconds: dict[str, float] = {}
    stem: StemName = "direct" if options.stem == "direct" else "fourier"
    if options.stem == "auto" and config.model.has_stem:
        seconds |= stem_seconds(config, fold_data[0])
        stem = "direct" if seconds["direct"] < MAX_TIME_FRACTION * seconds["fourier"] else "fourier"
    stacked = options.stack == "on" and len(folds) > 1
    if options.stack == "auto":
        stack_times, stacked = _measure_stack(config, fold_data, stem, what, share)
        seconds |= stack_times
    return ComputePlan(stem=stem, stacked=stacked, what=what, seconds={k: round(v, 6) for k, v in seconds.items()})


def _measure_stack(
    config: TrialConfig, fold_data: Sequence[FoldData], stem: StemName, what: str, share: float
) -> tuple[dict[str, float], bool]:
    """Measure a step of two folds, stacked and one by one; return the seconds, and whether to stack.

    Nothing is measured where no step could be stacked: with one fold, networks that vmap cannot run, or folds that
    have fewer windows than a batch, in unequal numbers.
    """
    # Two folds are enough: a stack saves kernel launches, which cost nothing for a second fold.
    pair = [SupervisedTrainer(config, data, stem=stem) for data in fold_data[:2]]
    batch_sizes = {min(config.batch_size, len(data.train)) for data in fold_data}
    if not stackable(pair) or len(batch_sizes) > 1:
        return {}, False
    device = fold_data[0].device
    stack = StackedPair(pair, device)
    try:
        fits = device.type == "cpu" or _stack_fits(stack, len(fold_data), what, share)
        seconds = stack.seconds()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        log.info("%s: two folds do not fit together: %s", what, first_line(error))
        return {}, False
    return seconds, fits and seconds["stacked"] < MAX_TIME_FRACTION * seconds["one by one"]


def _stack_fits(stack: StackedPair, n_folds: int, what: str, share: float) -> bool:
    """Return whether a stack of all folds fits in this worker's part of the GPU."""
    needed, available = stack.bytes_of(n_folds), available_bytes(stack.device, share)
    log.info("%s: a stack of %d folds needs %d MB of %d MB", what, n_folds, needed >> 20, available >> 20)
    return needed <= MAX_MEMORY_FRACTION * available


class StackedPair:
    """Two folds that are stepped as a stack and one by one, to measure both."""

    def __init__(self, pair: Sequence[SupervisedTrainer], device: torch.device) -> None:
        self.pair, self.device = list(pair), device
        self.batches = [next(trainer.batches()) for trainer in pair]
        self.stack = StackedTrainer(pair)
        for trainer in pair:
            trainer.start_epoch()

    def seconds(self) -> dict[str, float]:
        """Measure the seconds of a step of both folds."""
        both = list(zip(self.pair, self.batches, strict=True))
        return {
            "stacked": _quickest(lambda: self.stack.step(self.batches, 0), self.device),
            "one by one": _quickest(lambda: [trainer.step(batch, 0) for trainer, batch in both], self.device),
        }

    def bytes_of(self, n_folds: int) -> int:
        """Measure the GPU memory of one fold and of two, and extrapolate it to `n_folds`.

        It comes before `seconds`: the memory of a step that is a CUDA graph does not count as allocated.
        """
        one_fold = functools.partial(self.pair[0].step, self.batches[0], 0)
        both_folds = functools.partial(self.stack.step, self.batches, 0)
        for work in (both_folds, one_fold):  # which allocate the optimisers' moments and the libraries' workspaces
            work()
        one, two = _peak_bytes(one_fold, self.device), _peak_bytes(both_folds, self.device)
        # Weights, gradients, AdamW's two moments, and the weights that SAM saves while they are perturbed; a batch.
        state = 5 * sum(p.numel() * p.element_size() for p in self.pair[0].model.parameters())
        batch = sum(tensor.nbytes for tensor in self.batches[0] if tensor is not None)
        return stack_bytes(one, two, state, batch, n_folds)


def stack_bytes(one: int, two: int, state: int, batch: int, count: int) -> int:
    """Return the peak memory of a stack of `count` folds in bytes, as a CUDA graph, which has batches of its own.

    Parameters
    ----------
    one, two
        Peak of a step of one fold, and of two as a stack, while both are in memory.
    state
        Bytes of a fold's weights, gradients and optimiser.
    batch
        Bytes of a fold's batch.
    """
    return two + (count - 2) * (max(0, two - one) + state + batch) + count * batch


def _peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Return the peak of allocated GPU memory during a call."""
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def stem_seconds(config: TrialConfig, data: FoldData) -> dict[str, float]:
    """Measure a step with each algorithm of the stem, in the precision and in the way that the trial is trained."""
    seconds: dict[str, float] = {}
    for algorithm in ("fourier", "direct"):
        trainer = SupervisedTrainer(config, data, stem=algorithm)
        trainer.start_epoch()
        batch = next(trainer.batches())
        seconds[algorithm] = _quickest(functools.partial(trainer.step, batch, 0), data.device)
    return seconds


def _quickest(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the quickest of a few calls; long ones are called once.

    First come calls that are not counted: one, and on a GPU those before the work has become a CUDA graph.
    """
    runs: list[float] = []
    for _ in range(1 if device.type == "cpu" else UNCAPTURED_CALLS + 2):
        work()
    while len(runs) < MAX_TIMED_CALLS and sum(runs) < MAX_TIMED_SECONDS:
        runs.append(call_seconds(work, device))
    return min(runs)


def call_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of a call, with its work on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
