"""Base class of the networks, normalisation of windows, and dropout with masks that are drawn beforehand.

This file needs torch (2.2 or later) and its neighbour readout.py: submissions contain both unchanged.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

if __package__:
    from raypipe.models.readout import decode_variance, distribution_moments
else:  # in a submission, where the files are in one folder
    from readout import (  # type: ignore[import-not-found,no-redef,unused-ignore]
        decode_variance,
        distribution_moments,
    )

NORMS = ("channel", "window", "robust", "none")

_FLAT_ROUNDING_ERRORS = 16
"""A channel is flat if its spread is below this many rounding errors of its offset."""
_MIN_RELATIVE_SCALE = 1e-3
"""No channel is divided by less than this fraction of the window's mean scale."""
_ROBUST_LIMIT = 15.0
"""Values of `robust` are clipped to this many standard deviations."""


class DropoutMasks:
    """Dropout masks of one forward pass, taken slice by slice in the order in which the layers drop.

    They are drawn before the step (see `Network.dropout_plan`). Both passes of SAM then use the same masks, and a fold
    has the same masks whether it is trained alone or stacked with others.

    Parameters
    ----------
    dropout_M
        (M,) 0 or 1 / (1 - p) for each value.
    batch, first
        For a micro-batch: the number of windows that the masks are for, and the position of the first one in it.
    taken
        Values that were taken already, of the whole batch.
    """

    def __init__(self, dropout_M: Tensor, batch: int = 0, first: int = 0, taken: int = 0) -> None:
        self._dropout_M, self._taken = dropout_M, taken
        self._batch, self._first = batch, first

    def take(self, x: Tensor) -> Tensor:
        """Return the next mask, with the shape and type of `x`."""
        size = x.numel() // len(x) * self._batch if self._batch else x.numel()
        start, self._taken = self._taken, self._taken + size
        mask = self._dropout_M[start : self._taken]
        if self._batch:
            mask = mask.view(self._batch, -1)[self._first : self._first + len(x)]
        shaped: Tensor = mask.view(x.shape).to(x.dtype)
        return shaped

    def of_part(self, batch: int, first: int) -> DropoutMasks:
        """Return the masks that are left for a micro-batch; see the parameters."""
        return DropoutMasks(self._dropout_M, batch, first, self._taken)


class MaskedLayer(nn.Module):
    """A layer whose ``forward`` takes dropout masks after its input."""


class Dropout(MaskedLayer):
    """Dropout with the masks that are passed in; without them, masks are made from uniform numbers.

    On a CPU the latter is four times faster than `nn.Dropout`.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor, masks: DropoutMasks | None = None) -> Tensor:
        """In training mode, set a fraction `p` of the values to zero and scale up the others."""
        if masks is None and x.is_cuda and self.training and self.p:
            return F.dropout(x, self.p)
        mask = self.mask(x, masks)
        return x if mask is None else x * mask

    def mask(self, x: Tensor, masks: DropoutMasks | None = None) -> Tensor | None:
        """Return what values of the shape and type of `x` are multiplied by; None where all are kept."""
        if not self.training or self.p == 0.0:
            return None
        if masks is not None:
            return masks.take(x)
        return (torch.rand_like(x) >= self.p).to(x.dtype).mul_(1.0 / (1.0 - self.p))

    def extra_repr(self) -> str:
        return f"p={self.p}"


def apply_layers(layers: nn.Sequential, x: Tensor, masks: DropoutMasks | None) -> Tensor:
    """Apply layers one after the other, with `masks` for those that take them."""
    for layer in layers:
        x = layer(x, masks) if isinstance(layer, MaskedLayer) else layer(x)
    return x


class Network(nn.Module, ABC):
    """Base class of the networks: maps windows (B, C, T) in any unit to (B, n_outputs).

    A subclass implements `front` and `back`, which `forward` runs one after the other, and `dropout_plan`.
    Micro-batches divide `back` only, so a layer that computes statistics over the batch belongs in `front`.

    Parameters
    ----------
    n_channels, n_times
        Shape of a window.
    n_outputs
        1 for regression, or the number of values of a target with several; the number of classes for classification
        (the outputs are logits).
    norm
        See `normalise`.
    bins
        For regression: 0, or the number of bins of a distribution over the standardised target. In training mode the
        network outputs their logits (B, bins), in evaluation mode mean and variance (B, 2).
    variance
        For regression: True to predict the variance of the output too. In training mode the network outputs the value
        and the logarithm of the variance (B, 2), in evaluation mode value and variance (B, 2).

    Raises
    ------
    ValueError
        `bins` or `variance` with more than one output, or an unknown `norm`.
    """

    stackable = False
    """True if `torch.func.vmap` can run several networks of this class as one."""
    draws_itself = False
    """True if it draws random numbers from torch's generators when it is trained, in place of `dropout_plan`."""
    uses_electrodes = False
    """True if `place_electrodes` has an effect."""

    def __init__(
        self, n_channels: int, n_times: int, n_outputs: int, *, norm: str, bins: int = 0, variance: bool = False
    ) -> None:
        super().__init__()
        if (bins or variance) and n_outputs != 1:
            raise ValueError("bins and variance are for regressions of one value")
        if norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)} (given {norm!r})")
        self.n_channels, self.n_times, self.n_outputs = n_channels, n_times, n_outputs
        self.norm, self.bins, self.variance = norm, bins, variance

    @property
    def predicts_variance(self) -> bool:
        """Return whether the output in evaluation mode has a second column, the variance."""
        return bool(self.bins or self.variance)

    def prepare(self, x_BCT: Tensor) -> Tensor:
        """Run the part that depends on no parameter: normalise the windows (B, C, T).

        Both passes of SAM use one result. ``model(model.prepare(x), prepared=True)`` equals ``model(x)``.

        Raises
        ------
        ValueError
            The windows have another shape.
        """
        if x_BCT.ndim != 3 or x_BCT.shape[1:] != (self.n_channels, self.n_times):
            raise ValueError(f"expected windows (B, {self.n_channels}, {self.n_times}), got {tuple(x_BCT.shape)}")
        return normalise(x_BCT, self.norm)

    @abstractmethod
    def dropout_plan(self, batch: int) -> list[tuple[int, float]]:
        """Return size and rate of each dropout mask that a training pass over `batch` windows takes, in order."""

    def forward(self, x: Tensor, *, prepared: bool = False, dropout_M: Tensor | None = None) -> Tensor:
        """Map windows (B, C, T), or the result of `prepare`, to (B, n_outputs); see `bins` and `variance`.

        In training mode `dropout_M` holds the dropout masks in the order of `dropout_plan`; without it they are drawn.
        """
        masks = None if dropout_M is None else DropoutMasks(dropout_M)
        return self.back(self.front(x, prepared=prepared, masks=masks), masks)

    @abstractmethod
    def front(self, x: Tensor, *, prepared: bool = False, masks: DropoutMasks | None = None) -> Tensor:
        """Run the part that needs the whole batch, or that is cheap in memory."""

    @abstractmethod
    def back(self, y: Tensor, masks: DropoutMasks | None = None) -> Tensor:
        """Run the rest, in which windows do not depend on each other, on the result of `front`."""

    def decode(self, raw_BK: Tensor) -> Tensor:
        """Convert the head's output to the network's: in evaluation mode, value and variance (B, 2) if it has both."""
        if self.training or not self.predicts_variance:
            return raw_BK
        return distribution_moments(raw_BK) if self.bins else decode_variance(raw_BK)

    def constrain(self) -> None:
        """Return the weights, after a step, to the nearest ones that a constraint allows; most networks have none."""

    def use_stem(self, algorithm: str) -> None:
        """Choose how the stem is computed (see `stem.Stem`); a network without a stem ignores it."""

    def place_electrodes(self, positions_C3: Tensor) -> None:
        """Set the electrode positions in metres (NaN: unknown); a network that does not use them ignores them."""


class Encoder(Network):
    """A network that can be pretrained: it has transformer `blocks`, a `head`, and features that a probe can use."""

    width: int
    """Size of a feature vector."""
    blocks: nn.Sequential
    head: nn.Module

    @abstractmethod
    def features(self, x: Tensor, *, prepared: bool = False) -> Tensor:
        """Return a feature vector for each window (B, width): the mean over its tokens after the blocks."""

    def batch_statistics(self) -> nn.BatchNorm1d | None:
        """Return the layer that keeps statistics of batches, if there is one."""
        return None


def check_length(n_times: int, kernel: int, pool: int) -> None:
    """Raise ValueError if a window is too short for a kernel and then a pool, all in samples."""
    if n_times < kernel + pool - 1:
        raise ValueError(
            f"a window of {n_times} samples is too short for a kernel of {kernel} and a pool of {pool}: "
            f"it needs {kernel + pool - 1}"
        )


def normalise(x_BCT: Tensor, norm: str) -> Tensor:
    """Normalise each window separately, so that volts and microvolts give the same numbers.

    A channel that never changes becomes zeros, whatever its offset. A channel a thousand times quieter than the
    window's channels are on average is not scaled up further. All thresholds are relative.

    Parameters
    ----------
    x_BCT
        Windows: batch, channels, samples.
    norm
        `channel`: zero mean and unit variance per channel; `window`: zero mean per channel and one root mean square
        for all; `robust`: median and 1.4826 * median absolute deviation per channel (the standard deviation where half
        of the samples are equal), clipped to +-15; `none`.

    Raises
    ------
    ValueError
        `norm` is none of these.
    """
    if norm == "none":
        return x_BCT
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)} (given {norm!r})")
    centre_BC1 = _median(x_BCT) if norm == "robust" else x_BCT.mean(-1, keepdim=True)
    d_BCT = x_BCT - centre_BC1
    # Flat channels are found by comparison, not by a small divisor. An offset of a volt leaves rounding errors that a
    # division would scale up to the size of a signal, and the square root of 0 has no finite gradient.
    rounding_BC1 = centre_BC1.detach().abs() * (_FLAT_ROUNDING_ERRORS * torch.finfo(x_BCT.dtype).eps)
    spread_BC1 = torch.linalg.vector_norm(d_BCT, dim=-1, keepdim=True) / math.sqrt(x_BCT.shape[-1])
    flat_BC1 = spread_BC1 <= rounding_BC1
    if norm == "window":
        power_B11 = spread_BC1.masked_fill(flat_BC1, 0.0).square().mean(1, keepdim=True)
        scale_BC1 = power_B11.masked_fill(power_B11 == 0.0, 1.0).sqrt()
    else:
        scale_BC1 = spread_BC1
        if norm == "robust":
            mad_BC1 = 1.4826 * _median(d_BCT.abs())
            scale_BC1 = torch.where(mad_BC1 > rounding_BC1, mad_BC1, scale_BC1)
        min_scale_B11 = _MIN_RELATIVE_SCALE * scale_BC1.masked_fill(flat_BC1, 0.0).mean(1, keepdim=True)
        scale_BC1 = torch.maximum(scale_BC1.masked_fill(flat_BC1, 1.0), min_scale_B11)
    y_BCT: Tensor = d_BCT * scale_BC1.reciprocal().masked_fill(flat_BC1, 0.0)
    return y_BCT.clamp(-_ROBUST_LIMIT, _ROBUST_LIMIT) if norm == "robust" else y_BCT


def _median(x_BCT: Tensor) -> Tensor:
    """Return the median over time (the lower of two middle values), in a third of the time that a sort takes.

    It is also deterministic on a GPU.
    """
    return x_BCT.topk(x_BCT.shape[-1] // 2 + 1, sorted=False).values.amin(-1, keepdim=True)
