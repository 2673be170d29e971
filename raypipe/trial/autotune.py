"""How a trial is computed: the stem's algorithm, and folds stacked or one by one; measured once, then kept to.

Either choice changes numbers by rounding only. A run keeps what was chosen for each shape of network and data, so that
a trial that goes on after a crash, and the trials after it, repeat what an undisturbed run would have given.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict

from raypipe.core.config import InitConfig, SamConfig, TrialConfig
from raypipe.core.record import Record
from raypipe.models.conformer import Conformer
from raypipe.storage.run_store import RunStore
from raypipe.training.loader import WindowLoader
from raypipe.training.stacked_trainer import StackedTrainer, stackable
from raypipe.training.trainer import FoldTrainer

log = logging.getLogger(__name__)

MARGIN = 0.9
"""A way is taken instead of the usual one (Fourier stem; on a CPU one by one) where it takes less than this share."""
FILL = 0.8
"""A stack of all folds may fill this share of a worker's part of a GPU, by the memory that two of them took."""
STILL = 1e-30
"""Learning rate of the steps that are timed."""


MOST_CALLS, ENOUGH = 5, 0.2
"""A way is timed by this many calls at most, and by none after this many seconds: a sweep waits for it."""


class ComputeOptions(BaseModel):
    """What the user says about it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stem: Literal["auto", "fourier", "direct"] = "auto"
    stack: Literal["auto", "on", "off"] = "auto"


class ComputePlan(Record):
    """What was chosen, and the seconds of each way that was measured (``compute/<key>.json``)."""

    format: Literal["raypipe-compute/1"] = "raypipe-compute/1"
    stem: Literal["fourier", "direct"]
    stacked: bool
    what: str
    seconds: dict[str, float]


def choose_compute(
    run: RunStore,
    feed: WindowLoader,
    config: TrialConfig,
    folds: Sequence[int],
    wishes: ComputeOptions,
    claim: Callable[[str], bool] = lambda key: True,
    share: float = 1.0,
) -> ComputePlan:
    """How the folds of one worker are trained: as wished, as this run has chosen before, or as measured now.

    Parameters
    ----------
    run
        Keeps what is chosen.
    feed, config, folds
        Of the trial and the worker.
    wishes
        `auto` measures.
    claim
        Asked with the choice's key before it is measured; False waits for another worker's measurement and looks
        again. Asked again and again, it answers True in the end.
    share
        Of a GPU that the worker has: a stack that would not fit in it is not chosen.
    """
    if config.model.name != "conformer":  # no stem, no stack: nothing to choose
        return ComputePlan(stem="fourier", stacked=False, what=config.model.name, seconds={})
    device = "cpu"
    if feed.device.type == "cuda":
        device = torch.cuda.get_device_name(feed.device) + ("" if share >= 1 else f" ({share:g} of it)")
    windows, model = feed.windows, config.model
    what = (
        f"{device}, {torch.get_num_threads()} thread(s), {len(folds)} fold(s) of {windows.n_channels} x "
        f"{windows.crop_samples} at {windows.sfreq:g} Hz, batches of {config.batch_size} in {config.precision}, "
        f"{'' if model.name == 'conformer' else model.name + ', '}kernels {model.kernels}, {model.filters} filters, "
        f"depth {model.depth}"
    )
    key = hashlib.sha256(json.dumps([what, wishes.model_dump()]).encode()).hexdigest()[:12]
    while (known := run.compute(ComputePlan, key)) is None:
        if claim(key):
            found = _measure(run, feed, config, list(folds), wishes, what, share)
            if run.compute(ComputePlan, key) is None:  # a claim does not last for ever, and the first choice stands
                run.write_compute(key, found)
                log.info("%s: %s", what, found)
    return known


def _measure(
    run: RunStore,
    feed: WindowLoader,
    config: TrialConfig,
    folds: list[int],
    wishes: ComputeOptions,
    what: str,
    share: float,
) -> ComputePlan:
    # The steps that are timed change nothing, or the loss might leave the numbers, which is for the trial to find out.
    # SAM's second pass would cost either way the same again; where training starts makes no difference to its pace.
    still = config.optim.model_copy(update={"lr": STILL})
    config = config.model_copy(update={"optim": still, "sam": SamConfig(), "init": InitConfig()})

    def trainer(fold: int, stem: str = "fourier") -> FoldTrainer:
        return FoldTrainer(config, feed, *run.folds.split(feed.windows.subjects, fold), fold=fold, stem=stem)

    seconds: dict[str, float] = {}
    stem: Literal["fourier", "direct"] = "direct" if wishes.stem == "direct" else "fourier"
    if wishes.stem == "auto" and config.model.name == "conformer":
        one = trainer(folds[0])
        seconds |= stem_seconds(one.model, next(one.batches()).x)
        stem = "direct" if seconds["direct"] < MARGIN * seconds["fourier"] else "fourier"
    stacked = wishes.stack == "on" and len(folds) > 1
    # Two folds tell: what a stack saves is the launching of kernels, which a second fold has for nothing.
    pair = (
        [trainer(fold, stem) for fold in folds[:2]]
        if wishes.stack == "auto" and config.model.name == "conformer"
        else []
    )
    if stackable(pair):
        batches = [next(t.batches()) for t in pair]
        stack = StackedTrainer(pair)
        for t in pair:
            t.begin()
        seconds["stacked"] = _quickest(lambda: stack.step(batches, 0), feed.device)
        seconds["one by one"] = _quickest(
            lambda: [t.step(batch, 0) for t, batch in zip(pair, batches, strict=True)], feed.device
        )
        stacked = seconds["stacked"] < MARGIN * seconds["one by one"]
        if stacked and feed.device.type == "cuda":
            single = _peak(lambda: pair[0].step(batches[0], 0), feed.device)
            double = _peak(lambda: stack.step(batches, 0), feed.device)
            # Weights, gradients, AdamW's two moments, and what SAM keeps while it has climbed.
            state = 5 * sum(p.numel() * p.element_size() for p in pair[0].model.parameters())
            needed, there = stack_bytes(single, double, state, len(folds)), _room(feed.device, share)
            log.info("%s: a stack of %d folds needs %d MB of %d MB", what, len(folds), needed >> 20, there >> 20)
            stacked = needed <= FILL * there
    return ComputePlan(stem=stem, stacked=stacked, what=what, seconds={k: round(v, 6) for k, v in seconds.items()})


def stack_bytes(one: int, two: int, state: int, count: int) -> int:
    """Bytes that a stack of `count` folds takes at its most.

    Parameters
    ----------
    one, two
        Peaks of a step of one fold, and of two as a stack, with both in memory.
    state
        Of a fold's weights, gradients and optimizer.
    """
    return two + (count - 2) * (max(0, two - one) + state)


def _peak(work: Callable[[], object], device: torch.device) -> int:
    """Most bytes of the GPU that are allocated while `work` is done."""
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def _room(device: torch.device, share: float) -> int:
    """Bytes of the GPU that are this process's: its part of a shared one, else what nobody else has."""
    free, total = torch.cuda.mem_get_info(device)
    return int(share * total) if share < 1 else free + torch.cuda.memory_reserved(device)


def stem_seconds(model: Conformer, x_BCT: torch.Tensor) -> dict[str, float]:
    """Seconds of one transform, forward and backward pass of the stem by each algorithm; the model stays as it was."""
    stem, before = model.stem, model.stem.algorithm
    parameters = list(stem.parameters())
    seconds: dict[str, float] = {}

    def there_and_back() -> None:
        with torch.enable_grad():
            torch.autograd.grad(stem(x_BCT).sum(), parameters)  # of a tensor, it would import sympy: a second

    try:
        for stem.algorithm in ("fourier", "direct"):
            seconds[stem.algorithm] = _quickest(there_and_back, x_BCT.device)
    finally:
        stem.algorithm = before
    return seconds


def _quickest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the quickest of a few calls, after one that is not counted; long ones are called once."""
    runs: list[float] = []
    work()
    while len(runs) < MOST_CALLS and sum(runs) < ENOUGH:
        _synchronise(device)
        start = time.perf_counter()
        work()
        _synchronise(device)
        runs.append(time.perf_counter() - start)
    return min(runs)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
