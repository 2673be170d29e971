"""Targets of several values: how they are scored, ordered and shown.

A target is one value or class per window, (N,), or several values, (N, K).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from raypipe.core.metrics import Metric

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def mean_over_outputs(metric: Metric) -> Metric:
    """Return a metric of one value as one of several: the mean of the scores of each output.

    Targets (N,) are scored as before.
    """

    def value(y: ArrayLike, pred: ArrayLike) -> float:
        """Return the score, for targets (N, K) the mean over the outputs."""
        if np.ndim(y) < 2:
            return metric.value(y, pred)
        return float(np.mean([metric.value(*pair) for pair in _by_output(y, pred)]))

    def resampled(y: ArrayLike, pred: ArrayLike, subject_N: Ints, counts_RS: Ints) -> Floats:
        """Return the scores (R,) of resamples, for targets (N, K) the mean over the outputs."""
        if np.ndim(y) < 2:
            return metric.resampled(y, pred, subject_N, counts_RS)
        found = [metric.resampled(*pair, subject_N, counts_RS) for pair in _by_output(y, pred)]
        return np.asarray(np.mean(found, axis=0))

    return metric._replace(value=value, resampled=resampled)


def _by_output(y: ArrayLike, pred: ArrayLike) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Return targets (N,) and predictions (N, 1) of each output."""
    y_NK, pred_NK = np.asarray(y), np.asarray(pred)
    if y_NK.ndim != 2 or pred_NK.shape != y_NK.shape:
        raise ValueError(f"expected targets and predictions (N, K), got {y_NK.shape} and {pred_NK.shape}")
    return [(y_NK[:, k], pred_NK[:, k : k + 1]) for k in range(y_NK.shape[1])]


def one_value(targets: ArrayLike) -> NDArray[Any]:
    """Return one number per row (N,), by which rows are ordered: the target, or the mean of its standardised values."""
    targets_N = np.asarray(targets)
    if targets_N.ndim < 2:
        return targets_N
    values_NK = targets_N.astype(np.float64)
    return np.asarray(((values_NK - values_NK.mean(0)) / spread_of(values_NK)).mean(1))


def spread_of(targets: ArrayLike) -> Floats:
    """Return the standard deviation (K,) of each output of targets (N, K); 1 where it is constant."""
    values_NK = np.asarray(targets, np.float64)
    changes_K = np.ptp(values_NK, axis=0) > 0 if len(values_NK) else np.zeros(values_NK.shape[1], bool)
    return np.where(changes_K, values_NK.std(axis=0), 1.0)


def as_columns(targets: NDArray[Any]) -> NDArray[Any]:
    """Return targets as predictions have them: (N, 1) of one value, (N, K) of several."""
    return targets if targets.ndim == 2 else targets[:, None]
