"""Linear discriminant analysis of a regression's targets in bins: the head of models with ``model/bins``.

The predicted value is the mean of the bins' values, weighted by their posterior probabilities. These are too certain
for new people, so they are tempered. Penalty and temperature are chosen by predictions of people who are left out.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from raypipe.training.linear_head import Head, principal_axes, standardise_features

PENALTIES: tuple[float, ...] = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
"""Shares of the mean variance within bins that are added to each direction's."""
INVERSE_TEMPERATURES: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)


class _Moments(NamedTuple):
    """Weighted sums over windows."""

    squares: Tensor
    """(R, R) of the products of features."""
    sums: Tensor
    """(K, R) of the features of each bin."""
    weights: Tensor
    """(K,) of the windows of each bin."""

    def without(self, other: _Moments) -> _Moments:
        """Return the sums over the windows that are not in `other`."""
        return _Moments(*(mine - its for mine, its in zip(self, other, strict=True)))


def fit_discriminant(
    x_NF: Tensor,
    bin_N: Tensor,
    y_N: Tensor,
    values_K: Tensor,
    weight_N: Tensor,
    part_N: Tensor,
    *,
    standardise: str,
    squares_PT: Tensor | None = None,
) -> Head:
    """Fit logits of bins, whose probabilities weight the values of the bins.

    After Fisher 1936 (doi:10.1111/j.1469-1809.1936.tb02137.x). The covariance within bins is shrunk as by Friedman 1989
    (doi:10.1080/01621459.1989.10478752, eq. 18), but for a factor, which the inverse temperature takes up: a multiple
    of the identity is added, of the mean variance along the kept axes.

    Parameters
    ----------
    x_NF
        Features in float64, which are standardised in place.
    bin_N
        Bin of each window's target, from 0.
    y_N
        The targets.
    values_K
        Mean target of each bin.
    weight_N
        Weights of the windows.
    part_N
        Part of each window, from 0. Each part is predicted by fits on the others. The penalty and the temperature with
        the least squared error are chosen.
    standardise
        See `raypipe.training.linear_head.fit_head`.
    squares_PT
        Squared error of people who are left out, by penalty and temperature, where it is known (`left_out_squares`).
        `part_N` is one part then.
    """
    weight_N = weight_N * (len(weight_N) / weight_N.sum())
    centre_F, spread_F = standardise_features(x_NF, weight_N, standardise)
    axes_FR, _ = principal_axes(x_NF, weight_N)
    z_NR = x_NF @ axes_FR
    parts = [part_N == part for part in range(int(part_N.max()) + 1)]
    moments = [_moments(z_NR[inside], bin_N[inside], weight_N[inside], len(values_K)) for inside in parts]
    whole = _Moments(*(torch.stack(sums).sum(0) for sums in zip(*moments, strict=True)))
    if squares_PT is None:
        fits = [_Within(whole.without(own) if len(parts) > 1 else whole) for own in moments]
        squares_PT = torch.stack(
            [
                _squares(fit, z_NR[inside], y_N[inside], values_K, weight_N[inside])
                for fit, inside in zip(fits, parts, strict=True)
            ]
        ).sum(0)
    place, column = divmod(int(squares_PT.argmin()), len(INVERSE_TEMPERATURES))
    weight_RK, bias_K = _Within(whole).maps(PENALTIES[place])
    weight_KF = INVERSE_TEMPERATURES[column] * (axes_FR @ weight_RK).T / spread_F
    bias_K = INVERSE_TEMPERATURES[column] * bias_K - weight_KF @ centre_F
    return Head(weight_KF, bias_K, PENALTIES[place], float(squares_PT.min()) / len(y_N))


def left_out_squares(
    x_NF: Tensor,
    bin_N: Tensor,
    y_N: Tensor,
    values_K: Tensor,
    weight_N: Tensor,
    left_out_N: Tensor,
    *,
    standardise: str,
) -> Tensor:
    """Return the weighted squared error (penalties, temperatures) of windows that are left out, by a fit on the others.

    For features that are fitted without these windows themselves. `left_out_N` is True for the windows that are left
    out. Other parameters are those of `fit_discriminant`.
    """
    weight_N = weight_N * (len(weight_N) / weight_N.sum())
    standardise_features(x_NF, weight_N, standardise)
    z_NR = x_NF @ principal_axes(x_NF, weight_N)[0]
    kept_N = ~left_out_N
    fit = _Within(_moments(z_NR[kept_N], bin_N[kept_N], weight_N[kept_N], len(values_K)))
    return _squares(fit, z_NR[left_out_N], y_N[left_out_N], values_K, weight_N[left_out_N])


def _squares(fit: _Within, z_NR: Tensor, y_N: Tensor, values_K: Tensor, weight_N: Tensor) -> Tensor:
    """Return the weighted squared error of windows, by penalty and temperature."""
    squares_PT = torch.zeros(len(PENALTIES), len(INVERSE_TEMPERATURES), dtype=torch.float64)
    for place, penalty in enumerate(PENALTIES):
        eta_NK = fit.logits(z_NR, penalty)
        for column, inverse in enumerate(INVERSE_TEMPERATURES):
            squares_PT[place, column] = weight_N @ ((inverse * eta_NK).softmax(-1) @ values_K - y_N).square()
    return squares_PT


def _moments(z_NR: Tensor, bin_N: Tensor, weight_N: Tensor, n_bins: int) -> _Moments:
    share_NK = torch.nn.functional.one_hot(bin_N, n_bins) * weight_N[:, None]
    return _Moments(z_NR.T @ (z_NR * weight_N[:, None]), share_NK.T @ z_NR, share_NK.sum(0))


class _Within:
    """Directions of the variance within bins, in which a fit with any penalty is cheap."""

    def __init__(self, moments: _Moments) -> None:
        self.weight_K = moments.weights
        mean_KR = moments.sums / self.weight_K.clamp_min(1e-12)[:, None]
        within_RR = moments.squares - moments.sums.T @ mean_KR
        variance_R, self.axes_RR = torch.linalg.eigh(within_RR / self.weight_K.sum().clamp_min(1e-12))
        self.variance_R = variance_R.clamp_min(0.0)
        self.mean_KR = mean_KR @ self.axes_RR

    def maps(self, penalty: float) -> tuple[Tensor, Tensor]:
        """Return weights (R, K) and biases (K,) of the logits; a bin without windows has none of the probability."""
        added = penalty * self.variance_R.mean() + 1e-12
        scaled_KR = self.mean_KR / (self.variance_R + added)
        share_K = self.weight_K / self.weight_K.sum()
        bias_K = share_K.log() - 0.5 * (scaled_KR * self.mean_KR).sum(1)
        bias_K = torch.where(self.weight_K > 0, bias_K, -math.inf)
        return self.axes_RR @ scaled_KR.T, bias_K.clamp_min(-1e30)

    def logits(self, z_NR: Tensor, penalty: float) -> Tensor:
        """Return the logits (N, K) of windows."""
        weight_RK, bias_K = self.maps(penalty)
        return z_NR @ weight_RK + bias_K
