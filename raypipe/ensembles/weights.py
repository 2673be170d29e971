"""Fit weights of members on out-of-fold predictions: one for each member, or one for each member and window.

Several values share their weights, which are fitted on the errors of all of them in standard deviations of the targets.
Where scores are of people, so are the errors: each member's predictions are averaged per person first, which a weighted
sum commutes with. Weights of windows do not, and are fitted on windows, of which each person's count the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raypipe.core.metrics import Kind, get_metric
from raypipe.core.outputs import as_columns
from raypipe.ensembles.oof import Floats, MemberPredictions, subject_splits
from raypipe.models.combine import Rule, apply_temperature, normalised_entropy

INNER_GROUPS = 4
"""Groups of subjects over which a method cross-validates its own parameters."""
POWERS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Powers of the inverse mean squared error."""
TEMPERATURES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 100.0)
"""Temperatures of the softmax over errors."""
ENTROPY_FACTORS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Factors of the entropy in a window's weight, ``exp(-factor * entropy)``."""


def linear_rule(weights: Floats, intercept: float | Sequence[float] = 0.0) -> Rule:
    """Return the rule of fixed weights (M,), with an intercept, or one for each of several values."""
    added = [float(each) for each in intercept] if isinstance(intercept, Sequence) else float(intercept)
    return {"kind": "linear", "weights": [float(w) for w in weights], "intercept": added}


# One weight for each member


def best_member(members: MemberPredictions) -> Rule:
    """Give all weight to the member with the best score."""
    return linear_rule(np.eye(len(members.names))[members.ranking()[0]])


def equal_weights(members: MemberPredictions) -> Rule:
    """Weight all members equally."""
    return linear_rule(np.full(len(members.names), 1.0 / len(members.names)))


def average_of_best(members: MemberPredictions) -> Rule:
    """Weight the best n members equally, with the n whose mean scores best."""
    metric, order = get_metric(members.metric), members.ranking()
    means_MNO = np.cumsum(members.predictions[order], axis=0) / np.arange(1, len(order) + 1)[:, None, None]
    best_n, best_score = 1, np.nan
    for n, mean_NO in enumerate(means_MNO, start=1):
        found = members.score(mean_NO)
        if metric.better(found, best_score):
            best_n, best_score = n, found
    return linear_rule(np.isin(np.arange(len(order)), order[:best_n]) / best_n)


def average_of_snapshots(members: MemberPredictions) -> Rule:
    """Weight the best trial that has snapshots and its snapshots equally (Huang et al. 2017)."""
    inside_M = np.isin(np.arange(len(members.names)), best_trial_with_snapshots(members))
    return linear_rule(inside_M / inside_M.sum())


def best_trial_with_snapshots(members: MemberPredictions) -> list[int]:
    """Return the indices of all members of the best trial that has several; if no trial has, of the best trial."""
    trials = members.trials or list(range(len(members.names)))
    order = members.ranking()
    best = next((trials[member] for member in order if trials.count(trials[member]) > 1), trials[order[0]])
    return [member for member, trial in enumerate(trials) if trial == best]


def inverse_error(members: MemberPredictions) -> Rule:
    """Weight members by the inverse of their mean squared error."""
    errors_M = members.at_level().squared_errors
    errors_M = np.maximum(errors_M, 1e-12 * errors_M.max() + 1e-300)
    return linear_rule((1 / errors_M) / np.sum(1 / errors_M))


def power_of_inverse_error(members: MemberPredictions) -> Rule:
    """Weight members by a fitted power of the inverse of their mean squared error (`confidence_weights`)."""
    like = members.at_level().standardised()
    return linear_rule(confidence_weights([*like.predictions], like.targets, like.kind))


def confidence_weights(predictions_MNO: Sequence[NDArray[Any]], targets: NDArray[Any], kind: Kind) -> Floats:
    """Return weights (M,) that are a power of the inverse mean squared error (classes: Brier score), normalized.

    The power 1 is optimal for unbiased, independent errors. Networks that were trained on the same subjects share most
    of their error, so a weak one adds little but error of its own. The power is the one of `POWERS` whose weighted mean
    has the lowest error; 1 is kept if no other is better.
    """
    errors_M = np.array([squared_error(member_NO, targets, kind) for member_NO in predictions_MNO])
    perfect_M = errors_M == 0.0
    if perfect_M.any():
        return np.asarray(perfect_M / perfect_M.sum())
    inverse_M = errors_M.min() / errors_M  # the ratio, so that tiny errors do not overflow
    best_M, lowest = inverse_M / inverse_M.sum(), np.inf
    stacked_MNO = np.stack(predictions_MNO).astype(np.float64)
    for power in sorted(POWERS, key=lambda power: power != 1.0):
        weights_M = inverse_M**power / np.sum(inverse_M**power)
        error = squared_error(np.tensordot(weights_M, stacked_MNO, 1), targets, kind)
        if error < lowest * (1 - 1e-6):
            best_M, lowest = weights_M, error
    return np.asarray(best_M)


def squared_error(predictions_NO: NDArray[Any], targets: NDArray[Any], kind: Kind) -> float:
    """Return the mean squared error, or the Brier score of probabilities (Brier 1950: summed over classes)."""
    classes = kind == "classification"
    wanted_NO = np.eye(predictions_NO.shape[1])[targets.astype(np.int64)] if classes else as_columns(targets)
    return float(np.mean(np.sum((predictions_NO.astype(np.float64) - wanted_NO) ** 2, axis=1)))


def softmax_of_errors(members: MemberPredictions) -> Rule:
    """Weight members by a softmax of their errors, the temperature cross-validated over subjects."""
    members = members.at_level()
    like = members.standardised()
    residuals_MNO = like.predictions - like.encoded_targets
    losses_T = np.zeros(len(TEMPERATURES))
    for fit_N, test_N in subject_splits(members, INNER_GROUPS):
        errors_M = (residuals_MNO[:, fit_N] ** 2).sum(2).mean(1)
        for index, temperature in enumerate(TEMPERATURES):
            combined_NO = np.tensordot(_softmax(errors_M, temperature), residuals_MNO[:, test_N], 1)
            losses_T[index] += (combined_NO**2).sum()
    return linear_rule(_softmax(members.squared_errors, TEMPERATURES[int(losses_T.argmin())]))


def _softmax(errors_M: Floats, temperature: float) -> Floats:
    excess_M = (errors_M - errors_M.min()) / max(float(errors_M.min()), 1e-300)
    weights_M = np.exp(-excess_M / temperature)
    return np.asarray(weights_M / weights_M.sum())


# One weight for each member and window


def variance_or_entropy_weights(members: MemberPredictions, *, by_member: bool) -> Rule:
    """Weight each window of a member by its predicted variance, or by the entropy of its class probabilities.

    Parameters
    ----------
    members
        Predictions to fit on.
    by_member
        Fit the calibration, or for classes the weight, of each member separately, instead of one for all members.
    """
    if members.kind == "classification":
        return _entropy_rule(members, by_member=by_member)
    return _precision_rule(members, by_member=by_member)


def missing_variances(members: MemberPredictions) -> str | None:
    """Return why members have no weights per window, or None."""
    if members.kind == "regression" and members.variances is None:
        return "no member predicts a variance beside its value"
    return None


def _precision_rule(members: MemberPredictions, *, by_member: bool) -> Rule:
    """Weight windows by the inverse of ``scale * variance + floor``."""
    residuals_MN = members.predictions[:, :, 0] - members.targets
    # A limit on members may leave none that predicts a variance: each then has one weight for all windows.
    variances_MN = np.zeros_like(residuals_MN) if members.variances is None else members.variances
    weights_N = members.window_weights
    pairs = [calibrate_variance(*pair, weights_N) for pair in zip(residuals_MN, variances_MN, strict=True)]
    predicting = [member for member, variances_N in enumerate(variances_MN) if variances_N.any()]
    if predicting and not by_member:
        residuals_X, variances_X = residuals_MN[predicting].ravel(), variances_MN[predicting].ravel()
        shared = calibrate_variance(residuals_X, variances_X, np.tile(weights_N, len(predicting)))
        pairs = [shared if member in predicting else own for member, own in enumerate(pairs)]
    return {"kind": "precision", "scale": [scale for scale, _ in pairs], "floor": [floor for _, floor in pairs]}


def calibrate_variance(residuals_N: Floats, variances_N: Floats, weights_N: Floats) -> tuple[float, float]:
    """Return the scale and floor of ``scale * variance + floor`` that maximize the Gaussian likelihood of residuals.

    Each window's logarithm of the likelihood has a weight (N,) of mean one.
    """
    mean = max(float(np.mean(weights_N * residuals_N**2)), 1e-300)
    if not np.isfinite(variances_N).all() or np.ptp(variances_N) == 0.0:
        return 0.0, mean
    from scipy.optimize import minimize

    unit_N, square_N = variances_N / variances_N.mean(), residuals_N**2 / mean

    def negative_log_likelihood(parameters: Floats) -> tuple[float, Floats]:
        v_N = parameters[0] * unit_N + parameters[1]
        slope_N = 0.5 * weights_N * (1.0 / v_N - square_N / v_N**2) / len(v_N)
        return float(np.mean(0.5 * weights_N * (np.log(v_N) + square_N / v_N))), np.array(
            [slope_N @ unit_N, slope_N.sum()]
        )

    bounds = [(0.0, 1e3), (1e-4, 1e3)]
    found = minimize(negative_log_likelihood, np.array([0.5, 0.5]), jac=True, bounds=bounds, method="L-BFGS-B")
    return float(found.x[0] * mean / variances_N.mean()), float(found.x[1] * mean)


def _entropy_rule(members: MemberPredictions, *, by_member: bool) -> Rule:
    """Calibrate probabilities by temperature, and weight windows by ``exp(-gamma * entropy)``."""
    weights_N = members.window_weights
    temperatures = [fit_temperature(member_NK, members.targets, weights_N) for member_NK in members.predictions]
    calibrated = apply_temperature(
        torch.from_numpy(members.predictions), torch.tensor(temperatures, dtype=torch.float64)
    )
    entropy_MN, p_MNK = normalised_entropy(calibrated).numpy(), calibrated.numpy()
    n = len(p_MNK)
    of_level = replace(members, predictions=p_MNK).at_level()
    weights_M = np.full(n, 1.0 / n)
    if by_member:
        weights_M = confidence_weights([*of_level.predictions], of_level.targets, members.kind)
    best_gamma, lowest = 0.0, np.inf
    for gamma in ENTROPY_FACTORS:
        weights_MN = weights_M[:, None] * np.exp(-gamma * entropy_MN)
        combined_NK = np.einsum("mn,mnk->nk", weights_MN / weights_MN.sum(0), p_MNK)
        error = float(replace(members, predictions=combined_NK[None]).at_level().squared_errors[0])
        if error < lowest * (1 - 1e-6):
            best_gamma, lowest = gamma, error
    return {"kind": "entropy", "weights": weights_M.tolist(), "temperatures": temperatures, "gamma": best_gamma}


def fit_temperature(p_NK: Floats, classes_N: NDArray[Any], weights_N: Floats) -> float:
    """Return the temperature of class probabilities that has the highest likelihood, from 0.1 to 10.

    See Guo et al. 2017, arXiv:1706.04599. Each window's logarithm of the likelihood has a weight (N,) of mean one.
    """
    from scipy.optimize import minimize_scalar

    log_NK, rows = np.log(np.maximum(p_NK, 1e-7)), np.arange(len(p_NK))

    def negative_log_likelihood(log_temperature: float) -> float:
        z_NK = log_NK / np.exp(log_temperature)
        top_N = z_NK.max(1)
        losses_N = top_N + np.log(np.exp(z_NK - top_N[:, None]).sum(1)) - z_NK[rows, classes_N]
        return float(np.mean(weights_N * losses_N))

    found = minimize_scalar(negative_log_likelihood, bounds=(np.log(0.1), np.log(10.0)), method="bounded")
    return float(np.exp(found.x))
