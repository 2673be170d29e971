"""Spatial filters that are estimated on training windows: principal components, and xDAWN for responses to events."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

_MIN_TRACE = 1e-12
"""Square microvolts, below which a window does not count."""
_RIDGE = 1e-6
"""Share of the mean variance that is added to each channel's, for channels that depend on each other."""


class Responses(NamedTuple):
    """Spatial filters, and the mean responses of groups of windows in them."""

    filters: Tensor
    """(S, C)."""
    prototypes: Tensor
    """(S, T)."""


def principal_components(batches: Iterable[tuple[Tensor, Tensor]], count: int) -> Tensor:
    """Return the principal axes (K, C) of the mean covariance of windows, each divided by its trace.

    Parameters
    ----------
    batches
        Windows (B, C, T) whose means are removed, and their weights (B,).
    count
        Number of axes.
    """
    total_CC: Tensor | float = 0.0
    for x_BCT, weight_B in batches:
        scale_B = weight_B / x_BCT.square().sum((1, 2)).clamp_min(_MIN_TRACE)
        total_CC = total_CC + torch.einsum("b,bct,bdt->cd", scale_B, x_BCT, x_BCT)
    assert isinstance(total_CC, Tensor)
    _, axes_CK = torch.linalg.eigh(total_CC)
    filters_KC: Tensor = axes_CK.flip(1)[:, :count].T.contiguous()
    return filters_KC


def fit_responses(batches: Iterable[tuple[Tensor, Tensor, Tensor]], n_groups: int, count: int) -> Responses:
    """Fit xDAWN filters (Rivet et al. 2009, doi:10.1109/TBME.2009.2012869) for each group of windows.

    The filters of a group have the largest ratio between the power of its mean response and that of all windows.

    Parameters
    ----------
    batches
        Signals (B, C, T) whose means are removed, their weights (B,), and their groups (B,).
    n_groups, count
        Groups, and filters for each of them.
    """
    total_CC: Tensor | float = 0.0
    sum_GCT: Tensor | float = 0.0
    weight_G = torch.zeros(n_groups, dtype=torch.float64)
    for x_BCT, weight_B, group_B in batches:
        share_BG = torch.nn.functional.one_hot(group_B, n_groups) * weight_B[:, None]
        total_CC = total_CC + torch.einsum("b,bct,bdt->cd", weight_B, x_BCT, x_BCT)
        sum_GCT = sum_GCT + torch.einsum("bg,bct->gct", share_BG, x_BCT)
        weight_G += share_BG.sum(0)
    assert isinstance(total_CC, Tensor) and isinstance(sum_GCT, Tensor)
    mean_GCT = sum_GCT / weight_G.clamp_min(1e-12)[:, None, None]
    ridge = _RIDGE * total_CC.diagonal().mean() + _MIN_TRACE
    lower_CC = torch.linalg.cholesky(total_CC + ridge * torch.eye(len(total_CC), dtype=torch.float64))
    filters, responses = [], []
    for mean_CT in mean_GCT:
        half_CC = torch.linalg.solve_triangular(lower_CC, mean_CT @ mean_CT.T, upper=False)
        white_CC = torch.linalg.solve_triangular(lower_CC, half_CC.T, upper=False)
        _, axes_CK = torch.linalg.eigh((white_CC + white_CC.T) / 2)
        own_CK = torch.linalg.solve_triangular(lower_CC.T, axes_CK.flip(1)[:, :count], upper=True)
        own_KC = (own_CK / torch.linalg.vector_norm(own_CK, dim=0)).T
        filters.append(own_KC)
        responses.append(own_KC @ mean_CT)
    return Responses(torch.cat(filters), torch.cat(responses))
