"""How strongly a number or a category of people goes with a target, and how probable that is by chance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Classes = NDArray[np.int64]
PERMUTATIONS = 999
FOLDS = 5
"""Parts of people whose categories are judged by the others."""


def share_as_good(statistic: Callable[[NDArray[Any]], float], target_K: NDArray[Any]) -> float:
    """Return the probability of a statistic that large by chance, from permutations of the targets."""
    rng, observed = np.random.default_rng(0), statistic(target_K)
    as_good = sum(statistic(rng.permutation(target_K)) >= observed - 1e-12 for _ in range(PERMUTATIONS))
    return (1 + as_good) / (1 + PERMUTATIONS)


def correlation_ratio(code_K: Classes, value_K: Floats) -> float:
    """Return the square root of the share of the variance that lies between categories."""
    n_V, sum_V = np.bincount(code_K), np.bincount(code_K, weights=value_K)
    mean = value_K.mean()
    between = (n_V * (sum_V / n_V - mean) ** 2).sum()
    return float(np.sqrt(between / ((value_K - mean) ** 2).sum()))


def ranks(value_K: Floats) -> Floats:
    """Return ranks from 1 on; equal values share their mean rank."""
    _, place_K, count_V = np.unique(value_K, return_inverse=True, return_counts=True)
    mean_V = np.cumsum(count_V) - (count_V - 1) / 2
    ranks: Floats = mean_V[place_K]
    return ranks


def auc(rank_K: Floats, class_K: Classes) -> float:
    """Return the mean over classes of the AUC of one against the rest, each in its better direction."""
    found = [area(rank_K, class_K == number) for number in np.unique(class_K)]
    return float(np.mean([max(auc, 1 - auc) for auc in found]))


def area(rank_K: Floats, inside_K: NDArray[np.bool_]) -> float:
    """Return an AUC by the sum of ranks (Mann & Whitney 1947, doi:10.1214/aoms/1177730491)."""
    n, rest = int(inside_K.sum()), int((~inside_K).sum())
    return float((rank_K[inside_K].sum() - n * (n + 1) / 2) / (n * rest))


def shares(code_K: Classes, class_K: Classes, n_codes: int, n_classes: int) -> Floats:
    """Return for each person the share of each class among other people of the same category, fold by fold."""
    fold_K = np.random.default_rng(0).permutation(len(code_K)) % FOLDS
    overall_C = np.bincount(class_K, minlength=n_classes) / len(class_K)
    score_KC = np.empty((len(code_K), n_classes))
    for fold in range(FOLDS):
        others_K = fold_K != fold
        table_VC = np.zeros((n_codes, n_classes))
        np.add.at(table_VC, (code_K[others_K], class_K[others_K]), 1)
        share_VC = (table_VC + overall_C) / (table_VC.sum(axis=1, keepdims=True) + 1)
        score_KC[~others_K] = share_VC[code_K[~others_K]]
    return score_KC


def chi_square(code_K: Classes, class_K: Classes, n_codes: int, n_classes: int) -> float:
    """Return Pearson's statistic of category and class."""
    table_VC = np.zeros((n_codes, n_classes))
    np.add.at(table_VC, (code_K, class_K), 1)
    expected_VC = table_VC.sum(axis=1, keepdims=True) * table_VC.sum(axis=0) / table_VC.sum()
    return float(((table_VC - expected_VC) ** 2 / expected_VC).sum())
