"""Members' answers to held-out windows, and a fitted rule applied to them as it will be shipped."""

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

BATCH = 256


def deployable(rule: Rule, n: int) -> tuple[list[int], Floats, Rule | None]:
    """Places of the trials that a rule uses, their weights, and the rule for them, where weights alone do not do."""
    if rule["kind"] != "linear":
        places = list(rule.get("only", range(n)))
        shares = np.array(rule.get("weights", np.ones(len(places))), dtype=np.float64)
        return places, shares / shares.sum(), {name: part for name, part in rule.items() if name != "only"}
    weights = np.array(rule["weights"], dtype=np.float64)
    used = np.flatnonzero(weights > 0).tolist() or [0]
    total = weights[used].sum()
    if rule["intercept"] == 0.0 and np.isclose(total, 1.0):
        return used, weights[used] / total, None
    shares = weights[used] / total if total > 0 else np.full(len(used), 1.0 / len(used))
    return used, shares, {**rule, "weights": weights[used].tolist()}


def by_fold(rule: Rule, answers_TFNO: Floats, variances_TFN: Floats | None = None) -> Floats:
    """Apply a rule to the models of each fold, as it was fitted, and average over folds (N, outputs)."""
    places = list(rule.get("only", range(len(answers_TFNO))))
    answers = torch.from_numpy(answers_TFNO[places])
    tells = (
        variances_TFN is not None and variances_TFN[places].any()
    )  # as `Members.only` and `EnsembleModule.predict_members`
    told = torch.from_numpy(variances_TFN[places]) if variances_TFN is not None and tells else None
    folds = [
        combine(rule, answers[:, fold], None if told is None else told[:, fold]) for fold in range(answers.shape[1])
    ]
    return np.asarray(torch.stack(folds).mean(0).numpy())


def mix(predictions_TNO: Sequence[NDArray[Any]] | NDArray[Any], weights: Floats) -> Floats:
    """Weighted mean of trials' predictions, (T, N, outputs) -> (N, outputs)."""
    stacked_TNO = np.asarray(predictions_TNO, dtype=np.float64)
    return np.asarray(np.einsum("t,tno->no", weights, stacked_TNO))


@torch.no_grad()
def predict_members(
    module: EnsembleModule, windows: WindowStore, index: Index, n: int, progress: Progress | None
) -> tuple[Floats, Floats | None]:
    """What the fold models of each of `n` members answer (n, F, N, outputs), and variances (n, F, N) if any tells."""
    parts, told = [], []
    for start in range(0, len(index), BATCH):
        some = index[start : start + BATCH]
        answers_MBO, variances_MB = module.predict_members(torch.from_numpy(windows.gather(some)))
        parts.append(answers_MBO.double().numpy().reshape(n, -1, *answers_MBO.shape[1:]))
        if variances_MB is not None:
            told.append(variances_MB.double().numpy().reshape(n, -1, len(some)))
        if progress:
            progress(min(start + BATCH, len(index)), len(index), "held-out windows")
    return np.concatenate(parts, axis=2), np.concatenate(told, axis=2) if told else None
