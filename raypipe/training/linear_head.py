"""Penalised linear maps of features: ridge regression, and logistic regression for classes.

The penalty is chosen by predictions of people who are left out. Fits without each part of the people are found side by
side, by L-BFGS on principal axes of the features, where a diagonal bounds the curvature of the loss (Böhning & Lindsay
1988, doi:10.1007/BF00049423).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

PENALTIES: tuple[float, ...] = tuple(10.0 ** (1.0 - power / 2) for power in range(13))
"""Penalties to choose from, as fractions of the features' sum of squares; the largest predict the mean."""
_MEMORY = 10
"""Steps that L-BFGS remembers."""
_MAX_STEPS = {"choice": 100, "fit": 1000}
_TOLERANCES = {"choice": 1e-2, "fit": 1e-8}
"""Norm of the scaled gradient at which a fit ends, as a fraction of its norm at zero."""
_MAX_HALVINGS = 30
_WORSE_PENALTIES = 3
"""The choice ends after so many penalties in a row that are worse than the best."""
_INTERCEPT_PENALTY = 1e-6
"""Keeps the intercept of a class without windows finite."""
_ABSENT = 30.0
"""A class without training windows has an output this much below the mean of the others."""


class Head(NamedTuple):
    """A linear map of features, and how it was fitted."""

    weight: Tensor
    """(outputs, features)."""
    bias: Tensor
    """(outputs,)."""
    penalty: float
    """The chosen one of the fit's `PENALTIES`."""
    loss: float
    """Mean training loss: squared error (of several values, their mean), or log loss. Of bins, the squared error of
    people who are left out."""


def fit_head(
    x_NF: Tensor,
    y_N: Tensor,
    weight_N: Tensor,
    part_N: Tensor,
    n_classes: int,
    *,
    standardise: str = "each",
    losses_P: Tensor | None = None,
) -> Head:
    """Fit a linear map of features to values, or to logits of classes.

    Parameters
    ----------
    x_NF
        Features in float64, which are standardised in place: they may be large.
    y_N
        Values (N,), standardised ones (N, K) of several outputs, or classes (N,). The outputs have one penalty.
    weight_N
        Weights of the windows.
    part_N
        Part of each window, from 0. Each part is predicted by fits on the others, and the penalty with the least loss
        is chosen.
    n_classes
        Number of classes; 0 for regression.
    standardise
        ``each``, divide features by their standard deviations; ``all``, all by one number, which keeps the distances
        between windows; ``half``, each by the root of its standard deviation, and all by one number.
    losses_P
        Loss of people who are left out, by penalty, where it is known (`left_out_losses`). `part_N` is not used then.
    """
    weight_N = weight_N * (len(weight_N) / weight_N.sum())
    present = _present(y_N, weight_N, n_classes)
    if n_classes and len(present) == 1:
        bias_K = torch.full((n_classes,), -_ABSENT, dtype=torch.float64).index_fill(0, present, 0.0)
        return Head(torch.zeros(n_classes, x_NF.shape[1], dtype=torch.float64), bias_K, PENALTIES[0], 0.0)
    centre_F, spread_F = standardise_features(x_NF, weight_N, standardise)
    axes_FR, square_R = principal_axes(x_NF, weight_N)
    problem = _Problem(x_NF @ axes_FR, square_R, _target(y_N, present, n_classes), len(present) if n_classes else 0)
    n_values = problem.values_N1K.shape[2]
    penalty = _choose_penalty(problem, weight_N, part_N) if losses_P is None else PENALTIES[int(losses_P.argmin())]
    b_R1K, (loss,) = problem.fit(weight_N[:, None], penalty * float(square_R.sum()), "fit")
    weight_KF, bias_K = (axes_FR @ b_R1K[:-1, 0]).T / spread_F, b_R1K[-1, 0]
    bias_K = bias_K - weight_KF @ centre_F
    if n_classes and len(present) == 2:  # one logit
        weight_KF, bias_K = torch.cat([-weight_KF, weight_KF]) / 2, torch.cat([-bias_K, bias_K]) / 2
    if n_classes > len(present):
        weight_OF = weight_KF.mean(0).expand(n_classes, -1).clone()
        bias_O = (bias_K.mean() - _ABSENT).expand(n_classes).clone()
        weight_OF[present], bias_O[present] = weight_KF, bias_K
        weight_KF, bias_K = weight_OF, bias_O
    per_value = 1.0 if n_classes else 2.0 / n_values  # the fit has half the squared error
    return Head(weight_KF, bias_K, penalty, per_value * float(loss) / len(y_N))


def left_out_losses(
    x_NF: Tensor, y_N: Tensor, weight_N: Tensor, left_out_N: Tensor, n_classes: int, *, standardise: str = "each"
) -> Tensor:
    """Return the weighted loss of windows that are left out, predicted by a fit on the others with each of `PENALTIES`.

    For features that are fitted without these windows themselves, which `fit_head` cannot know. `left_out_N` is True
    for the windows that are left out. Other parameters are those of `fit_head`.
    """
    weight_N = weight_N * (len(weight_N) / weight_N.sum())
    present = _present(y_N, weight_N, n_classes)
    if n_classes and len(present) == 1:
        return torch.zeros(len(PENALTIES), dtype=torch.float64)
    standardise_features(x_NF, weight_N, standardise)
    axes_FR, square_R = principal_axes(x_NF, weight_N)
    problem = _Problem(x_NF @ axes_FR, square_R, _target(y_N, present, n_classes), len(present) if n_classes else 0)
    losses: list[Tensor] = []
    b_X1K: Tensor | None = None
    for penalty in PENALTIES:
        kept_N1 = (weight_N * ~left_out_N)[:, None]
        b_X1K, _ = problem.fit(kept_N1, penalty * float(square_R.sum()), "choice", b_X1K)
        losses.append((weight_N * left_out_N) @ problem.losses(problem.outputs(b_X1K))[:, 0])
    return torch.stack(losses)


def _present(y_N: Tensor, weight_N: Tensor, n_classes: int) -> Tensor:
    """Return the classes that windows with a weight have; one 0 for values."""
    return torch.unique(y_N[weight_N > 0]).long() if n_classes else torch.zeros(1, dtype=torch.int64)


def _target(y_N: Tensor, present: Tensor, n_classes: int) -> Tensor:
    """Return the values, or the places of the classes among those that are present."""
    return torch.searchsorted(present, y_N.long()) if n_classes else y_N.double()


def standardise_features(x_NF: Tensor, weight_N: Tensor, how: str) -> tuple[Tensor, Tensor]:
    """Standardise features in place; return their centres and scales. Features that never change become zeros."""
    share_N = weight_N / weight_N.sum()
    centre_F = share_N @ x_NF
    x_NF -= centre_F
    spread_F = torch.cat([(share_N @ x_NF[:, part].square()).sqrt() for part in _columns(x_NF)])
    changes_F = spread_F > 1e-9 * centre_F.abs() + 1e-150
    if how == "all":
        spread_F = spread_F.square().mean().sqrt().expand(len(spread_F))
    elif how == "half":  # features divided by the root of their spread have that root as their spread
        spread_F = spread_F.sqrt() * spread_F.mean().sqrt()
    spread_F = torch.where(changes_F, spread_F, math.inf)
    x_NF /= spread_F
    return centre_F, spread_F


def _columns(x_NF: Tensor, each: int = 256) -> list[slice]:
    """Return parts of the columns, for what would need a copy of all."""
    return [slice(start, start + each) for start in range(0, x_NF.shape[1], each)]


def principal_axes(x_NF: Tensor, weight_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return the axes (F, R) in which the weighted squares of features are diagonal, and these sums of squares (R,).

    A penalty on the norm is the same in all axes, and axes without variance have weight zero.
    """
    n, n_features = x_NF.shape
    if n_features <= n:
        square_R, axes_FR = torch.linalg.eigh(x_NF.T @ (x_NF * weight_N[:, None]))
    else:
        root_N1 = weight_N.sqrt()[:, None]
        square_R, axes_NR = torch.linalg.eigh(root_N1 * (x_NF @ x_NF.T) * root_N1.T)
        axes_FR = x_NF.T @ (root_N1 * axes_NR) / square_R.clamp_min(1e-300).sqrt()
    kept_R = square_R > 1e-10 * square_R[-1].clamp_min(1e-300)
    return axes_FR[:, kept_R], square_R[kept_R]


class _Problem:
    """Penalised fits of one target, or of several values together, each with weights of its own, side by side.

    Parameters
    ----------
    z_NR
        Features along their principal axes.
    square_R
        Their weighted sums of squares.
    target
        Values (N,) or (N, K), or classes (N,) from 0.
    n_classes
        0 for regression.
    """

    def __init__(self, z_NR: Tensor, square_R: Tensor, target: Tensor, n_classes: int) -> None:
        self.z_NX = torch.cat([z_NR, torch.ones(len(z_NR), 1, dtype=z_NR.dtype)], dim=1)
        self.square_R, self.target_N, self.n_classes = square_R, target, n_classes
        self.values_N1K = target.view(len(target), 1, -1)
        """Targets of a regression."""
        self.n_logits = n_classes if n_classes > 2 else 1 if n_classes else self.values_N1K.shape[2]
        # Bounds of the second derivative of the loss of a window
        self.curvature = 1.0 if not n_classes else 0.25 if n_classes == 2 else 0.5

    def losses(self, eta_NCK: Tensor) -> Tensor:
        """Return the loss (N, C) of each window and fit, from the outputs (N, C, K): half the squared error, or log.

        Errors of several values are summed, so that each has the fit that it would have alone.
        """
        if not self.n_classes:
            return 0.5 * (eta_NCK - self.values_N1K).square().sum(-1)
        if self.n_classes == 2:
            return F.softplus(eta_NCK[..., 0]) - eta_NCK[..., 0] * self.target_N[:, None]
        index_NC1 = self.target_N[:, None, None].expand(-1, eta_NCK.shape[1], 1)
        return torch.logsumexp(eta_NCK, -1) - eta_NCK.gather(-1, index_NC1)[..., 0]

    def slopes(self, eta_NCK: Tensor) -> Tensor:
        """Return the derivatives (N, C, K) of `losses`."""
        if not self.n_classes:
            return eta_NCK - self.values_N1K
        if self.n_classes == 2:
            return torch.sigmoid(eta_NCK) - self.target_N[:, None, None]
        return torch.softmax(eta_NCK, -1) - F.one_hot(self.target_N, self.n_classes)[:, None]

    def outputs(self, b_XCK: Tensor) -> Tensor:
        """Return the outputs (N, C, K) of fits (R + 1, C, K)."""
        eta_NCK: Tensor = (self.z_NX @ b_XCK.flatten(1)).view(-1, *b_XCK.shape[1:])
        return eta_NCK

    def fit(
        self, weight_NC: Tensor, penalty: float, purpose: str, start_XCK: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Minimise the weighted loss plus half the penalty times the squared norm, by L-BFGS with backtracking.

        Returns
        -------
        b_XCK
            (R + 1, C, K): weights along the axes, and last the intercept.
        loss_C
            Weighted sum of the losses.
        """
        penalty_X11 = torch.full((len(self.square_R) + 1, 1, 1), penalty, dtype=torch.float64)
        penalty_X11[-1] = _INTERCEPT_PENALTY
        square_X11 = torch.cat([self.square_R, weight_NC.sum(0).max()[None]])[:, None, None]
        # In these units the second derivative of the loss is at most 1 in every direction.
        unit_X11 = (self.curvature * square_X11 + penalty_X11).rsqrt()

        def value(eta_NCK: Tensor, b_XCK: Tensor) -> Tensor:
            return (weight_NC * self.losses(eta_NCK)).sum(0) + 0.5 * (penalty_X11 * b_XCK.square()).sum((0, 2))

        def gradient(eta_NCK: Tensor, b_XCK: Tensor) -> Tensor:
            slope_NCK = weight_NC[..., None] * self.slopes(eta_NCK)
            # A product with the transposed matrix on the left takes twice the time.
            g_XCK = (slope_NCK.flatten(1).T.contiguous() @ self.z_NX).T.reshape(b_XCK.shape)
            scaled_XCK: Tensor = (g_XCK + penalty_X11 * b_XCK) * unit_X11
            return scaled_XCK

        b_XCK = torch.zeros(len(unit_X11), weight_NC.shape[1], self.n_logits, dtype=torch.float64)
        eta_NCK = self.outputs(b_XCK)
        g_XCK = gradient(eta_NCK, b_XCK)
        least_C = _TOLERANCES[purpose] * _dot(g_XCK, g_XCK).sqrt()
        if start_XCK is not None:
            b_XCK, eta_NCK = start_XCK, self.outputs(start_XCK)
            g_XCK = gradient(eta_NCK, b_XCK)
        value_C = value(eta_NCK, b_XCK)
        memory: list[tuple[Tensor, Tensor, Tensor]] = []
        for _ in range(_MAX_STEPS[purpose]):
            if (_dot(g_XCK, g_XCK).sqrt() <= least_C).all():
                break
            d_XCK = _direction(g_XCK, memory)
            step_XCK = d_XCK * unit_X11
            eta_step_NCK = self.outputs(step_XCK)
            start, step = (eta_NCK, b_XCK), (eta_step_NCK, step_XCK)
            size_C = _step_size(value, start, step, value_C, _dot(g_XCK, d_XCK))
            b_XCK, eta_NCK = b_XCK + size_C[:, None] * step_XCK, eta_NCK + size_C[:, None] * eta_step_NCK
            value_C, before_XCK, g_XCK = value(eta_NCK, b_XCK), g_XCK, gradient(eta_NCK, b_XCK)
            moved_XCK, change_XCK = size_C[:, None] * d_XCK, g_XCK - before_XCK
            memory = [*memory[-_MEMORY + 1 :], (moved_XCK, change_XCK, _dot(moved_XCK, change_XCK))]
        return b_XCK, (weight_NC * self.losses(eta_NCK)).sum(0)


def _dot(a_XCK: Tensor, b_XCK: Tensor) -> Tensor:
    return (a_XCK * b_XCK).sum((0, 2))


def _step_size(
    value: Callable[[Tensor, Tensor], Tensor],
    start: tuple[Tensor, Tensor],
    step: tuple[Tensor, Tensor],
    value_C: Tensor,
    slope_C: Tensor,
) -> Tensor:
    """Return the size of each fit's step, halved until its value falls enough; 0 where it never does.

    Parameters
    ----------
    value
        Value (C,) of outputs and weights.
    start, step
        Outputs and weights at the start, and what a whole step adds to them.
    value_C, slope_C
        Value and slope at the start.
    """
    (eta_NCK, b_XCK), (eta_step_NCK, step_XCK) = start, step
    size_C = torch.ones_like(value_C)
    for _ in range(_MAX_HALVINGS):
        new_C = value(eta_NCK + size_C[:, None] * eta_step_NCK, b_XCK + size_C[:, None] * step_XCK)
        worse_C = new_C > value_C + 1e-4 * size_C * slope_C + 1e-14 * value_C.abs()
        if not worse_C.any():
            break
        size_C = torch.where(worse_C, size_C / 2, size_C)
    return torch.where(worse_C, 0.0, size_C)


def _direction(g_XCK: Tensor, memory: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Return the quasi-Newton direction of each fit (Nocedal & Wright 2006, algorithm 7.4); no change of a fit is kept
    that has no curvature.
    """
    q_XCK, factors = g_XCK, []
    for moved, change, curvature_C in reversed(memory):
        usable_C = curvature_C > 1e-14 * _dot(change, change)
        rho_C = torch.where(usable_C, 1.0 / curvature_C, 0.0)
        alpha_C = rho_C * _dot(moved, q_XCK)
        q_XCK = q_XCK - alpha_C[:, None] * change
        factors.append((moved, change, rho_C, alpha_C))
    for moved, change, rho_C, alpha_C in reversed(factors):
        q_XCK = q_XCK + (alpha_C - rho_C * _dot(change, q_XCK))[:, None] * moved
    return -q_XCK


def _choose_penalty(problem: _Problem, weight_N: Tensor, part_N: Tensor) -> float:
    """Return the penalty with the least weighted loss of all windows, each part predicted by fits on the others.

    Penalties are tried from the largest down, until they get worse.
    """
    inside_NP = part_N[:, None] == torch.arange(int(part_N.max()) + 1)
    kept_NP, left_out_NP = weight_N[:, None] * ~inside_NP, weight_N[:, None] * inside_NP
    chosen: float = PENALTIES[0]
    least, since = math.inf, 0
    b_XPK: Tensor | None = None
    for penalty in PENALTIES:
        b_XPK, _ = problem.fit(kept_NP, penalty * float(problem.square_R.sum()), "choice", b_XPK)
        loss = float((left_out_NP * problem.losses(problem.outputs(b_XPK))).sum())
        if loss < least:
            chosen, least, since = penalty, loss, 0
        elif (since := since + 1) == _WORSE_PENALTIES:
            break
    return chosen
