"""SimCLR (Chen et al. 2020, arXiv:2002.05709): NT-Xent over batches that several workers share."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from raypipe.models.conformer import Conformer
from raypipe.models.vit import ViT

Negatives = Literal["all", "other-subject", "same-subject"]


class _Gather(torch.autograd.Function):
    """Rows of all workers, in order of rank; the gradient of a row is the sum of what all workers ask of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes, rank = sizes, dist.get_rank()
        if sizes[rank] != len(x):
            raise ValueError(f"worker {rank} holds {len(x)} rows, not {sizes[rank]}")
        most = max(sizes)
        padded = x.new_zeros((most, *x.shape[1:]))
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
    """Rows of all workers, with gradients; of one process, `x` itself.

    Parameters
    ----------
    x
        This worker's rows.
    sizes
        Rows of every worker.
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
    """Loss of each anchor (2n,), Chen et al. 2020, eq. 1: cross-entropy of its partner among all other views.

    Parameters
    ----------
    anchor_AF
        Both views of `n_local` windows, first all of the one and then all of the other, each of unit length.
    both_2NF
        Both views of all N windows of the batch in the same manner.
    first
        Number, in the batch, of the first of the local windows.
    n_local
        Windows whose views are anchors.
    temperature
        Of the softmax.
    subject_N
        Subject of each window of the batch, as a number.
    negatives
        `all`; `other-subject`: other windows of the anchor's subject are no negatives; `same-subject`: they count
        `weight` times, so that telling people apart does not solve the task (after Cheng et al. 2020,
        arXiv:2007.04871).
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
    # The partner is neither excluded nor up-weighted; the anchor itself never takes part.
    logits_AV = logits_AV.clone()
    logits_AV[rows, partner_A] = positive_A
    logits_AV[rows, own_A] = -torch.inf
    return logits_AV.logsumexp(1) - positive_A


class SimCLR(nn.Module):
    """An encoder and the projection head that is dropped afterwards (Chen et al. 2020, sec. 4.2)."""

    def __init__(self, encoder: Conformer | ViT, *, projection: int = 32) -> None:
        super().__init__()
        self.encoder = encoder
        self.project = nn.Sequential(
            nn.Linear(encoder.width, encoder.width), nn.ReLU(), nn.Linear(encoder.width, projection)
        )

    def forward(self, x_BCT: Tensor) -> Tensor:
        """Map windows to vectors of unit length (B, P)."""
        return F.normalize(self.project(self.encoder.features(x_BCT)), dim=1)
