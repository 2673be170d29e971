"""A small depthwise temporal convolutional network; with bins, its output is a soft-argmax over time.

After Bai et al. 2018 (arXiv:1803.01271: residual blocks of dilated convolutions), with depthwise-separable convolutions
(Chollet 2017, arXiv:1610.02357; Lawhern et al. 2018, doi:10.1088/1741-2552/aace8c) that use past and future samples.

This file needs torch (2.2 or later) and its neighbours network.py and readout.py: submissions contain them unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

if __package__:
    from raypipe.models.network import Dropout, DropoutMasks, Network
else:  # in a submission, where the files are in one folder
    from network import Dropout, DropoutMasks, Network  # type: ignore[import-not-found,no-redef,unused-ignore]


class TcnBlock(nn.Module):
    """``x + drop(pointwise(gelu(norm(depthwise(x)))))``; the norm is over a window's features, never over a batch."""

    def __init__(self, filters: int, kernel: int, dilation: int, dropout: float) -> None:
        super().__init__()
        padding = dilation * (kernel - 1) // 2
        self.depthwise = nn.Conv1d(filters, filters, kernel, padding=padding, dilation=dilation, groups=filters)
        self.norm = nn.GroupNorm(1, filters)
        self.pointwise = nn.Conv1d(filters, filters, 1)
        self.drop = Dropout(dropout)

    def forward(self, x_BFT: Tensor, masks: DropoutMasks | None = None) -> Tensor:
        """Map (B, F, T) to the same shape."""
        y_BFT = self.pointwise(F.gelu(self.norm(self.depthwise(x_BFT))))
        out: Tensor = x_BFT + self.drop(y_BFT, masks)
        return out


class Tcn(Network):
    """Spatial filters, `depth` dilated depthwise blocks, and an output at every time point.

    With `bins`, the head gives one logit per time point, which are resampled to the bins (see `Network` for the
    outputs). If the target is a time within the window, such as a response time, bins correspond to time points.
    Without bins, and for classes, the outputs of all time points are averaged.

    Parameters
    ----------
    n_channels, n_times, n_outputs, bins, norm, variance
        See `Network`.
    kernel
        Taps of the depthwise convolutions; odd. Dilations double from block to block.
    pool
        Samples that are averaged after the spatial filters.
    filters, depth, dropout
        Width, number of blocks, and dropout after each block.

    Raises
    ------
    ValueError
        `kernel` is even, or the window is shorter than `pool`.
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
        super().__init__(n_channels, n_times, n_outputs, norm=norm, bins=bins, variance=variance)
        if kernel % 2 == 0:
            raise ValueError(f"kernel ({kernel}) must be odd")
        if n_times < pool:
            raise ValueError(f"a window of {n_times} samples is shorter than the pool of {pool}")
        self.filters, self.dropout = filters, dropout
        self.n_pooled = n_times // pool
        self.spatial = nn.Conv1d(n_channels, filters, 1)
        self.temporal = nn.Conv1d(filters, filters, kernel, padding=kernel // 2, groups=filters)
        self.pool = nn.AvgPool1d(pool)
        self.blocks = nn.ModuleList(TcnBlock(filters, kernel, 2**i, dropout) for i in range(depth))
        self.head_norm = nn.GroupNorm(1, filters)
        self.head = nn.Conv1d(filters, 1 if bins else n_outputs + variance, 1)

    def dropout_plan(self, batch: int) -> list[tuple[int, float]]:
        """Return size and rate of each dropout mask that a training pass over `batch` windows takes, in order."""
        each = batch * self.filters * self.n_pooled
        return [(each, self.dropout) for _ in self.blocks] if self.dropout else []

    def front(self, x: Tensor, *, prepared: bool = False, masks: DropoutMasks | None = None) -> Tensor:
        """Run the spatial and the first temporal filters: windows to (B, filters, time points)."""
        y_BFT: Tensor = self.pool(F.gelu(self.temporal(self.spatial(x if prepared else self.prepare(x)))))
        return y_BFT

    def back(self, y_BFT: Tensor, masks: DropoutMasks | None = None) -> Tensor:
        """Run blocks and head on the result of `front`."""
        for block in self.blocks:
            y_BFT = block(y_BFT, masks)
        z_BKT: Tensor = self.head(self.head_norm(y_BFT))
        return self.decode((z_BKT @ self._resampling(z_BKT))[:, 0] if self.bins else z_BKT.mean(-1))

    def _resampling(self, like: Tensor) -> Tensor:
        """Return the linear interpolation from time points to bins as a matrix (T, K), which works under vmap."""
        n, k = self.n_pooled, self.bins
        place_K = torch.linspace(0, n - 1, k, device=like.device, dtype=torch.float32)
        time_T = torch.arange(n, device=like.device, dtype=torch.float32)
        return (1 - (time_T[:, None] - place_K[None]).abs()).clamp_min(0).to(like.dtype)
