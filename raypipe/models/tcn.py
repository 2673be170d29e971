"""A small depthwise temporal convolutional network whose answer is a soft-argmax over time.

After Bai et al. 2018 (arXiv:1803.01271: residual blocks of dilated convolutions), with depthwise-separable ones
(Chollet 2017, arXiv:1610.02357; Lawhern et al. 2018, doi:10.1088/1741-2552/aace8c) that see past and future.

This file needs torch (2.2 or later) and its neighbours conformer.py, readout.py and stem.py: submissions carry them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

if __package__:
    from raypipe.models.conformer import Dropout, Masks, normalise
    from raypipe.models.readout import moments, told
else:  # in a submission, where the files lie side by side
    from conformer import Dropout, Masks, normalise  # type: ignore[import-not-found,no-redef,unused-ignore]
    from readout import moments, told  # type: ignore[import-not-found,no-redef,unused-ignore]


class TcnBlock(nn.Module):
    """``x + drop(pointwise(gelu(norm(depthwise(x)))))``; the norm is over a window's features, never over a batch."""

    def __init__(self, filters: int, kernel: int, dilation: int, dropout: float) -> None:
        super().__init__()
        same = dilation * (kernel - 1) // 2
        self.depthwise = nn.Conv1d(filters, filters, kernel, padding=same, dilation=dilation, groups=filters)
        self.norm = nn.GroupNorm(1, filters)
        self.pointwise = nn.Conv1d(filters, filters, 1)
        self.drop = Dropout(dropout)

    def forward(self, x_BFT: Tensor, masks: Masks | None = None) -> Tensor:
        """Map (B, F, T) to the same shape."""
        y_BFT = self.pointwise(F.gelu(self.norm(self.depthwise(x_BFT))))
        out: Tensor = x_BFT + self.drop(y_BFT, masks)
        return out


class Tcn(nn.Module):
    """Spatial filters, `depth` dilated depthwise blocks, and an answer from every moment.

    A regression with `bins` has one logit a moment, resampled to the bins: while it trains, it gives those logits
    (B, bins); in evaluation their mean and variance (B, 2). Response times run with the window's time, so bin and
    moment go together, and the network need only say when. Without bins, and for classes, moments are averaged.

    Parameters
    ----------
    n_channels, n_times, n_outputs
        Shape of a window; 1 output for regression, else classes.
    kernel
        Taps of the depthwise convolutions; odd. Dilations double from block to block.
    pool
        Samples that are averaged after the spatial filters.
    filters, depth, dropout
        Width, blocks, and dropout after each.
    bins
        0, or bins of the distribution (see `raypipe.models.readout`).
    variance
        Of a regression: whether the network tells the variance of its answer, as `Conformer` does.
    norm
        See `raypipe.models.conformer.normalise`.
    """

    def __init__(
        self,
        n_channels: int,
        n_times: int,
        n_outputs: int,
        *,
        kernel: int = 7,
        pool: int = 2,
        filters: int = 40,
        depth: int = 4,
        dropout: float = 0.2,
        bins: int = 0,
        norm: str = "channel",
        variance: bool = False,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel ({kernel}) must be odd")
        if n_times < pool:
            raise ValueError(f"a window of {n_times} samples is shorter than the pool of {pool}")
        if (bins or variance) and n_outputs != 1:
            raise ValueError("bins and variance are for regression")
        self.n_channels, self.n_times, self.n_outputs = n_channels, n_times, n_outputs
        self.norm, self.bins, self.filters, self.dropout, self.variance = norm, bins, filters, dropout, variance
        self.n_moments = n_times // pool
        self.spatial = nn.Conv1d(n_channels, filters, 1)
        self.temporal = nn.Conv1d(filters, filters, kernel, padding=kernel // 2, groups=filters)
        self.pool = nn.AvgPool1d(pool)
        self.blocks = nn.ModuleList(TcnBlock(filters, kernel, 2**i, dropout) for i in range(depth))
        self.head_norm = nn.GroupNorm(1, filters)
        self.head = nn.Conv1d(filters, 1 if bins else n_outputs + variance, 1)

    def prepare(self, x_BCT: Tensor) -> Tensor:
        """Normalise: what no parameter takes part in."""
        if x_BCT.ndim != 3 or x_BCT.shape[1:] != (self.n_channels, self.n_times):
            raise ValueError(f"expected windows (B, {self.n_channels}, {self.n_times}), got {tuple(x_BCT.shape)}")
        return normalise(x_BCT, self.norm)

    def dropout_plan(self, batch: int) -> list[tuple[int, float]]:
        """Sizes and rates of the masks that a training pass over `batch` windows takes, in order (see `Masks`)."""
        each = batch * self.filters * self.n_moments
        return [(each, self.dropout) for _ in self.blocks] if self.dropout else []

    def forward(self, x: Tensor, *, prepared: bool = False, scale_M: Tensor | None = None) -> Tensor:
        """Map windows (B, C, T), or what `prepare` made of them, to (B, n_outputs), or (B, bins) while training."""
        return self.back(self.front(x, prepared=prepared), None if scale_M is None else Masks(scale_M))

    def front(self, x: Tensor, *, prepared: bool = False) -> Tensor:
        """Spatial and first temporal filters, (B, filters, moments); nothing here sees a batch as a whole."""
        y_BFT: Tensor = self.pool(F.gelu(self.temporal(self.spatial(x if prepared else self.prepare(x)))))
        return y_BFT

    def back(self, y_BFT: Tensor, masks: Masks | None = None) -> Tensor:
        """The blocks and the answer."""
        for block in self.blocks:
            y_BFT = block(y_BFT, masks)
        z_BKT: Tensor = self.head(self.head_norm(y_BFT))
        if not self.bins:
            out_BK = z_BKT.mean(-1)
            return told(out_BK) if self.variance and not self.training else out_BK
        logits_BK = (z_BKT @ self._resample(z_BKT))[:, 0]
        return logits_BK if self.training else moments(logits_BK)

    def _resample(self, like: Tensor) -> Tensor:
        """Linear interpolation from moments to bins, (T, K): a matrix, so that vmap has a rule for it."""
        n, k = self.n_moments, self.bins
        place_K = torch.linspace(0, n - 1, k, device=like.device, dtype=torch.float32)
        moment_T = torch.arange(n, device=like.device, dtype=torch.float32)
        return (1 - (moment_T[:, None] - place_K[None]).abs()).clamp_min(0).to(like.dtype)
