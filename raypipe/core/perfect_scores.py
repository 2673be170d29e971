"""Bounds of scores that are as good, or as bad, as can be: all resamples agree, so that a bootstrap has no width.

The bound is the true score at which so clear a result has the probability of one tail, 2.5 % of an interval at 95 %:

- A mean over n subjects, all of them right. Their true share p has p^n = tail (Clopper & Pearson 1934,
  doi:10.1093/biomet/26.4.404; the one-sided 5 % bound is about 1 - 3/n, the "rule of three"). This also bounds a mean
  of values in between: among all with one mean, those that are all or nothing are most often all right.
- Scores of a confusion matrix with n_k subjects of class k. The recalls r_k have prod_k r_k^n_k = tail, and the bound
  is the least score of such recalls.
- An AUC, where each subject is of one class. The bound is the AUC of two shifted distributions whose samples are
  completely separated with that probability: normal ones (Obuchowski & Lieber 2002, Academic Radiology 9:526-530), or
  exponential ones, whose long tails are on one side, where their bound is lower. At an AUC of 0.5 the probability is
  one over the number of assignments of classes to subjects, as in a permutation test.

Groups of subjects count as one subject each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raypipe.core.class_metrics import OF_CONFUSION, folds_of_pairs
from raypipe.core.metrics import Floats, Metric

_ROUNDING = 1e-12
_STEPS = 200
"""Distributions of the errors over classes that are tried."""
_QUANTILES = 4000
"""Of the highest score of a class, over which a probability is integrated."""


def interval_of_agreeing(
    metric: Metric, score: float, y: ArrayLike, subjects: ArrayLike, level: float
) -> tuple[float, float]:
    """Return the interval of a score that all resamples agree on; see the module.

    Parameters
    ----------
    metric
        The metric.
    score
        Its value.
    y
        Targets (N,) or (N, K).
    subjects
        Subject of each window (N,), or its group.
    level
        Of the interval.

    Returns
    -------
    low, high
        NaN of a metric without finite limits: nothing bounds it. A score between the limits is returned as it is: only
        predictions that never differ have one that all resamples agree on, and it is exact.
    """
    worst, best = metric.limits if metric.direction == "maximize" else metric.limits[::-1]
    if not (math.isfinite(worst) and math.isfinite(best)):
        return math.nan, math.nan
    tail = (1.0 - level) / 2.0
    found = score
    if abs(score - best) <= _ROUNDING:
        found = worst + (best - worst) * _least(metric, np.asarray(y), np.asarray(subjects), tail)
    elif abs(score - worst) <= _ROUNDING:
        found = best - (best - worst) * _of_mean(len(np.unique(np.asarray(subjects))), tail)
    return min(score, found), max(score, found)


def _least(metric: Metric, y_N: NDArray[Any], subjects_N: NDArray[Any], tail: float) -> float:
    """Return the bound of a perfect score, as a share of the way from the worst to the best."""
    names, index_N = np.unique(subjects_N, return_inverse=True)
    if metric.kind != "classification" or metric.reads == "probabilities":
        return _of_mean(len(names), tail)
    classes, class_N = np.unique(y_N, return_inverse=True)
    share_SK = np.zeros((len(names), len(classes)))
    np.add.at(share_SK, (index_N, class_N), 1.0)
    share_SK /= share_SK.sum(1, keepdims=True)
    if metric.name in OF_CONFUSION:
        low, high = metric.limits
        return (_of_confusion(metric.name, share_SK.sum(0), tail) - low) / (high - low)
    if len(classes) < 2 or (share_SK.max(1) < 1.0).any():
        return _of_mean(len(names), tail)
    first_S = np.unique(index_N, return_index=True)[1]
    fold_S = np.zeros(len(names)) if metric.folds is None else np.asarray(metric.folds)[first_S]
    class_S = share_SK.argmax(1)
    fold_S = folds_of_pairs(class_S, fold_S, len(classes))
    return min(_of_auc(list(_counts(class_S == k, fold_S)), tail) for k in range(len(classes)))


def _of_mean(n: int, tail: float) -> float:
    return float(tail ** (1.0 / n))


def _of_confusion(name: str, n_K: Floats, tail: float) -> float:
    """Return the least score of recalls that make no error with the probability `tail`.

    One class has errors with one recall, and the others with another.
    """
    least, total, k = 1.0, float(n_K.sum()), len(n_K)
    if k == 1:
        return float(tail ** (1.0 / total))
    for own, n in enumerate(n_K):
        recall_R = tail ** (np.linspace(0.0, 1.0, _STEPS) / n)
        other_R = (tail / recall_R**n) ** (1.0 / (total - n))
        matrix_RKK = np.zeros((_STEPS, k, k))
        for each in range(k):
            right_R = recall_R if each == own else other_R
            matrix_RKK[:, each, each] = n_K[each] * right_R
            matrix_RKK[:, each, (each + 1) % k] = n_K[each] * (1.0 - right_R)
        least = min(least, float(np.nanmin(OF_CONFUSION[name](matrix_RKK.reshape(_STEPS, k * k)))))
    return least


def _counts(of_class_S: NDArray[np.bool_], fold_S: NDArray[Any]) -> Iterator[tuple[int, int]]:
    """Yield the subjects of a class, and of the others, in each fold with both."""
    for fold in np.unique(fold_S):
        inside = of_class_S[fold_S == fold]
        if inside.any() and not inside.all():
            yield int(inside.sum()), int((~inside).sum())


def _of_auc(counts: list[tuple[int, int]], tail: float) -> float:
    """Return the AUC at which all subjects are separated, within each fold, with the probability `tail`."""
    swapped = [(others, n) for n, others in counts]
    return min(_of_shift("norm", counts, tail), _of_shift("expon", counts, tail), _of_shift("expon", swapped, tail))


def _of_shift(name: str, counts: list[tuple[int, int]], tail: float) -> float:
    """Return the AUC of two distributions of one shape in `scipy.stats`, ``norm`` or ``expon``; see `_of_auc`."""
    from scipy.optimize import brentq

    def excess(shift: float) -> float:
        return sum(math.log(_separated(name, n, others, shift)) for n, others in counts) - math.log(tail)

    shift = float(brentq(excess, -30.0, 30.0, xtol=1e-9))
    if name == "norm":
        return 0.5 * math.erfc(-shift / 2.0)
    return 1.0 - 0.5 * math.exp(-shift) if shift > 0 else 0.5 * math.exp(shift)


def _separated(name: str, n: int, others: int, shift: float) -> float:
    """Return the probability that `n` values, which are `shift` higher, are above all `others`.

    It is the mean, over the distribution of the highest of the others, of the chance that all n are above it.
    """
    from scipy import stats

    shape = getattr(stats, name)
    highest_Q = shape.ppf(((np.arange(_QUANTILES) + 0.5) / _QUANTILES) ** (1.0 / others))
    return max(float(np.exp(n * shape.logsf(highest_Q - shift)).mean()), 1e-300)
