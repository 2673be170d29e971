"""SimCLR (Chen et al. 2020, arXiv:2002.05709): NT-Xent over batches that are distributed over workers."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from raypipe.core.config import PretrainConfig
from raypipe.core.seeds import derive_seed
from raypipe.models.network import Encoder
from raypipe.pretraining.augmentations import augment
from raypipe.pretraining.objective import Passes, PretrainBatch, worker_sizes
from raypipe.pretraining.running_batchnorm import RunningBatchNorm
from raypipe.training.loader import WindowLoader

Negatives = Literal["all", "other-subject", "same-subject"]


class _Gather(torch.autograd.Function):
    """Gather the rows of all workers, in order of rank; the gradient of a row is the sum over all workers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes, rank = sizes, dist.get_rank()
        if sizes[rank] != len(x):
            raise ValueError(f"worker {rank} holds {len(x)} rows, not {sizes[rank]}")
        padded = x.new_zeros((max(sizes), *x.shape[1:]))
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        rank = dist.get_rank()
        start = sum(ctx.sizes[:rank])
        return total[start : start + ctx.sizes[rank]], None


def gather(x: Tensor, sizes: list[int]) -> Tensor:
    """Return the rows of all workers, with gradients; in a single process, `x` itself.

    Parameters
    ----------
    x
        (n, ...) this worker's rows.
    sizes
        Number of rows of every worker.

    Raises
    ------
    ValueError
        `x` has another number of rows than `sizes` says.
    """
    if len(sizes) == 1:
        return x
    out: Tensor = _Gather.apply(x, sizes)  # type: ignore[no-untyped-call]
    return out


def nt_xent(
    anchor_AF: Tensor,
    both_2NF: Tensor,
    first: int,
    n_local: int,
    *,
    temperature: float = 0.5,
    subject_N: Tensor | None = None,
    negatives: Negatives = "all",
    weight: float = 2.0,
) -> Tensor:
    """Return the loss of each anchor (2n,): cross-entropy of its partner among all other views.

    Chen et al. 2020, eq. 1.

    Parameters
    ----------
    anchor_AF
        (2n, F) both views of `n_local` windows, of unit length: first all of one view, then all of the other.
    both_2NF
        (2N, F) both views of all N windows of the batch, in the same order.
    first
        Position in the batch of the first local window.
    n_local
        Number of windows whose views are anchors.
    temperature
        Temperature of the softmax.
    subject_N
        (N,) subject of each window of the batch, as a number.
    negatives
        `all`; `other-subject`: other windows of the anchor's subject are no negatives; `same-subject`: they count
        `weight` times, so that recognising the subject does not solve the task (after Cheng et al. 2020,
        arXiv:2007.04871).
    weight
        Weight of a negative of the same subject, for `same-subject`.

    Raises
    ------
    ValueError
        `negatives` needs subjects, and there are none.
    """
    n = len(both_2NF) // 2
    local = torch.arange(first, first + n_local, device=both_2NF.device)
    own_A = torch.cat((local, local + n))
    partner_A = torch.cat((local + n, local))
    logits_AV = anchor_AF @ both_2NF.T / temperature
    rows = torch.arange(2 * n_local, device=both_2NF.device)
    positive_A = logits_AV[rows, partner_A]
    if negatives != "all":
        if subject_N is None:
            raise ValueError(f"negatives '{negatives}' need the subjects of the batch")
        subject_V = torch.cat((subject_N, subject_N))
        same_AV = subject_V[own_A][:, None] == subject_V
        logits_AV = (
            logits_AV.masked_fill(same_AV, -torch.inf)
            if negatives == "other-subject"
            else logits_AV + same_AV.to(logits_AV.dtype) * math.log(weight)
        )
    # The partner is neither excluded nor weighted, and the anchor itself is always excluded.
    logits_AV = logits_AV.clone()
    logits_AV[rows, partner_A] = positive_A
    logits_AV[rows, own_A] = -torch.inf
    return logits_AV.logsumexp(1) - positive_A


class SimCLR(nn.Module):
    """An encoder and the projection head that is dropped after pretraining (Chen et al. 2020, sec. 4.2)."""

    def __init__(self, encoder: Encoder, *, projection: int = 32) -> None:
        super().__init__()
        self.encoder = encoder
        self.project = nn.Sequential(
            nn.Linear(encoder.width, encoder.width), nn.ReLU(), nn.Linear(encoder.width, projection)
        )

    def forward(self, x_BCT: Tensor) -> Tensor:
        """Map windows (B, C, T) to vectors of unit length (B, P)."""
        return F.normalize(self.project(self.encoder.features(x_BCT)), dim=1)


class SimclrObjective:
    """The objective of SimCLR.

    Parameters
    ----------
    encoder
        The network to be pretrained.
    config
        Augmentations, negatives and temperature.
    world
        Number of workers that share a batch.
    """

    def __init__(self, encoder: Encoder, config: PretrainConfig, world: int = 1) -> None:
        self.encoder, self.config, self.world = encoder, config, world
        self.module = SimCLR(encoder, projection=config.projection)
        layer = encoder.batch_statistics()
        self.running_norm = None if layer is None else RunningBatchNorm(layer, world)

    def draw(self, n: int, seed: int) -> tuple[Tensor, ...]:
        """Draw nothing: the views of a window follow from the step's seed and the window's position."""
        return ()

    def views(self, loader: WindowLoader, batch: PretrainBatch) -> Tensor:
        """Return both views (2n, C, T) of this worker's windows: all of one view, then all of the other."""
        both: tuple[list[Tensor], list[Tensor]] = ([], [])
        for position, x_CT in enumerate(loader.gather(batch.windows), batch.first):
            generator = torch.Generator().manual_seed(derive_seed("view", batch.seed, position))
            for views in both:
                view_1CT = augment(
                    x_CT[None],
                    loader.windows.sfreq,
                    generator,
                    strength=self.config.strength,
                    time_shift=self.config.time_shift,
                )
                views.append(view_1CT)
        return torch.cat([*both[0], *both[1]])

    def gradients(self, passes: Passes, loader: WindowLoader, batch: PretrainBatch) -> Tensor:
        """Add the gradients of a batch; return this worker's part of the mean loss.

        The loss needs all of the batch at once. Where the activations of all views do not fit, vectors are computed
        twice: first without gradients, then in micro-batches with the gradient of the loss with respect to them (Gao et
        al. 2021, arXiv:2101.06983).
        """
        x_VCT = self.views(loader, batch)
        parts = list(passes.parts(len(x_VCT)))
        self._start_statistics(x_VCT)
        with self.running_norm.recording() if self.running_norm else nullcontext():
            if len(parts) == 1:
                z_VP = passes.parallel(x_VCT)
            else:
                with torch.no_grad():
                    z_VP = torch.cat([passes.module(x_VCT[rows]) for rows, _ in parts])
        leaf_VP = z_VP.detach().requires_grad_()
        loss = self._loss(leaf_VP, loader, batch)
        (gradient_VP,) = torch.autograd.grad(loss * passes.world, leaf_VP)
        if len(parts) == 1:
            z_VP.backward(gradient_VP)
        else:
            for rows, context in parts:
                with context:
                    passes.parallel(x_VCT[rows]).backward(gradient_VP[rows])
        if self.running_norm:
            self.running_norm.update()
        return loss.detach()

    def _start_statistics(self, x_VCT: Tensor) -> None:
        """Let a BatchNorm normalise by running statistics; before there are any, take them from this batch."""
        if self.running_norm is None:
            return
        self.running_norm.layer.eval()
        if self.running_norm.empty:
            with torch.no_grad(), self.running_norm.recording():
                self.encoder.front(x_VCT)
            self.running_norm.update()

    def _loss(self, z_VP: Tensor, loader: WindowLoader, batch: PretrainBatch) -> Tensor:
        n = len(batch.windows)
        sizes = worker_sizes(len(batch.batch), self.world)
        every_NP = torch.cat([gather(half_nP, sizes) for half_nP in torch.split(z_VP, n)])
        subjects = np.unique(loader.windows.subjects[batch.batch], return_inverse=True)[1]
        losses_A = nt_xent(
            z_VP,
            every_NP,
            batch.first,
            n,
            temperature=self.config.temperature,
            subject_N=torch.as_tensor(subjects, device=loader.device),
            negatives=self.config.negatives,
            weight=self.config.weight,
        )
        return losses_A.sum() / (2 * len(batch.batch))
