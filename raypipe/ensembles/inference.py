"""Predict held-out windows with members, and combine the predictions as the shipped module does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raypipe.core.folds import Index
from raypipe.core.progress import Progress
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.oof import Floats
from raypipe.models.combine import Rule, combine
from raypipe.models.ensemble import EnsembleModule
from raypipe.training.transfer import to_device

BATCH_SIZE = 256


@torch.no_grad()
def predict_members(
    module: EnsembleModule, windows: WindowStore, index: Index, n_members: int, progress: Progress | None
) -> tuple[Floats, Floats | None]:
    """Predict windows with the fold models of each member, on the module's device.

    Returns
    -------
    predictions
        (members, folds, N, outputs).
    variances
        (members, folds, N), or None if no model predicts any.
    """
    parts, variances = [], []
    device = module.device
    for start in range(0, len(index), BATCH_SIZE):
        some = index[start : start + BATCH_SIZE]
        predictions_XBO, variances_XB = module.predict_members(to_device(windows.gather(some), device))
        parts.append(predictions_XBO.cpu().double().numpy().reshape(n_members, -1, *predictions_XBO.shape[1:]))
        if variances_XB is not None:
            variances.append(variances_XB.cpu().double().numpy().reshape(n_members, -1, len(some)))
        if progress:
            progress(min(start + BATCH_SIZE, len(index)), len(index), "held-out windows")
    return np.concatenate(parts, axis=2), np.concatenate(variances, axis=2) if variances else None


def predict_one_per_fold(
    module: EnsembleModule, windows: WindowStore, index: Index, progress: Progress | None
) -> Floats:
    """Predict windows with a module that has one network per fold; return their mean (N, outputs)."""
    return np.asarray(predict_members(module, windows, index, 1, progress)[0][0].mean(axis=0))


def combine_by_fold(rule: Rule, predictions_MFNO: Floats, variances_MFN: Floats | None = None) -> Floats:
    """Apply a rule to the models of each fold, as it was fitted, and return the mean over folds (N, outputs)."""
    used = list(rule.get("only", range(len(predictions_MFNO))))
    predictions = torch.from_numpy(predictions_MFNO[used])
    # Variances that are all zero are left out, as in `MemberPredictions.select_members` and `EnsembleModule`.
    given = None if variances_MFN is None or not variances_MFN[used].any() else torch.from_numpy(variances_MFN[used])
    folds = [
        combine(rule, predictions[:, fold], None if given is None else given[:, fold])
        for fold in range(predictions.shape[1])
    ]
    return np.asarray(torch.stack(folds).mean(0).numpy())


def used_members(rule: Rule, n_members: int) -> tuple[list[int], Floats, Rule | None]:
    """Return the indices of the members that a rule uses, their weights, and the rule for them.

    The rule is None where the weighted mean is the same.
    """
    if rule["kind"] != "linear":
        used = list(rule.get("only", range(n_members)))
        weights = np.array(rule.get("weights", np.ones(len(used))), dtype=np.float64)
        return used, weights / weights.sum(), {name: part for name, part in rule.items() if name != "only"}
    weights = np.array(rule["weights"], dtype=np.float64)
    used = np.flatnonzero(weights > 0).tolist() or [0]
    total = weights[used].sum()
    if rule["intercept"] == 0.0 and np.isclose(total, 1.0):
        return used, weights[used] / total, None
    shares = weights[used] / total if total > 0 else np.full(len(used), 1.0 / len(used))
    return used, shares, {**rule, "weights": weights[used].tolist()}


def weighted_mean(predictions_MNO: Sequence[NDArray[Any]] | NDArray[Any], weights: Floats) -> Floats:
    """Return the weighted mean (N, outputs) of members' predictions (M, N, outputs)."""
    stacked_MNO = np.asarray(predictions_MNO, dtype=np.float64)
    return np.asarray(np.einsum("t,tno->no", weights, stacked_MNO))
