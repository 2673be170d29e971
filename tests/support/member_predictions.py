"""Invented out-of-fold predictions of members, with known errors."""

from __future__ import annotations

import numpy as np

from raypipe.ensembles.methods import METHODS
from raypipe.ensembles.nested_cv import cross_predict
from raypipe.ensembles.oof import MemberPredictions
from raypipe.ensembles.trial_pool import OUTER_GROUPS


def values(predictions_MN, y, variances=None, subjects=20) -> MemberPredictions:
    """Return members of a regression with these predictions (M, N) and targets (N,)."""
    n = len(y)
    names = np.repeat([f"s{k:02d}" for k in range(subjects)], -(-n // subjects))[:n]
    predictions = np.asarray(predictions_MN, dtype=np.float32).astype(float)[:, :, None]
    labels = [f"trial {k}" for k in range(len(predictions))]
    folds = np.zeros(n, np.int64)
    return MemberPredictions(labels, predictions, y, names, folds, np.arange(n), "nrmse", "regression", variances)


def classes(seed=0, n=1200, sharpness=(2.0, 2.0, 2.0)) -> MemberPredictions:
    """Return members of a classification whose logits are noisy copies of the true ones, scaled by `sharpness`."""
    rng = np.random.default_rng(seed)
    truth_N = rng.normal(size=n)
    y = (rng.random(n) < 1 / (1 + np.exp(-2 * truth_N))).astype(np.int64)
    logits = [s * (truth_N + 0.7 * rng.normal(size=n)) for s in sharpness]
    p_MN = 1 / (1 + np.exp(-np.array(logits)))
    names = np.repeat([f"s{k:02d}" for k in range(20)], n // 20)
    labels = [f"trial {k}" for k in range(len(sharpness))]
    predictions = np.stack([1 - p_MN, p_MN], axis=2).astype(np.float32).astype(float)
    return MemberPredictions(
        labels, predictions, y, names, np.zeros(n, np.int64), np.arange(n), "auc", "classification"
    )


def independent(spreads, n=8_000, seed=0) -> tuple[MemberPredictions, float]:
    """Return members with independent errors of these standard deviations, and `best_error` of them."""
    rng = np.random.default_rng(seed)
    y = rng.normal(size=n)
    members = values([y + s * rng.normal(size=n) for s in spreads], y)
    return members, best_error(members, np.array(spreads)[:, None] ** 2.0)


def best_error(members: MemberPredictions, variances_MN) -> float:
    """Return the mean squared error on these samples of the best unbiased weights, which are inverse variances."""
    weights_MN = np.broadcast_to(1.0 / variances_MN, members.predictions.shape[:2])
    mixed_N = (weights_MN * members.predictions[:, :, 0]).sum(0) / weights_MN.sum(0)
    return float(np.mean((mixed_N - members.targets) ** 2))


def mse(members: MemberPredictions, name: str) -> float:
    """Return the mean squared error on subjects that the method was not fitted on."""
    predictions, _ = cross_predict({name: METHODS[name].fit}, members, OUTER_GROUPS)
    return float(np.mean((predictions[name][:, 0] - members.targets) ** 2))
