"""The pretraining loop: one encoder, epoch by epoch, with its whole state; alone, or as one of several workers.

Batches, masks and views of a step are those of the whole batch, drawn from (seed, part, epoch), of which each worker
takes its part. So neither the number of workers nor the size of micro-batches changes what is trained, but for
rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from raypipe.core.config import TrialConfig
from raypipe.core.errors import InterruptedEpochError, NonFiniteError, UserError
from raypipe.core.folds import Index
from raypipe.core.seeds import derive_seed
from raypipe.models.network import Dropout, Encoder
from raypipe.models.vit import ViT
from raypipe.pretraining.mae import MaeObjective
from raypipe.pretraining.objective import Objective, Passes, PretrainBatch, worker_sizes
from raypipe.pretraining.simclr import SimclrObjective
from raypipe.training.checkpoint import clone_tensors
from raypipe.training.determinism import use_deterministic_algorithms
from raypipe.training.fold_trainer import Interrupted, never
from raypipe.training.loader import WindowLoader
from raypipe.training.losses import mean_loss
from raypipe.training.optim import AdamW, set_learning_rate, split_by_decay
from raypipe.training.sampling import MIN_BATCH, even_batches
from raypipe.training.step import TrainState, take_step
from raypipe.training.trainer import make_network
from raypipe.training.transfer import to_device

if TYPE_CHECKING:
    from raypipe.data.window_store import WindowStore

EVALUATION_BATCH = 256
"""Windows whose features are computed at a time."""


def make_encoder(config: TrialConfig, windows: WindowStore) -> Encoder:
    """Build a new encoder for the windows of a store, on the CPU; its weights follow from the seed."""
    encoder = make_network(config, windows, torch.device("cpu"))
    assert isinstance(encoder, Encoder)  # `TrialConfig` allows no other network
    return encoder


def make_objective(encoder: Encoder, config: TrialConfig, world: int = 1) -> Objective:
    """Build the objective that a configuration asks for, for `world` workers.

    Raises
    ------
    ValueError
        It asks for none.
    """
    if config.pretrain.name == "mae":
        assert isinstance(encoder, ViT)  # `TrialConfig` allows no other network
        return MaeObjective(encoder, config.pretrain)
    if config.pretrain.name == "simclr":
        return SimclrObjective(encoder, config.pretrain, world)
    raise ValueError("pretrain/name is none")


class Pretrainer:
    """Train an encoder on windows without their targets.

    Parameters
    ----------
    config
        `pretrain`, `model`, `optim`, `epochs`, `batch_size` and `seed` are used.
    loader
        The windows.
    index
        Numbers of those that may be learned from.
    part
        Part of the seeds: a fold's number, or ``all``.
    rank, world
        This worker and the number of workers; more than one need an initialised `torch.distributed`.
    micro_batch
        Windows whose activations are kept at a time; None for all of a worker's.

    Raises
    ------
    UserError
        There are fewer windows than the workers of a batch need.
    """

    def __init__(
        self,
        config: TrialConfig,
        loader: WindowLoader,
        index: Index,
        *,
        part: object = "all",
        rank: int = 0,
        world: int = 1,
        micro_batch: int | None = None,
    ) -> None:
        self.config, self.loader, self.index, self.part = config, loader, index, part
        self.rank, self.world, self.epoch = rank, world, 0
        least = max(MIN_BATCH, world)
        self.batch_sizes = even_batches(len(index), config.batch_size, least)
        smallest = min([config.batch_size, *self.batch_sizes])
        if smallest < least:
            raise UserError(f"{smallest} window(s) a batch are too few to pretrain on with {world} worker(s)")
        self.encoder = make_encoder(config, loader.windows)
        for module in self.encoder.modules():
            if isinstance(module, Dropout):
                module.p = 0.0
        self.encoder.head.requires_grad_(False)
        self.objective = make_objective(self.encoder, config, world)
        use_deterministic_algorithms(loader.device)
        self.module: nn.Module = self.objective.module.to(loader.device)
        self.passes = Passes(self.module, world, micro_batch)
        optim = config.optim
        trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        groups = split_by_decay(self.module, [{"params": trained, "rate": 1.0}])
        optimizer = AdamW(groups, lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay)
        if loader.device.type == "cuda":
            optimizer.use_device_rate()
        self.state = TrainState(self.module, optimizer, device_type=loader.device.type, clip=optim.clip)

    @property
    def steps_per_epoch(self) -> int:
        """Return the optimiser steps per epoch."""
        return len(self.batch_sizes)

    def run_epoch(self, interrupted: Interrupted = never) -> float:
        """Train one epoch; return its mean loss.

        Raises
        ------
        NonFiniteError
            The loss or a gradient is not finite.
        InterruptedEpochError
            `interrupted` returned True.
        """
        self.module.train()
        losses: list[float | Tensor] = []
        for number, batch in enumerate(self.batches()):
            if interrupted():
                raise InterruptedEpochError
            losses.append(self.step(batch, number))
        loss = mean_loss(losses, self.batch_sizes)
        if not np.isfinite(loss):  # on a GPU, where steps do not wait for their outcome
            raise self._not_finite()
        self.epoch += 1
        return loss

    def batches(self) -> Iterator[PretrainBatch]:
        """Return this worker's parts of the next epoch's batches."""
        seed = derive_seed("pretrain", self.config.seed, self.part, self.epoch + 1)
        order = np.random.default_rng(seed).permutation(self.index)
        for number, batch in enumerate(np.split(order, np.cumsum(self.batch_sizes)[:-1])):
            sizes = worker_sizes(len(batch), self.world)
            first = sum(sizes[: self.rank])
            mine = slice(first, first + sizes[self.rank])
            step_seed = derive_seed("step", seed, number)
            drawn = tuple(
                to_device(rows[mine], self.loader.device) for rows in self.objective.draw(len(batch), step_seed)
            )
            yield PretrainBatch(batch[mine], first, batch, drawn, step_seed)

    def step(self, batch: PretrainBatch, number: int) -> float | Tensor:
        """Take step `number` (from 0) of the epoch; return the whole batch's mean loss."""
        steps, config = self.steps_per_epoch, self.config
        set_learning_rate(self.state.optimizer, config.optim, self.epoch * steps + number, config.epochs * steps)
        (result,) = take_step([self.state], lambda: [self._gradients(batch)])
        if result.failed:  # on all workers, since they share loss and gradients
            raise self._not_finite()
        return result.loss

    def _not_finite(self) -> NonFiniteError:
        return NonFiniteError(f"pretraining ({self.part}), epoch {self.epoch + 1}: the loss is not finite")

    def _gradients(self, batch: PretrainBatch) -> Tensor:
        loss = self.objective.gradients(self.passes, self.loader, batch)
        if self.world > 1:
            dist.all_reduce(loss)
        return loss

    def features(self, index: Index) -> NDArray[np.float32]:
        """Return the encoder's features (N, F) of windows."""
        micro_batch, batch_size = self.passes.micro_batch, self.config.batch_size
        size = max(1, EVALUATION_BATCH * min(micro_batch or batch_size, batch_size) // batch_size)
        return features(self.encoder, self.loader, index, size)

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue exactly after this epoch, as copies."""
        state = {"config": self.config.hash(), "part": str(self.part), "epoch": self.epoch, **self.state.state_dict()}
        return cast(dict[str, Any], clone_tensors(state))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to where `state` was taken.

        Raises
        ------
        ValueError
            The state belongs to another configuration or part.
        """
        if (state["config"], state["part"]) != (self.config.hash(), str(self.part)):
            raise ValueError("a checkpoint of another pretraining cannot continue this one")
        self.state.load_state_dict(state)
        self.epoch = state["epoch"]


@torch.no_grad()
def features(encoder: Encoder, loader: WindowLoader, index: Index, size: int = EVALUATION_BATCH) -> NDArray[np.float32]:
    """Return an encoder's features (N, F) of windows, `size` at a time, in evaluation mode."""
    training = encoder.training
    encoder.eval()
    batches = (index[start : start + size] for start in range(0, len(index), size))
    parts = [encoder.features(loader.gather(batch)).float().cpu() for batch in batches]
    encoder.train(training)
    return torch.cat(parts).numpy()
