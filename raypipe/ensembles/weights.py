"""Ways to weigh the trials of an ensemble, from out-of-fold predictions alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raypipe.core.metrics import Kind
from raypipe.ensembles.oof import Floats, Members
from raypipe.models.combine import Rule, apply_temperature, normalised_entropy

SHARPEST = 16.0
POWERS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, SHARPEST)

Method = Callable[[Sequence[NDArray[Any]], NDArray[Any], Kind], Floats]


def equal(oof_TNO: Sequence[NDArray[Any]], y: NDArray[Any], kind: Kind) -> Floats:
    """Weigh all trials alike."""
    return np.full(len(oof_TNO), 1.0 / len(oof_TNO))


def confidence(oof_TNO: Sequence[NDArray[Any]], y: NDArray[Any], kind: Kind) -> Floats:
    """Weigh each trial by a power of its inverse mean squared error (classes: Brier score), normalised.

    The power 1 gives the best weights there are if the trials' errors are unbiased and independent. Those of networks
    trained on the same people are neither: the trials share most of their error, and a weak one adds little but its
    own. So the power, from 0 (equal weights) to `SHARPEST`, is the one whose weighted mean errs least out of fold: a
    single number is fitted, and 1 is kept where none is better.
    """
    errors_T = np.array([squared_error(p_NO, y, kind) for p_NO in oof_TNO])
    perfect_T = errors_T == 0.0
    if perfect_T.any():
        return np.asarray(perfect_T / perfect_T.sum())
    inverse_T = errors_T.min() / errors_T  # the ratio, so that tiny errors do not overflow
    chosen_T, least = inverse_T / inverse_T.sum(), np.inf
    for power in sorted(POWERS, key=lambda power: power != 1.0):
        weights_T = inverse_T**power / np.sum(inverse_T**power)
        error = squared_error(np.tensordot(weights_T, np.stack(oof_TNO).astype(np.float64), 1), y, kind)
        if error < least * (1 - 1e-6):
            chosen_T, least = weights_T, error
    return np.asarray(chosen_T)


def best(oof_TNO: Sequence[NDArray[Any]], y: NDArray[Any], kind: Kind) -> Floats:
    """Give all weight to the best single trial: the first."""
    return np.asarray(np.eye(len(oof_TNO))[0])


METHODS: dict[str, Method] = {"confidence": confidence, "equal": equal, "best": best}
"""Ways to weigh trials: ``method(oof_TNO, y, kind)`` gives weights (T,), none negative, that sum to one. `oof_TNO`
holds each trial's out-of-fold predictions (N, outputs), best trial first; held-out subjects are in none of them."""


def squared_error(p_NO: NDArray[Any], y: NDArray[Any], kind: Kind) -> float:
    """Mean squared error, or the Brier score (Brier 1950: summed over classes) of probabilities (N, n_classes)."""
    goal_NO = np.eye(p_NO.shape[1])[y.astype(np.int64)] if kind == "classification" else y[:, None]
    return float(np.mean(np.sum((p_NO.astype(np.float64) - goal_NO) ** 2, axis=1)))


SHARPNESS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)


def no_confidence_reason(members: Members) -> str | None:
    """Why members have no weights a sample, or None."""
    if members.kind == "regression" and members.variances is None:
        return "no member tells a variance beside its value"
    return None


def _calibrated(wrong_N: Floats, told_N: Floats | None) -> tuple[float, float]:
    """Scale and floor of the variance ``scale * told + floor`` under which errors are likeliest (Gaussian)."""
    mean = max(float(np.mean(wrong_N**2)), 1e-300)
    if told_N is None or not np.isfinite(told_N).all() or np.ptp(told_N) == 0.0:
        return 0.0, mean
    from scipy.optimize import minimize

    unit_N, square_N = told_N / told_N.mean(), wrong_N**2 / mean

    def surprise(ab: Floats) -> tuple[float, Floats]:
        v_N = ab[0] * unit_N + ab[1]
        slope_N = 0.5 * (1.0 / v_N - square_N / v_N**2) / len(v_N)
        return float(np.mean(0.5 * (np.log(v_N) + square_N / v_N))), np.array([slope_N @ unit_N, slope_N.sum()])

    found = minimize(surprise, np.array([0.5, 0.5]), jac=True, bounds=[(0.0, 1e3), (1e-4, 1e3)], method="L-BFGS-B")
    return float(found.x[0] * mean / told_N.mean()), float(found.x[1] * mean)


def per_sample(members: Members, *, by_member: bool) -> Rule:
    """Weights a sample: by the variance that a member tells, or its entropy; calibrated together, or by member."""
    if members.kind == "classification":
        return _by_entropy(members, by_member=by_member)
    wrong_MN = members.answers[:, :, 0] - members.targets
    # None of some of the members, where others tell variances: each then has one weight for all windows.
    told_MN = np.zeros_like(wrong_MN) if members.variances is None else members.variances
    pairs = [_calibrated(wrong_N, told_N) for wrong_N, told_N in zip(wrong_MN, told_MN, strict=True)]
    if not by_member:  # those that tell a variance share one calibration
        telling = [place for place, told_N in enumerate(told_MN) if told_N.any()]
        shared = _calibrated(wrong_MN[telling].ravel(), told_MN[telling].ravel()) if telling else (0.0, 0.0)
        pairs = [shared if place in telling else own for place, own in enumerate(pairs)]
    return {"kind": "precision", "scale": [a for a, _ in pairs], "floor": [b for _, b in pairs]}


def _by_entropy(members: Members, *, by_member: bool) -> Rule:
    answers_MNK = torch.from_numpy(members.answers)
    temperatures = [temperature(p_NK, members.targets) for p_NK in members.answers]
    p_MNK = apply_temperature(answers_MNK, torch.tensor(temperatures, dtype=torch.float64))
    entropy_MN = normalised_entropy(p_MNK).numpy()
    calm = p_MNK.numpy()
    weigh = confidence if by_member else equal
    weights_M = weigh([*calm], members.targets, members.kind)
    least, chosen = np.inf, 0.0
    for gamma in SHARPNESS:
        shares_MN = weights_M[:, None] * np.exp(-gamma * entropy_MN)
        mixed_NK = np.einsum("mn,mnk->nk", shares_MN / shares_MN.sum(0), calm)
        error = float(np.mean(np.sum((mixed_NK - members.goals) ** 2, axis=1)))
        if error < least * (1 - 1e-6):
            least, chosen = error, gamma
    return {"kind": "entropy", "weights": weights_M.tolist(), "temperatures": temperatures, "gamma": chosen}


def temperature(p_NK: Floats, classes_N: NDArray[Any]) -> float:
    """Temperature that makes class probabilities likeliest (Guo et al. 2017, arXiv:1706.04599), from 0.1 to 10."""
    from scipy.optimize import minimize_scalar

    log_NK, rows = np.log(np.maximum(p_NK, 1e-7)), np.arange(len(p_NK))

    def surprise(log_t: float) -> float:
        z_NK = log_NK / np.exp(log_t)
        top_N = z_NK.max(1)
        return float(np.mean(top_N + np.log(np.exp(z_NK - top_N[:, None]).sum(1)) - z_NK[rows, classes_N]))

    found = minimize_scalar(surprise, bounds=(np.log(0.1), np.log(10.0)), method="bounded")
    return float(np.exp(found.x))
