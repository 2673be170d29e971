"""Base class of models that are fitted in closed form: features of a window, and a linear map of them.

Their fitted numbers are buffers in float64, whose shapes follow from the configuration and the shape of the windows.
This file needs torch (2.2 or later) and its neighbours bands.py and network.py: submissions contain them
unchanged.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

if __package__:
    from raypipe.models.bands import Bank
    from raypipe.models.network import DropoutMasks, Network
else:  # in a submission, where the files are in one folder
    from bands import Bank  # type: ignore[import-not-found,no-redef,unused-ignore]
    from network import DropoutMasks, Network  # type: ignore[import-not-found,no-redef,unused-ignore]


class ClosedForm(Network):
    """Base class of models whose output is a linear map of features, in float64: (B, C, T) to (B, n_outputs).

    A subclass implements `front`, which returns features (B, F), and calls `set_head_shape` with F.

    Parameters
    ----------
    n_channels, n_times, n_outputs
        As of any `Network`.
    components
        Spatial components that replace the channels; 0, or no less than the channels, for the channels.
    n_filters
        Spatial filters of another kind that the signals are; 0 for components or channels.
    bins
        For regression: 0, or the number of groups of targets of which the linear map gives logits. The output is then
        the mean and the variance (B, 2) of the groups' mean targets.
    """

    def __init__(
        self,
        n_channels: int,
        n_times: int,
        n_outputs: int,
        *,
        components: int = 0,
        n_filters: int = 0,
        bins: int = 0,
    ) -> None:
        super().__init__(n_channels, n_times, n_outputs, norm="none", bins=bins)
        self.n_components = components if components < n_channels else 0
        n_filters = n_filters or self.n_components
        self.n_signals = n_filters or n_channels
        self.filters_SC: Tensor | None
        self.register_buffer("filters_SC", zeros(n_filters, n_channels) if n_filters else None)
        self.weight_OF: Tensor
        self.bias_O: Tensor
        self.values_O: Tensor | None

    @property
    def has_fixed_features(self) -> bool:
        """Return whether nothing but the linear map is fitted, so that folds have the same features of a window."""
        return {name for name, _ in self.named_buffers()} <= {"weight_OF", "bias_O", "values_O"}

    def set_head_shape(self, n_features: int) -> None:
        """Make the buffers of the linear map."""
        rows = self.bins or self.n_outputs
        self.register_buffer("weight_OF", zeros(rows, n_features))
        self.register_buffer("bias_O", zeros(rows))
        self.register_buffer("values_O", zeros(rows) if self.bins else None)

    def signals(self, x_BCT: Tensor) -> Tensor:
        """Return the signals (B, S, T) in float64: channels or filtered channels, each with its mean removed."""
        y_BCT = centre(x_BCT)
        return y_BCT if self.filters_SC is None else self.filters_SC @ y_BCT

    def dropout_plan(self, batch: int) -> list[tuple[int, float]]:
        """Return no masks: nothing is trained by gradients."""
        return []

    @abstractmethod
    def front(self, x: Tensor, *, prepared: bool = False, masks: DropoutMasks | None = None) -> Tensor:
        """Return the features (B, F) of windows (B, C, T)."""

    def back(self, y: Tensor, masks: DropoutMasks | None = None) -> Tensor:
        """Map features (B, F) to the outputs (B, n_outputs), or with `bins` to mean and variance (B, 2), in float32."""
        raw_BO = y @ self.weight_OF.mT + self.bias_O
        if self.values_O is None:
            return raw_BO.float()
        p_BO = raw_BO.softmax(-1)
        mean_B1 = (p_BO * self.values_O).sum(-1, keepdim=True)
        variance_B1 = (p_BO * (self.values_O - mean_B1).square()).sum(-1, keepdim=True)
        return torch.cat([mean_B1, variance_B1], dim=-1).float()


def centre(x_BCT: Tensor) -> Tensor:
    """Return windows in float64, with the mean of each channel removed."""
    x_BCT = x_BCT.double()
    return x_BCT - x_BCT.mean(-1, keepdim=True)


def zeros(*shape: int) -> Tensor:
    """Return zeros in float64."""
    return torch.zeros(*shape, dtype=torch.float64)


def spectrum(y_BST: Tensor, taper: str = "none") -> Tensor:
    """Return the Fourier transform (B, S, bins) of signals, scaled so that sums over bins are covariances.

    The real part of ``z @ z.mH`` over the bins of a band is the covariance (divided by T) of the signals in an ideal
    filter of that band; over all bins but the first, that of the signals themselves (Parseval).

    Parameters
    ----------
    y_BST
        Signals.
    taper
        `none`, or `hann`, which keeps slow drifts out of higher bands.
    """
    n_times = y_BST.shape[-1]
    if taper == "hann":
        window_T = torch.hann_window(n_times, dtype=y_BST.dtype, device=y_BST.device)
        y_BST = y_BST * (window_T / window_T.square().mean().sqrt())
    z_BSN = torch.fft.rfft(y_BST)
    scale_N = torch.full((z_BSN.shape[-1],), math.sqrt(2.0) / n_times, dtype=y_BST.dtype, device=y_BST.device)
    scale_N[0] = 1.0 / n_times
    if n_times % 2 == 0:
        scale_N[-1] = 1.0 / n_times
    scaled_BSN: Tensor = z_BSN * scale_N
    return scaled_BSN


def split_bank(options: dict[str, Any]) -> tuple[Bank, dict[str, Any]]:
    """Take the bank out of the ``model/`` parameters of a configuration; return it and the rest."""
    rest = dict(options)
    bank = Bank(rest.pop("bands"), rest.pop("low"), rest.pop("high"), rest.pop("n_bands"))
    return bank, rest
