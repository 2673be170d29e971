"""The pretraining loop: one encoder, one epoch, its whole state; alone, or as one of several workers.

Batches, masks and views of a step are those of the whole batch, drawn from (seed, part, epoch), of which each worker
takes its share; so neither the number of workers nor the size of micro-batches changes what is trained, but by
rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from raypipe.core.config import TrialConfig
from raypipe.core.errors import InterruptedEpochError, NonFiniteError, UserError
from raypipe.core.folds import Index
from raypipe.core.seeds import derive_seed
from raypipe.models.conformer import Conformer
from raypipe.models.network import Dropout
from raypipe.models.registry import build_model
from raypipe.models.vit import ViT
from raypipe.pretraining.augmentations import augment
from raypipe.pretraining.mae import MaskedAutoencoder, draw_masks
from raypipe.pretraining.running_batchnorm import RunningBatchNorm
from raypipe.pretraining.simclr import SimCLR, gather, nt_xent
from raypipe.training.checkpoint import clone_tensors
from raypipe.training.loader import WindowLoader
from raypipe.training.optim import AdamW, lr_factor
from raypipe.training.trainer import place_electrodes

EVALUATION_BATCH = 256


class Drawn(NamedTuple):
    """A worker's share of a step's batch."""

    windows: Index
    """Its windows."""
    first: int
    """Number, in the whole batch, of the first of them."""
    batch: Index
    """The whole batch."""
    chance: tuple[Tensor, ...]
    """MAE: numbers of visible and masked patches of its windows."""
    seed: int
    """Of the step; views of a window follow from it and the window's number in the batch."""


def split(batch: int, world: int) -> list[int]:
    """Windows of a batch that each of `world` workers takes."""
    return [batch // world + (rank < batch % world) for rank in range(world)]


def make_encoder(config: TrialConfig, windows: Any) -> Conformer | ViT:
    """A new encoder for the windows of a store, a ViT's electrodes in their places; weights follow from the seed."""
    torch.manual_seed(derive_seed("weights", config.seed))
    encoder = cast(
        Conformer | ViT,
        build_model(
            config.model,
            n_channels=windows.n_channels,
            n_times=windows.crop_samples,
            n_outputs=windows.n_outputs,
            sfreq=windows.sfreq,
        ),
    )
    if isinstance(encoder, ViT):
        place_electrodes(encoder, windows)
    return encoder


class Pretrainer:
    """Trains an encoder on windows without looking at their targets.

    Parameters
    ----------
    config
        `pretrain`, `model`, `optim`, `epochs`, `batch_size` and `seed` count.
    feed
        The windows.
    index
        Which of them may be learnt from.
    part
        Names the random streams: a fold's number, or ``all``.
    rank, world
        This worker and how many there are; more than one need an initialised `torch.distributed`.
    micro_batch
        Windows whose activations are kept at a time; None for all of a worker's share.

    Raises
    ------
    UserError
        Fewer windows than a batch's workers need.
    """

    def __init__(
        self,
        config: TrialConfig,
        feed: WindowLoader,
        index: Index,
        *,
        part: object = "all",
        rank: int = 0,
        world: int = 1,
        micro_batch: int | None = None,
    ) -> None:
        self.config, self.feed, self.index, self.part = config, feed, index, part
        self.rank, self.world, self.epoch = rank, world, 0
        self.device = feed.device
        self.batch_size = min(config.batch_size, len(index))
        if self.batch_size < max(2, world):
            raise UserError(f"{self.batch_size} window(s) a batch are too few to pretrain on with {world} worker(s)")
        self.sizes = split(self.batch_size, world)
        self.micro_batch = micro_batch
        self.encoder = make_encoder(config, feed.windows)
        for module in self.encoder.modules():
            if isinstance(module, Dropout):
                module.p = 0.0
        self.encoder.head.requires_grad_(False)
        chosen = config.pretrain
        self.module: nn.Module
        self.lagged = RunningBatchNorm(self.encoder.batch_norm, world) if isinstance(self.encoder, Conformer) else None
        if chosen.name == "mae":
            assert isinstance(self.encoder, ViT)  # `TrialConfig` has seen to it
            self.module = MaskedAutoencoder(self.encoder, width=chosen.decoder_width, depth=chosen.decoder_depth)
        elif chosen.name == "simclr":
            self.module = SimCLR(self.encoder, projection=chosen.projection)
        else:
            raise ValueError("pretrain/name is none")
        self.module.to(self.device)
        self.parallel: nn.Module = self.module
        if world > 1:
            from torch.nn.parallel import DistributedDataParallel

            self.parallel = DistributedDataParallel(self.module)
        optim = config.optim
        learned = [p for p in self.module.parameters() if p.requires_grad]
        self.optimizer = AdamW(learned, lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps an epoch; a last, smaller batch is left out."""
        return max(1, len(self.index) // self.batch_size)

    def run_epoch(self, interrupted: Callable[[], bool] = lambda: False) -> float:
        """Train one epoch; its mean loss.

        Raises
        ------
        NonFiniteError
            The loss is no number.
        InterruptedEpochError
            `interrupted`, asked before every batch, said so.
        """
        self.module.train()
        losses = []
        for step, drawn in enumerate(self.batches()):
            if interrupted():
                raise InterruptedEpochError
            losses.append(self.step(drawn, step))
        self.epoch += 1
        return float(np.mean(losses))

    def batches(self) -> Iterator[Drawn]:
        """This worker's shares of the next epoch's batches."""
        seed = derive_seed("pretrain", self.config.seed, self.part, self.epoch + 1)
        order = np.random.default_rng(seed).permutation(self.index)
        first = sum(self.sizes[: self.rank])
        mine = slice(first, first + self.sizes[self.rank])
        for step in range(self.steps_per_epoch):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            step_seed = derive_seed("step", seed, step)
            chance: tuple[Tensor, ...] = ()
            if self.config.pretrain.name == "mae":
                generator = torch.Generator().manual_seed(step_seed)
                drawn = draw_masks(len(batch), self.encoder.n_tokens, self.config.pretrain.mask, generator)
                chance = tuple(numbers[mine].to(self.device) for numbers in drawn)
            yield Drawn(batch[mine], first, batch, chance, step_seed)

    def step(self, drawn: Drawn, step: int) -> float:
        """Take the epoch's step number `step`; the whole batch's mean loss."""
        optim = self.config.optim
        total = self.config.epochs * self.steps_per_epoch
        factor = lr_factor(self.epoch * self.steps_per_epoch + step, total, optim.warmup, optim.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = optim.lr * factor
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._mae(drawn) if self.config.pretrain.name == "mae" else self._simclr(drawn)
        if self.world > 1:
            dist.all_reduce(loss)
        learned = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(learned, optim.clip or float("inf"))
        if not (torch.isfinite(loss) and torch.isfinite(norm)):  # of all workers: they agree
            raise NonFiniteError(f"pretraining ({self.part}), epoch {self.epoch + 1}: the loss is not finite")
        self.optimizer.step()
        return float(loss)

    def _parts(self, n: int) -> Iterator[tuple[slice, Any]]:
        """Micro-batches, and within what each is passed: gradients are exchanged with the last."""
        size = min(self.micro_batch or n, n)
        for start in range(0, n, size):
            last = start + size >= n
            alone = self.world > 1 and not last
            within: Any = cast(Any, self.parallel).no_sync() if alone else nullcontext()
            yield slice(start, min(n, start + size)), within

    def _mae(self, drawn: Drawn) -> Tensor:
        x_BCT = self.feed.gather(drawn.windows)
        total = torch.zeros((), device=self.device)
        for rows, within in self._parts(len(x_BCT)):
            with within:
                losses_B = self.parallel(x_BCT[rows], *(numbers[rows] for numbers in drawn.chance))
                loss = losses_B.sum() / len(drawn.batch)
                (loss * self.world).backward()  # DDP takes the mean over workers
            total += loss.detach()
        return total

    def _views(self, drawn: Drawn) -> Tensor:
        """Both views (2n, C, T) of this worker's windows: all of the one, then all of the other."""
        x_BCT, chosen = self.feed.gather(drawn.windows), self.config.pretrain
        both: tuple[list[Tensor], list[Tensor]] = ([], [])
        for number, x_CT in enumerate(x_BCT, drawn.first):
            generator = torch.Generator().manual_seed(derive_seed("view", drawn.seed, number))
            for views in both:
                views += [
                    augment(
                        x_CT[None],
                        self.feed.windows.sfreq,
                        generator,
                        strength=chosen.strength,
                        time_shift=chosen.time_shift,
                    )
                ]
        return torch.cat([*both[0], *both[1]])

    def _settle(self, x_VCT: Tensor) -> None:
        """Have a BatchNorm go by what it has seen; by this batch, whole, where that is nothing."""
        if self.lagged is None:
            return
        self.lagged.layer.eval()
        if self.lagged.empty:
            with torch.no_grad(), self.lagged.looking():
                self.encoder.front(x_VCT)
            self.lagged.update()

    def _simclr(self, drawn: Drawn) -> Tensor:
        x_VCT, n, chosen = self._views(drawn), len(drawn.windows), self.config.pretrain
        # The loss needs all of the batch at once. Where activations of all do not fit, vectors are made twice: first
        # without gradients, then piece by piece with the gradient that the loss has at them (Gao et al. 2021,
        # arXiv:2101.06983).
        pieces = list(self._parts(2 * n))
        self._settle(x_VCT)
        with self.lagged.looking() if self.lagged else nullcontext():
            if len(pieces) == 1:
                z_VP = self.parallel(x_VCT)
            else:
                with torch.no_grad():
                    z_VP = torch.cat([self.module(x_VCT[rows]) for rows, _ in pieces])
        leaf_VP = z_VP.detach().requires_grad_()
        every_NP = torch.cat([gather(half_nP, self.sizes) for half_nP in leaf_VP.split(n)])
        subjects = np.unique(self.feed.windows.subjects[drawn.batch], return_inverse=True)[1]
        losses_A = nt_xent(
            leaf_VP,
            every_NP,
            drawn.first,
            n,
            temperature=chosen.temperature,
            subject_N=torch.as_tensor(subjects, device=self.device),
            negatives=chosen.negatives,
            weight=chosen.weight,
        )
        loss = losses_A.sum() / (2 * len(drawn.batch))
        (gradient_VP,) = torch.autograd.grad(loss * self.world, leaf_VP)
        if len(pieces) == 1:
            z_VP.backward(gradient_VP)
        else:
            for rows, within in pieces:
                with within:
                    self.parallel(x_VCT[rows]).backward(gradient_VP[rows])
        if self.lagged:
            self.lagged.update()
        return loss.detach()

    @torch.no_grad()
    def features(self, index: Index) -> NDArray[np.float32]:
        """Features (N, F) of windows."""
        return features(self.encoder, self.feed, index)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on exactly after this epoch."""
        state = {
            "config": self.config.hash(),
            "part": str(self.part),
            "epoch": self.epoch,
            "model": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        return cast(dict[str, Any], clone_tensors(state))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state` was taken.

        Raises
        ------
        ValueError
            The state belongs to another configuration or part.
        """
        if (state["config"], state["part"]) != (self.config.hash(), str(self.part)):
            raise ValueError("a checkpoint of another pretraining cannot continue this one")
        self.module.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch = state["epoch"]


@torch.no_grad()
def features(encoder: Conformer | ViT, feed: WindowLoader, index: Index) -> NDArray[np.float32]:
    """Features (N, F) of windows, in evaluation mode."""
    training = encoder.training
    encoder.eval()
    pieces = (index[start : start + EVALUATION_BATCH] for start in range(0, len(index), EVALUATION_BATCH))
    parts = [encoder.features(feed.gather(piece)).float().cpu() for piece in pieces]
    encoder.train(training)
    return torch.cat(parts).numpy()
