"""EEGNet (Lawhern et al. 2018, doi:10.1088/1741-2552/aace8c), without the large activation of its first layers.

This file needs torch (2.2 or later) and its neighbours network.py, readout.py, sizes.py and stem.py: submissions
contain them unchanged.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

if __package__:
    from raypipe.models.network import Dropout, DropoutMasks, Network
    from raypipe.models.sizes import LAST_POOL, SEPARABLE_KERNEL, shortest_window
    from raypipe.models.stem import fast_length
else:  # in a submission, where the files are in one folder
    from network import Dropout, DropoutMasks, Network  # type: ignore[import-not-found,no-redef,unused-ignore]
    from sizes import (  # type: ignore[import-not-found,no-redef,unused-ignore]
        LAST_POOL,
        SEPARABLE_KERNEL,
        shortest_window,
    )
    from stem import fast_length  # type: ignore[import-not-found,no-redef,unused-ignore]


class Moments(NamedTuple):
    """First and second moments of all windows under a temporal kernel, in float64."""

    mean: Tensor
    """(K,) mean of the sample under each tap, over all positions of the kernel, channels and windows."""
    second: Tensor
    """(K, K) mean product of the samples under two taps."""
    n: int
    """Number of positions, channels and windows."""


def lag_moments(x_BCT: Tensor, kernel: int) -> Moments:
    """Return the moments of windows under a kernel that is moved over them, padded with ``kernel // 2`` zeros.

    The output of a kernel w has the mean ``w . mean`` and the mean square ``w . second . w``. The products of all
    positions are an autocorrelation, computed by FFT; those of positions beyond the padding are subtracted. A large
    offset of the windows needs float64.
    """
    padding, x_NT = kernel // 2, x_BCT.flatten(0, 1)
    n_times, cut = x_NT.shape[1], kernel - padding - 1
    length = fast_length(n_times + kernel - 1)
    spectrum_NM = torch.fft.rfft(x_NT, n=length)
    power_M = torch.view_as_real(spectrum_NM).flatten(1).square().sum(0, dtype=torch.float64).view(-1, 2).sum(1)
    lag_K = torch.fft.irfft(power_M, n=length)[:kernel]
    tap_K = torch.arange(kernel, device=x_NT.device)
    second_KK = lag_K[(tap_K[:, None] - tap_K).abs()]
    mean_K = x_NT.sum(dtype=torch.float64).expand(kernel)
    for edge_NJ, after in ((x_NT[:, :cut], True), (x_NT[:, n_times - cut :].flip(1), False)):
        edge_NJ = edge_NJ.double()
        products_JJ, sums_J = _running(edge_NJ.T @ edge_NJ), edge_NJ.sum(0).cumsum(0)
        if not after:  # these taps are the first ones, in reverse order
            products_JJ, sums_J = products_JJ.flip(0, 1), sums_J.flip(0)
        place = (kernel - cut, 0) if after else (0, kernel - cut)
        second_KK = second_KK - F.pad(products_JJ, place + place)
        mean_K = mean_K - F.pad(sums_J, place)
    count = len(x_NT) * (n_times + 2 * padding - kernel + 1)
    return Moments(mean_K / count, second_KK / count, count)


def _running(a_JJ: Tensor) -> Tensor:
    """Return the running sums of a square matrix along its diagonals."""
    size = len(a_JJ)
    step_J = torch.arange(size, device=a_JJ.device)
    padded = F.pad(a_JJ, (size, 0, size, 0))
    row_J11, column_1J1 = step_J[:, None, None] + size, step_J[None, :, None] + size
    out: Tensor = padded[row_J11 - step_J, column_1J1 - step_J].sum(-1)
    return out


def correlate(x_BGT: Tensor, kernel_GK: Tensor) -> Tensor:
    """Filter each row with its kernel by FFT, padded with ``K // 2`` zeros; one row's convolution is slow on a CPU."""
    n_kernel = kernel_GK.shape[1]
    n_padded = x_BGT.shape[2] + 2 * (n_kernel // 2)
    length = fast_length(n_padded)
    with torch.autocast(x_BGT.device.type, enabled=False):  # complex bfloat16 does not exist
        spectrum_GM = torch.fft.rfft(kernel_GK, n=length).conj()
        z_BGT = F.pad(x_BGT.to(kernel_GK.dtype), (n_kernel // 2, n_kernel // 2))
        y_BGT: Tensor = torch.fft.irfft(torch.fft.rfft(z_BGT, n=length) * spectrum_GM, n=length)
    return y_BGT[..., : n_padded - n_kernel + 1]


class MomentNorm(nn.BatchNorm1d):
    """BatchNorm of the outputs of linear filters, from the moments of their inputs; the outputs are not computed.

    Parameters, buffers and updates are those of `nn.BatchNorm1d`.
    """

    def of_filters(self, weight_FK: Tensor, x_BCT: Tensor) -> tuple[Tensor, Tensor]:
        """Return factor and offset (F,) of the outputs of temporal filters (F, K), which are padded as `lag_moments`.

        In training mode they follow from the windows (B, C, T), otherwise from the running statistics.
        """
        assert self.running_mean is not None and self.running_var is not None
        mean_F, var_F = self.running_mean, self.running_var
        if self.training:
            moments = lag_moments(x_BCT, weight_FK.shape[1])
            w_FK = weight_FK.double()
            mean64_F = w_FK @ moments.mean
            var64_F = (((w_FK @ moments.second) * w_FK).sum(1) - mean64_F.square()).clamp_min(0.0)
            mean_F, var_F = mean64_F.to(weight_FK.dtype), var64_F.to(weight_FK.dtype)
            if self.track_running_stats:
                self._track(mean_F.detach(), var_F.detach() * (moments.n / max(1, moments.n - 1)))
        scale_F = self.weight * torch.rsqrt(var_F + self.eps)
        return scale_F, self.bias - mean_F * scale_F

    def _track(self, mean_F: Tensor, var_F: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        for running_F, new_F in ((self.running_mean, mean_F), (self.running_var, var_F)):
            running_F.mul_(1.0 - momentum).add_(momentum * new_F)  # `lerp_` has no batching rule for vmap


class EEGNet(Network):
    """EEGNet (Lawhern et al. 2018, table 2: EEGNet-8,2 by default).

    temporal filters -> BatchNorm -> spatial filters of each -> BatchNorm -> ELU -> average pool -> dropout -> separable
    convolution -> BatchNorm -> ELU -> average pool -> dropout -> Linear.

    The layers before the second BatchNorm are linear, given the first one's statistics. So the spatial filters come
    first here, and the statistics are computed from the moments of the windows (`MomentNorm`). The outputs are the same
    up to rounding, and no activation has the windows' channels.

    Parameters
    ----------
    n_channels, n_times, n_outputs, norm, bins, variance
        See `Network`.
    kernel, pool
        Lengths in samples; see `sizes.eegnet_sizes`.
    filters
        Temporal filters (F1).
    spatial
        Spatial filters of each temporal filter (D).
    dropout
        Dropout rate after both pools.
    spatial_max_norm, head_max_norm
        Largest norm of a spatial filter, and of the head's weights of an output; 0 for no limit. See `constrain`.

    Raises
    ------
    ValueError
        The window is shorter than the kernel or than the pools need.

    Notes
    -----
    Compared with braindecode's EEGNet (``final_layer_with_constraint=True``), names differ, and convolutions after the
    spatial one lack an axis of length one. BatchNorm's momentum is 0.1, not 0.01, since trainings are short. The bias
    of the first BatchNorm is not trained: another one follows.
    """

    stackable = True

    def __init__(
        self,
        n_channels: int,
        n_times: int,
        n_outputs: int,
        *,
        kernel: int = 64,
        pool: int = 4,
        filters: int = 8,
        spatial: int = 2,
        dropout: float = 0.25,
        spatial_max_norm: float = 1.0,
        head_max_norm: float = 0.25,
        norm: str = "channel",
        bins: int = 0,
        variance: bool = False,
    ) -> None:
        super().__init__(n_channels, n_times, n_outputs, norm=norm, bins=bins, variance=variance)
        if n_times < shortest_window(kernel, pool):
            raise ValueError(
                f"a window of {n_times} samples is too short for a kernel of {kernel} and pools of {pool} and "
                f"{LAST_POOL}: it needs {shortest_window(kernel, pool)}"
            )
        self.kernel, self.spatial_max_norm, self.head_max_norm = kernel, spatial_max_norm, head_max_norm
        self.width = filters * spatial
        self.n_pooled = (n_times + 2 * (kernel // 2) - kernel + 1) // pool
        self.n_features = self.width * ((self.n_pooled + 1 - SEPARABLE_KERNEL % 2) // LAST_POOL)
        self.temporal = nn.Conv2d(1, filters, (1, kernel), bias=False)
        self.temporal_norm = MomentNorm(filters, eps=1e-3)
        self.spatial = nn.Conv2d(filters, self.width, (n_channels, 1), groups=filters, bias=False)
        self.spatial_norm = nn.BatchNorm1d(self.width, eps=1e-3)
        self.pool = nn.AvgPool1d(pool)
        self.depthwise = nn.Conv1d(
            self.width, self.width, SEPARABLE_KERNEL, padding=SEPARABLE_KERNEL // 2, groups=self.width, bias=False
        )
        self.pointwise = nn.Conv1d(self.width, self.width, 1, bias=False)
        self.last_norm = nn.BatchNorm1d(self.width, eps=1e-3)
        self.last_pool = nn.AvgPool1d(LAST_POOL)
        self.drop = Dropout(dropout)
        self.head = nn.Linear(self.n_features, bins or n_outputs + variance)
        for layer in (self.temporal, self.spatial, self.depthwise, self.pointwise, self.head):
            nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(self.head.bias)
        # The next BatchNorm subtracts it: its gradients are rounding errors, of which AdamW would make full steps.
        self.temporal_norm.bias.requires_grad_(False)
        self.constrain()

    @torch.no_grad()
    def constrain(self) -> None:
        """Scale down spatial filters, and the head's weights of an output, whose norm is above its limit.

        The paper constrains them after each step, to norms of 1 and 0.25.
        """
        for weight, limit in ((self.spatial.weight, self.spatial_max_norm), (self.head.weight, self.head_max_norm)):
            if limit:
                weight.copy_(weight.renorm(2, 0, limit))

    def dropout_plan(self, batch: int) -> list[tuple[int, float]]:
        """Return size and rate of each dropout mask that a training pass over `batch` windows takes, in order."""
        sizes = (batch * self.width * self.n_pooled, batch * self.n_features)
        return [(size, self.drop.p) for size in sizes] if self.drop.p else []

    def front(self, x: Tensor, *, prepared: bool = False, masks: DropoutMasks | None = None) -> Tensor:
        """Run all layers with BatchNorm: windows to (B, filters * spatial, time points)."""
        y_BGT = self.spatial_norm(self._filter(x if prepared else self.prepare(x)))
        y_BGT = self.drop(self.pool(F.elu(y_BGT)), masks)
        out: Tensor = self.last_norm(self.pointwise(self.depthwise(y_BGT)))
        return out

    def _filter(self, x_BCT: Tensor) -> Tensor:
        """Return the outputs of the spatial filters, of which each follows its temporal filter and BatchNorm."""
        weight_FK, spatial_GC = self.temporal.weight[:, 0, 0], self.spatial.weight[:, 0, :, 0]
        scale_F, shift_F = self.temporal_norm.of_filters(weight_FK, x_BCT.double() if self.norm == "none" else x_BCT)
        each = self.width // len(weight_FK)
        kernel_GK = (weight_FK * scale_F[:, None]).repeat_interleave(each, 0)
        shift_G1 = (shift_F.repeat_interleave(each) * spatial_GC.sum(1))[:, None]
        return correlate(spatial_GC @ x_BCT, kernel_GK) + shift_G1

    def back(self, y_BGT: Tensor, masks: DropoutMasks | None = None) -> Tensor:
        """Pool the result of `front`, and combine it linearly."""
        return self.decode(self.head(self.drop(self.last_pool(F.elu(y_BGT)), masks).flatten(1)))
