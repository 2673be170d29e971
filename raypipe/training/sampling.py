"""How an epoch draws its windows: batch sizes, the chance of each window, and scales of targets under it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_BATCH = 2
"""Smallest batch: BatchNorm needs two windows to see how they differ."""


def even_batches(n: int, size: int, least: int = MIN_BATCH) -> list[int]:
    """Return the sizes of an epoch's batches: `n` windows, `size` at a time, and no window is left out.

    Where `n` is no multiple of `size`, the last two batches share what is left for them evenly: 90 windows make two
    batches of 45 at a size of 48. The others have the full size, so that folds of a trial can be stacked. If halves
    would be smaller than `least`, one batch takes all that is left.
    """
    full, rest = divmod(n, size)
    if not rest or not full:
        return [size] * full or [n]
    shared = size + rest
    last = [shared] if shared // 2 < least else [shared - shared // 2, shared // 2]
    return [size] * (full - 1) + last


def draw_chances(subjects: NDArray[Any], sampling: str) -> NDArray[np.float64]:
    """Return the chance (N,) that a draw of an epoch is a window, from the subjects (N,) of all windows.

    With ``sampling=window`` all windows have the same, with ``sampling=subject`` all subjects have.
    """
    if sampling == "window":
        return np.full(len(subjects), 1.0 / len(subjects))
    _, subject_N, count_S = np.unique(subjects, return_inverse=True, return_counts=True)
    return np.asarray(1.0 / (len(count_S) * count_S[subject_N]))


def target_scale(
    targets: NDArray[Any], how: str, chances: NDArray[np.float64] | None = None
) -> tuple[float, float] | tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return centre and scale of regression targets (N,), drawn with `chances` (N,; None: all the same).

    They are mean and standard deviation, or for `robust`, median and 1.4826 * median absolute deviation (the standard
    deviation where that is 0). Of targets (N, K) they are those of each output (K,).
    """
    if targets.ndim == 2:
        found = np.array([target_scale(column_N, how, chances) for column_N in targets.T])
        return found[:, 0], found[:, 1]
    values = np.asarray(targets, np.float64)
    weights = np.full(len(values), 1.0 / len(values)) if chances is None else chances
    mean = float(np.average(values, weights=weights))
    constant = np.ptp(values) == 0.0  # the mean of equal values may differ from them by rounding
    spread = 1.0 if constant else float(np.sqrt(np.average((values - mean) ** 2, weights=weights)))
    if how == "standard":
        return mean, spread
    centre = weighted_median(values, weights)
    return centre, 1.4826 * weighted_median(np.abs(values - centre), weights) or spread


def weighted_median(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Return the value that half of the weight is below; the middle of two where the halves meet between them."""
    order = np.argsort(values, kind="stable")
    below = np.cumsum(weights[order])
    half = 0.5 * below[-1]
    rounding = 1e-9 * below[-1]
    low = int(np.searchsorted(below, half - rounding))
    high = int(np.searchsorted(below, half + rounding))
    return float(0.5 * (values[order[low]] + values[order[min(high, len(values) - 1)]]))
