"""Interface of pretraining objectives, and the passes of their module: in micro-batches, on one or more workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol, cast

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raypipe.core.folds import Index
from raypipe.training.loader import WindowLoader


def worker_sizes(batch: int, world: int) -> list[int]:
    """Return how many windows of a batch each of `world` workers takes."""
    return [batch // world + (rank < batch % world) for rank in range(world)]


class PretrainBatch(NamedTuple):
    """One worker's part of a step's batch."""

    windows: Index
    """Numbers of its windows."""
    first: int
    """Position in the whole batch of the first of them."""
    batch: Index
    """Numbers of all windows of the batch."""
    drawn: tuple[Tensor, ...]
    """Rows of what the objective has drawn (`Objective.draw`), for its windows."""
    seed: int
    """Seed of the step."""


class Passes:
    """Forward passes of a module, divided into micro-batches; several workers exchange gradients with the last one.

    Parameters
    ----------
    module
        The module that is trained.
    world
        Number of workers; more than one need an initialised `torch.distributed`.
    micro_batch
        Windows (or views) whose activations are kept at a time; None for all of a worker's.
    """

    def __init__(self, module: nn.Module, world: int, micro_batch: int | None) -> None:
        self.module, self.world, self.micro_batch = module, world, micro_batch
        self.parallel = DistributedDataParallel(module) if world > 1 else module

    def parts(self, n: int) -> Iterator[tuple[slice, AbstractContextManager[None]]]:
        """Return the rows of each micro-batch of `n`, and the context that its passes need."""
        size = min(self.micro_batch or n, n)
        for start in range(0, n, size):
            wait = self.world > 1 and start + size < n
            context = cast(DistributedDataParallel, self.parallel).no_sync() if wait else nullcontext()
            yield slice(start, min(n, start + size)), cast("AbstractContextManager[None]", context)


class Objective(Protocol):
    """A self-supervised objective: a module around an encoder, and its loss."""

    @property
    def module(self) -> nn.Module:
        """Return the module that is trained: the encoder, and layers that are dropped after pretraining."""

    def draw(self, n: int, seed: int) -> tuple[Tensor, ...]:
        """Draw what a step needs for each of the `n` windows of its batch, as tensors with `n` rows."""

    def gradients(self, passes: Passes, loader: WindowLoader, batch: PretrainBatch) -> Tensor:
        """Add the gradients of the mean loss over the whole batch; return this worker's part of that loss."""
