"""A network's passes over a batch: the type they are computed in, and micro-batches that give the same gradients."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from raypipe.models.conformer import Conformer
from raypipe.models.network import DropoutMasks
from raypipe.training.sam import Sam
from raypipe.training.step import Step, frozen_statistics, steps, walk


def autocast_type(precision: str, device: torch.device) -> torch.dtype:
    """The type that a network's passes are computed in."""
    if precision == "auto":
        fit = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fit else torch.float32
    return cast(torch.dtype, getattr(torch, precision))


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """What a pass is computed within."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def gradients(
    model: Conformer,
    prepared: Tensor,
    y: Tensor,
    masks: Tensor | None,
    size: int,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    scaler: torch.amp.GradScaler | None = None,
) -> float:
    """Add the gradients of a batch's mean loss to the parameters', `size` windows at a time.

    BatchNorm normalises by the whole batch, so the network is cut behind it: the part before is passed through once,
    and keeps a small activation; the part behind, where most memory goes, in micro-batches. The gradients at the cut
    are gathered from them and go back once. This is the gradient of the whole batch, up to rounding.

    Parameters
    ----------
    model
        The network, in training mode.
    prepared
        What its `prepare` made of the batch.
    y
        Targets (B,) or (B, K).
    masks
        Dropout masks of the whole batch.
    size
        Windows of a micro-batch.
    loss_of
        Mean loss of predictions and targets.
    dtype, scaler
        Of the passes; see `autocast_type`.

    Returns
    -------
    float
        The batch's mean loss.
    """
    batch = len(y)
    with autocast(y.device, dtype):
        cut_BFT = model.front(prepared, prepared=True)
    back_BFT = torch.empty_like(cut_BFT)
    losses = []
    for first in range(0, batch, size):
        part = cut_BFT.detach()[first : first + size].requires_grad_()
        with autocast(y.device, dtype):
            raw = model.back(part, None if masks is None else DropoutMasks(masks, batch, first))
        loss = loss_of(raw, y[first : first + size]) * (len(part) / batch)
        (loss if scaler is None else scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]
        assert part.grad is not None
        back_BFT[first : first + size] = part.grad
        losses.append(loss.detach())
    torch.autograd.backward(cut_BFT, back_BFT)
    return float(torch.stack(losses).sum())


def optimizer_step(
    compute: Callable[[], float],
    model: torch.nn.Module,
    optimizer: Optimizer,
    sam: Sam | None = None,
    clip: float = 0.0,
    *,
    scaler: torch.amp.GradScaler | None = None,
) -> Step:
    """`steps.optimizer_step` for a pass that computes its gradients by itself.

    Parameters
    ----------
    compute
        Leaves the gradients at the parameters as they are, and returns the loss.
    model, optimizer, sam, clip, scaler
        See `steps.optimizer_step`.
    """

    def one(first: bool) -> float:
        with nullcontext() if first else frozen_statistics(model):
            return compute()

    return walk(steps(optimizer, sam, clip, scaler=scaler), one)
