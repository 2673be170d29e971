"""Metrics of values: errors in target units or relative to the spread of the targets, and correlation."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raypipe.core.class_metrics import mean, mean_sums

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_ROUNDING = 1e-12
"""A variance below this share of the mean square is rounding error."""


def checked_values(y: ArrayLike, pred: ArrayLike) -> tuple[Floats, Floats]:
    """Return targets (N,) and predictions (N,), and check their shapes.

    Raises
    ------
    ValueError
        Shapes are not (N,) and (N, 1) or (N,): NumPy would broadcast (N,) against (N, 1) to (N, N).
    """
    y_N, pred_N = np.asarray(y, dtype=np.float64), np.asarray(pred, dtype=np.float64)
    if y_N.ndim != 1 or pred_N.shape not in (y_N.shape, (len(y_N), 1)):
        raise ValueError(f"expected targets (N,) and predictions (N, 1), got {y_N.shape} and {pred_N.shape}")
    return y_N, pred_N.reshape(-1)


def nrmse(y: ArrayLike, pred: ArrayLike) -> float:
    """Return the root mean square error over the population standard deviation of `y`, pooled over all windows.

    It is the score of the NeurIPS 2025 EEG challenge: predicting the mean of `y` gives 1. Predictions must be pooled
    before scoring, since the mean over batches or folds is another number.

    Parameters
    ----------
    y
        Targets (N,).
    pred
        Predictions (N, 1) or (N,).

    Returns
    -------
    float
        NaN when `y` is empty or constant, or a prediction is not finite.

    Raises
    ------
    ValueError
        Shapes differ from those above: NumPy would broadcast (N,) against (N, 1) to (N, N).
    """
    y_N, pred_N = checked_values(y, pred)
    if len(y_N) == 0 or np.ptp(y_N) == 0.0 or not np.isfinite(pred_N).all():
        return float("nan")
    return float(np.sqrt(np.mean((y_N - pred_N) ** 2)) / y_N.std())


def absolute_sums(y: ArrayLike, pred: ArrayLike, subject_N: Ints, n_subjects: int) -> Floats:
    """Return each subject's windows and their summed absolute error (S, 2)."""
    y_N, pred_N = checked_values(y, pred)
    return mean_sums(np.abs(y_N - pred_N), subject_N, n_subjects)


def squared_sums(y: ArrayLike, pred: ArrayLike, subject_N: Ints, n_subjects: int) -> Floats:
    """Return each subject's windows and their summed squared error (S, 2)."""
    y_N, pred_N = checked_values(y, pred)
    return mean_sums((y_N - pred_N) ** 2, subject_N, n_subjects)


def moment_sums(y: ArrayLike, pred: ArrayLike, subject_N: Ints, n_subjects: int) -> Floats:
    """Return each subject's sums (S, 7) of 1, y, y², p, p², yp and (y - p)², with the mean taken from y and from p."""
    y_N, pred_N = checked_values(y, pred)
    squared_N = (y_N - pred_N) ** 2
    if len(y_N):  # a variance from sums of squares needs a mean near 0
        y_N, pred_N = y_N - y_N.mean(), pred_N - pred_N.mean()
    parts = (np.ones_like(y_N), y_N, y_N**2, pred_N, pred_N**2, y_N * pred_N, squared_N)
    return np.stack([np.bincount(subject_N, weights=part, minlength=n_subjects) for part in parts], axis=1)


def root_mean(sums_RD: Floats) -> Floats:
    """Return the root mean square error from the number of errors and the sum of their squares."""
    return np.sqrt(mean(sums_RD))


def nrmse_of_moments(sums_RD: Floats) -> Floats:
    """Return the NRMSE; NaN for constant targets."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sqrt(sums_RD[:, 6] / sums_RD[:, 0] / _variance(sums_RD, 1, 2))


def r2(sums_RD: Floats) -> Floats:
    """Return the coefficient of determination; NaN for constant targets."""
    return 1.0 - nrmse_of_moments(sums_RD) ** 2


def pearson(sums_RD: Floats) -> Floats:
    """Return the correlation; NaN for constant targets, 0 for constant predictions, which tell nothing of targets."""
    n_R, y_R, p_R = sums_RD[:, 0], sums_RD[:, 1], sums_RD[:, 3]
    with np.errstate(invalid="ignore", divide="ignore"):
        covariance_R = sums_RD[:, 5] / n_R - y_R * p_R / n_R**2
        of_y_R, of_p_R = _variance(sums_RD, 1, 2), _variance(sums_RD, 3, 4)
        found_R = np.where(np.isnan(of_p_R), 0.0, covariance_R / np.sqrt(of_p_R)) / np.sqrt(of_y_R)
    return np.clip(found_R, -1.0, 1.0)


def _variance(sums_RD: Floats, mean_column: int, square_column: int) -> Floats:
    """Return the variances (R,) of targets or of predictions, NaN where they are constant but for rounding."""
    n_R, square_R = sums_RD[:, 0], sums_RD[:, square_column]
    with np.errstate(invalid="ignore", divide="ignore"):
        variance_R = square_R / n_R - (sums_RD[:, mean_column] / n_R) ** 2
        return np.where(variance_R > _ROUNDING * square_R / n_R, variance_R, np.nan)
