"""Riemannian decoding: covariances of a filter bank, in the tangent space of a mean, and a linear map.

Barachant et al. 2013 (doi:10.1016/j.neucom.2012.12.039), with the filter bank of Ang et al. 2012
(doi:10.3389/fnins.2012.00039) and the time-delay embedding of Carrara & Papadopoulo 2024
(doi:10.1088/1741-2552/ad4ab3). This file needs torch (2.2 or later) and its neighbours bands.py, closed_form.py,
network.py and sizes.py: submissions contain all unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

if __package__:
    from raypipe.models.bands import Bank
    from raypipe.models.closed_form import ClosedForm, spectrum, zeros
    from raypipe.models.network import DropoutMasks
    from raypipe.models.sizes import n_groups
else:  # in a submission, where the files are in one folder
    from bands import Bank  # type: ignore[import-not-found,no-redef,unused-ignore]
    from closed_form import ClosedForm, spectrum, zeros  # type: ignore[import-not-found,no-redef,unused-ignore]
    from network import DropoutMasks  # type: ignore[import-not-found,no-redef,unused-ignore]
    from sizes import n_groups  # type: ignore[import-not-found,no-redef,unused-ignore]

_MIN_RELATIVE_EIGENVALUE = 1e-10
"""Eigenvalues are no less than this fraction of their mean: a signal that another one repeats has none of its own."""
_MIN_EIGENVALUE = 1e-12
"""Square microvolts: a window that never changes has a logarithm all the same."""


class Covariance(ClosedForm):
    """Map windows (B, C, T) to (B, n_outputs) by tangent vectors of their covariances.

    Parameters
    ----------
    n_channels, n_times, n_outputs, sfreq
        As of any network, and Hz.
    bank
        Frequency bands, each with a covariance.
    taper
        See `spectrum`.
    components
        Spatial components that replace the channels; 0, or no less than the channels, for the channels.
    prototypes
        Spatial filters (xDAWN) for each of `n_groups` groups of windows, whose mean responses are further signals; 0
        for none.
    order, lag
        Copies of each signal in the covariance, each delayed by `lag` seconds more (circularly).
    shrinkage
        Share of the scaled identity in each covariance.
    scale
        `none`; `window`, covariances divided by the trace over all bands of the window; `band`, each by its own.
    geometry
        `log-euclid`, the logarithm of the covariance (Arsigny et al. 2006, doi:10.1002/mrm.20965), or `riemann`, the
        logarithm after whitening by `whitening_GDD`.
    bins
        See `ClosedForm`.
    """

    def __init__(
        self,
        n_channels: int,
        n_times: int,
        n_outputs: int,
        sfreq: float,
        *,
        bank: Bank,
        taper: str = "none",
        components: int = 0,
        prototypes: int = 0,
        order: int = 1,
        lag: float = 0.01,
        shrinkage: float = 0.0,
        scale: str = "none",
        geometry: str = "log-euclid",
        bins: int = 0,
    ) -> None:
        n_prototypes = n_groups(n_outputs) * min(prototypes, components or n_channels, n_channels)
        super().__init__(n_channels, n_times, n_outputs, components=components, n_filters=n_prototypes, bins=bins)
        self.n_prototypes = n_prototypes
        self.ranges = bank.ranges(n_times, sfreq)
        self.taper, self.shrinkage, self.scale, self.geometry = taper, shrinkage, scale, geometry
        self.order, self.lag = order, max(1, round(lag * sfreq))
        self.logarithm: Callable[[Tensor], Tensor] = log_matrix
        self.prototypes_ST: Tensor | None
        self.register_buffer("prototypes_ST", zeros(n_prototypes, n_times) if n_prototypes else None)
        self.dim = order * (self.n_signals + n_prototypes)
        self.whitening_GDD: Tensor | None
        whitens = geometry == "riemann"
        self.register_buffer("whitening_GDD", zeros(len(self.ranges), self.dim, self.dim) if whitens else None)
        self.set_head_shape(len(self.ranges) * self.dim * (self.dim + 1) // 2)

    def covariances(self, x_BCT: Tensor) -> Tensor:
        """Return the covariances (B, G, D, D) of the bands, scaled and shrunk."""
        return shrink(rescale(self.raw_covariances(x_BCT), self.scale), self.shrinkage)

    def raw_covariances(self, x_BCT: Tensor) -> Tensor:
        """Return the covariances (B, G, D, D) of the bands, in square microvolts."""
        z_BSN = spectrum(self.signals(x_BCT), self.taper)
        if self.prototypes_ST is not None:
            parts_1SNR = torch.view_as_real(spectrum(self.prototypes_ST[None], self.taper))
            prototypes_BSN = torch.view_as_complex(parts_1SNR.expand(x_BCT.shape[0], -1, -1, -1))
            z_BSN = torch.cat([prototypes_BSN, z_BSN], dim=1)
        if self.order > 1:
            z_BSN = self._delayed(z_BSN)
        bands = [torch.view_as_real(z_BSN[..., first:end]).flatten(-2) for first, end in self.ranges]
        return torch.stack([y_BDN @ y_BDN.mT for y_BDN in bands], dim=1)

    def _delayed(self, z_BSN: Tensor) -> Tensor:
        """Return the Fourier transforms (B, order * S, bins) of the signals and their delayed copies."""
        bin_N = torch.arange(z_BSN.shape[-1], dtype=torch.float64, device=z_BSN.device)
        angle_N = -2.0 * math.pi * self.lag / self.n_times * bin_N
        copies = [z_BSN * torch.polar(torch.ones_like(bin_N), step * angle_N) for step in range(self.order)]
        return torch.cat(copies, dim=1)

    def front(self, x: Tensor, *, prepared: bool = False, masks: DropoutMasks | None = None) -> Tensor:
        """Return the tangent vectors (B, F) of windows (B, C, T)."""
        c_BGDD = self.covariances(x if prepared else self.prepare(x))
        if self.whitening_GDD is not None:
            c_BGDD = whiten(c_BGDD, self.whitening_GDD)
        return half_vector(self.logarithm(c_BGDD)).flatten(1)


def rescale(c_BGDD: Tensor, how: str) -> Tensor:
    """Divide covariances by a trace (see `Covariance`); those of windows that never change stay zero."""
    if how == "none":
        return c_BGDD
    trace_BG = c_BGDD.diagonal(dim1=-2, dim2=-1).sum(-1)
    if how == "window":
        trace_BG = trace_BG.sum(1, keepdim=True)
    return c_BGDD / trace_BG.clamp_min(_MIN_EIGENVALUE)[..., None, None]


def shrink(c: Tensor, share: float) -> Tensor:
    """Mix covariances (..., D, D) with the identity, scaled to the mean of their diagonal."""
    if not share:
        return c
    mean = c.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    identity = torch.eye(c.shape[-1], dtype=c.dtype, device=c.device)
    return (1.0 - share) * c + share * mean * identity


def whiten(c_BGDD: Tensor, whitening_GDD: Tensor) -> Tensor:
    """Whiten covariances (B, G, D, D). A row of zeros stands for a direction that is left out: its logarithm is 0."""
    left_out_GD = (whitening_GDD == 0.0).all(-1).to(c_BGDD.dtype)
    identity_DD = torch.eye(c_BGDD.shape[-1], dtype=c_BGDD.dtype, device=c_BGDD.device)
    return whitening_GDD @ c_BGDD @ whitening_GDD.mT + left_out_GD[..., None] * identity_DD


def least_eigenvalue(values_D: Tensor) -> Tensor:
    """Return what eigenvalues (..., D) are taken to have at least (..., 1): a direction with less is emptied."""
    return (_MIN_RELATIVE_EIGENVALUE * values_D.mean(-1, keepdim=True)).clamp_min(_MIN_EIGENVALUE)


def map_eigenvalues(c: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function to the eigenvalues of symmetric matrices (..., D, D), no less than a fraction of their mean."""
    values, vectors = torch.linalg.eigh(c)
    mapped: Tensor = (vectors * function(torch.maximum(values, least_eigenvalue(values))).unsqueeze(-2)) @ vectors.mT
    return mapped


def log_matrix(c: Tensor) -> Tensor:
    """Return the logarithms of positive definite matrices (..., D, D)."""
    return map_eigenvalues(c, torch.log)


def half_vector(c: Tensor) -> Tensor:
    """Return the upper triangles (..., D (D + 1) / 2), off-diagonal values times sqrt(2), which keeps the norm."""
    row, column = torch.triu_indices(c.shape[-1], c.shape[-1], device=c.device)
    factor = torch.full_like(row, math.sqrt(2.0), dtype=c.dtype).masked_fill(row == column, 1.0)
    upper: Tensor = c[..., row, column] * factor
    return upper
