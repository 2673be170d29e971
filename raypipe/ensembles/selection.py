"""Selection of members: forward, and greedily with replacement."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raypipe.core.class_metrics import folds_of_pairs, indices_of
from raypipe.core.metrics import OF_SQUARED_ERROR, get_metric
from raypipe.ensembles.oof import Floats, MemberPredictions
from raypipe.ensembles.weights import linear_rule
from raypipe.models.combine import Rule

BAGS = 10
"""Random subsets of subjects over which greedy selection is averaged."""
BAG_FRACTION = 0.75
MAX_PICKS = 15
MAX_RANKED_WINDOWS = 8_000
"""Windows of a bag on which metrics that are not of squared error are compared: each comparison sorts all of them. Each
bag draws its own."""
MAX_COMPARED_PAIRS = 2000
"""Pairs of windows up to which an AUC is counted pair by pair, and not from ranks."""


def forward_selection(members: MemberPredictions, n: int) -> list[int]:
    """Return the indices of `n` members, each the one whose addition gives the best mean with equal weights."""
    members = _comparable(members.at_level())
    chosen: list[int] = []
    total_NO = np.zeros_like(members.encoded_targets)
    while len(chosen) < min(n, len(members.names)):
        left = [member for member in range(len(members.names)) if member not in chosen]
        losses_C = _losses(members, (total_NO + members.predictions[left]) / (len(chosen) + 1))
        chosen.append(left[int(losses_C.argmin())])
        total_NO = total_NO + members.predictions[chosen[-1]]
    return chosen


def greedy_selection(members: MemberPredictions) -> Rule:
    """Select greedily with replacement (Caruana et al. 2004), averaged over bags of subjects.

    Caruana et al. (2006) draw half of several hundred members for each bag. Here members are few, and such a bag would
    often lack the best ones, so subjects are drawn instead.
    """
    members = _comparable(members.at_level())
    rng = np.random.default_rng(0)
    names = np.unique(members.subjects)
    weights_M = np.zeros(len(members.names))
    for _ in range(BAGS):
        drawn = rng.choice(names, size=max(1, round(BAG_FRACTION * len(names))), replace=False)
        index = np.flatnonzero(np.isin(members.subjects, drawn))
        if members.metric not in OF_SQUARED_ERROR and len(index) > MAX_RANKED_WINDOWS:
            index = np.sort(rng.choice(index, size=MAX_RANKED_WINDOWS, replace=False))
        counts_M = _pick_greedily(members.select_windows(index))
        weights_M += counts_M / counts_M.sum()
    return linear_rule(weights_M / weights_M.sum())


def _comparable(members: MemberPredictions) -> MemberPredictions:
    """Return members whose squared errors order combinations: several values in units in which each counts the same."""
    return members.standardised() if members.metric in OF_SQUARED_ERROR else members


def _pick_greedily(members: MemberPredictions) -> NDArray[np.int64]:
    """Add the member that gives the best mean, `MAX_PICKS` times; return the counts (M,) at the best of these means."""
    counts_M = np.zeros(len(members.names), np.int64)
    best_M, lowest = counts_M, np.inf
    # The squared error of any mean follows from the products of the members' residuals.
    if members.metric in OF_SQUARED_ERROR:
        residuals_MX = (members.predictions - members.encoded_targets).reshape(len(members.names), -1)
        products_MM = residuals_MX @ residuals_MX.T / residuals_MX.shape[1]
    total_NO = np.zeros_like(members.encoded_targets)
    for picks in range(1, MAX_PICKS + 1):
        if members.metric in OF_SQUARED_ERROR:
            crossed_M = products_MM @ counts_M
            losses_M = (counts_M @ crossed_M + 2 * crossed_M + np.diag(products_MM)) / picks**2
        else:
            losses_M = _losses(members, (total_NO + members.predictions) / picks)
        picked = int(losses_M.argmin())
        counts_M = counts_M + (np.arange(len(counts_M)) == picked)
        total_NO = total_NO + members.predictions[picked]
        loss = float(losses_M.min())
        if loss < lowest - 1e-12 * abs(loss):  # relative: losses have the squared unit of the targets
            best_M, lowest = counts_M, loss
    return best_M


def _losses(members: MemberPredictions, candidates_CNO: Floats) -> Floats:
    """Return a loss (C,) of each candidate's predictions that orders them as the target's metric does.

    An undefined score comes last. The squared error orders them if none is defined.
    """
    if members.metric in OF_SQUARED_ERROR:
        return _squared_errors(members, candidates_CNO)
    if members.metric == "auc":
        return _auc_losses(members, candidates_CNO)
    sign = get_metric(members.metric).sign
    losses_C = np.array([sign * members.score(each_NO) for each_NO in candidates_CNO])
    if np.isnan(losses_C).all():
        return _squared_errors(members, candidates_CNO)
    return np.asarray(np.nan_to_num(losses_C, nan=np.inf))


def _squared_errors(members: MemberPredictions, candidates_CNO: Floats) -> Floats:
    return np.asarray(((candidates_CNO - members.encoded_targets) ** 2).sum(2).mean(1))


def _auc_losses(members: MemberPredictions, candidates_CNO: Floats) -> Floats:
    """Return the negative AUC within folds of all candidates at once; the Brier score if a class is missing.

    It is what `raypipe.core.class_metrics.auc_within` counts.
    """
    n_classes = candidates_CNO.shape[2]
    scored = [1] if n_classes == 2 else range(n_classes)
    fold_N = folds_of_pairs(members.targets, members.folds, n_classes)
    total_C = np.zeros(len(candidates_CNO))
    for k in scored:
        ordered_C, pairs = np.zeros(len(candidates_CNO)), 0
        for i in indices_of(fold_N):
            positive_N = members.targets[i] == k
            if n := int(positive_N.sum()) * int((~positive_N).sum()):
                ordered_C += _compared(candidates_CNO[:, i, k], positive_N, n)
                pairs += n
        if not pairs:
            return _squared_errors(members, candidates_CNO)
        total_C += ordered_C / pairs
    return -total_C / len(scored)


def _compared(scores_CN: Floats, positive_N: NDArray[np.bool_], pairs: int) -> Floats:
    """Return how many pairs of a positive and a negative window each candidate's scores order (C,)."""
    if pairs > MAX_COMPARED_PAIRS:
        return _ordered_pairs(scores_CN, positive_N)
    differences_CPQ = scores_CN[:, positive_N, None] - scores_CN[:, None, ~positive_N]  # a third of the time of ranks
    return np.asarray(pairs * (0.5 + 0.5 * np.sign(differences_CPQ).mean((1, 2))))


def _ordered_pairs(scores_CN: Floats, positive_N: NDArray[np.bool_]) -> Floats:
    """Return how many pairs of a positive and a negative window each candidate's scores (not negative) order (C,).

    A tie counts half. The label is the last bit of the score in float32, so that one sort of whole numbers orders both:
    once with negatives first among equal scores, and once with positives first. Ranks take ten times as long.
    """
    bits_CN = np.ascontiguousarray(scores_CN, np.float32).view(np.int32) & ~1
    pairs_C = np.zeros(len(scores_CN))
    for label_N, positive in ((positive_N, 1), (~positive_N, 0)):
        is_positive_CN = (np.sort(bits_CN | label_N, axis=1) & 1) == positive
        pairs_C += 0.5 * (np.cumsum(~is_positive_CN, axis=1) * is_positive_CN).sum(1)
    return pairs_C
