"""Decide classes: by the most probable class after each probability was multiplied by a weight of its class.

For two classes the weights are a threshold: the second class is predicted above the weight of the first. Weights are
chosen on predictions of subjects that no network was trained on, and shipped with the ensemble.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raypipe.core.bootstrap import jackknife_error
from raypipe.core.class_metrics import OF_CONFUSION, confusion_sums
from raypipe.core.levels import Level, level_of, mean_per_person
from raypipe.core.metrics import Floats
from raypipe.ensembles.oof import Mask, unit_groups

MAX_THRESHOLDS = 500
"""Thresholds of a class that are tried."""
MAX_OFFSET = float(np.log(1e4))
"""Largest logarithm of a weight, before weights are scaled to sum to one."""
SWEEPS = 5
"""Largest number of times that the weight of each class is chosen."""
CHECK_GROUPS = 5
"""Groups of people on which weights that the others chose are compared with even ones."""
_TINY = 1e-300
Array = NDArray[Any]


def even_weights(n_classes: int) -> Floats:
    """Return the weights (K,) of the most probable class."""
    return np.full(n_classes, 1.0 / n_classes)


def decide(p_NK: Array, weights: Array | None = None) -> Floats:
    """Return the predicted class of each row as a probability of 1 (N, K).

    Parameters
    ----------
    p_NK
        Probabilities (N, K).
    weights
        (K,), or (N, K) of each row; None for the most probable class.
    """
    weighted_NK = p_NK if weights is None else p_NK * weights
    return np.asarray(np.eye(p_NK.shape[1])[weighted_NK.argmax(1)])


class _Rows(NamedTuple):
    """Windows, or people, that weights are chosen on."""

    log_NK: Floats  # noqa: N815 - axes
    """Logarithms of probabilities."""
    y_N: NDArray[np.int64]  # noqa: N815 - axes
    units_N: Array  # noqa: N815 - axes
    """Person or group of each row."""

    def some(self, inside_N: Mask) -> _Rows:
        """Return the rows in a mask (N,)."""
        return _Rows(self.log_NK[inside_N], self.y_N[inside_N], self.units_N[inside_N])


def choose_weights(
    metric: str,
    p_NK: Array,
    y: Array,
    subjects: Array,
    units: Array | None = None,
    level: Level | None = None,
) -> Floats:
    """Return the weights (K,) of classes with the best score, which sum to one.

    One weight after another is set to its best value, until none changes, from even weights or from the inverse
    frequencies of the classes, whichever score better. Inverse frequencies are optimal for the balanced accuracy of
    calibrated probabilities: the largest p(k | x) / p(k) is the most likely class where all are equally frequent.
    Where each subject has one class, scores are of their mean probabilities.

    Three and more classes have two and more free weights. They keep even ones unless the chosen weights are better by
    more than one standard error (a jackknife over people) on people whom others' weights decide.

    Parameters
    ----------
    metric
        A metric of predicted classes.
    p_NK
        Calibrated probabilities (N, K).
    y, subjects
        (N,) classes and subjects.
    units
        (N,) group of each subject, such as a family; None where subjects share none.
    level
        That of the run: some of its people may happen to have one class each. None for `level_of` these windows.
    """
    p_NK, y_N, subjects = np.asarray(p_NK, dtype=np.float64), np.asarray(y, dtype=np.int64), np.asarray(subjects)
    units_N = subjects if units is None else np.asarray(units)
    if (level or level_of(subjects, y_N)) == "person":
        first = np.unique(subjects, return_index=True)[1]
        p_NK, y_N, units_N = mean_per_person(subjects, p_NK), y_N[first], units_N[first]
    rows = _Rows(np.log(np.maximum(p_NK, _TINY)), y_N, units_N)
    n_classes = p_NK.shape[1]
    if n_classes > 2 and not _gains(metric, rows):
        return even_weights(n_classes)
    return _weights_of(_best_offsets(metric, rows))


def _weights_of(offsets_K: Floats) -> Floats:
    weights_K = np.exp(offsets_K - offsets_K.max())
    return np.asarray(weights_K / weights_K.sum())


def _gains(metric: str, rows: _Rows) -> bool:
    """Return whether chosen weights are better than even ones by more than the error, on people left out."""
    group_N = unit_groups(rows.units_N, rows.y_N, CHECK_GROUPS)
    if group_N.max() == 0:
        return False
    shown_NK = rows.log_NK.copy()
    for group in range(int(group_N.max()) + 1):
        shown_NK[group_N == group] += _best_offsets(metric, rows.some(group_N != group))
    names, unit_N = np.unique(rows.units_N, return_inverse=True)
    sums_SD, even_SD = (confusion_sums(rows.y_N, each, unit_N, len(names)) for each in (shown_NK, rows.log_NK))

    def gain(parts_PS: Floats) -> Floats:
        return np.asarray(OF_CONFUSION[metric](parts_PS @ sums_SD) - OF_CONFUSION[metric](parts_PS @ even_SD))

    found = float(gain(np.ones((1, len(names))))[0])
    return found > jackknife_error(gain(1.0 - np.eye(len(names))))


def _best_offsets(metric: str, rows: _Rows) -> Floats:
    """Return the offsets (K,) of log probabilities with the best score that one change after another reaches."""
    n_classes = rows.log_NK.shape[1]
    counts_K = np.maximum(np.bincount(rows.y_N, minlength=n_classes), 0.5)
    of_frequency_K = np.clip(np.log(counts_K[0] / counts_K), -MAX_OFFSET, MAX_OFFSET)
    starts = [(_score(metric, rows, each), each) for each in (np.zeros(n_classes), of_frequency_K)]
    best, offsets_K = max(starts, key=lambda start: start[0])  # the first of equal ones: even weights
    for _ in range(SWEEPS):
        before = best
        for k in range(1, n_classes):
            best, offsets_K = _improve(metric, rows, offsets_K, k, best)
        if best <= before:
            break
    return offsets_K


def _score(metric: str, rows: _Rows, offsets_K: Floats) -> float:
    sums_1D = confusion_sums(rows.y_N, rows.log_NK + offsets_K, np.zeros(len(rows.y_N), np.int64), 1)
    return float(np.nan_to_num(OF_CONFUSION[metric](sums_1D), nan=-np.inf)[0])


def _improve(metric: str, rows: _Rows, offsets_K: Floats, k: int, best: float) -> tuple[float, Floats]:
    """Return the best score, and offsets, that the offset of class `k` alone reaches; of equally good ones the middle.

    A row is of class `k` above the offset at which it equals the best of the other classes.
    """
    shifted_NK = rows.log_NK + offsets_K
    shifted_NK[:, k] = -np.inf
    other_N = shifted_NK.argmax(1)
    equal_N = shifted_NK.max(1) - rows.log_NK[:, k]
    levels = np.unique(np.quantile(equal_N, np.linspace(0, 1, MAX_THRESHOLDS), method="nearest"))
    tried_T = np.r_[levels[0] - 1.0, (levels[1:] + levels[:-1]) / 2, levels[-1] + 1.0]
    tried_T = np.unique(np.clip(tried_T, -MAX_OFFSET, MAX_OFFSET))
    n_classes = len(offsets_K)
    matrix_TKK = np.zeros((len(tried_T), n_classes, n_classes))
    for true in range(n_classes):
        for other in range(n_classes):
            cell = np.sort(equal_N[(rows.y_N == true) & (other_N == other)])
            above_T = np.searchsorted(cell, tried_T)
            matrix_TKK[:, true, k] += above_T
            matrix_TKK[:, true, other] += len(cell) - above_T
    scores_T = np.nan_to_num(OF_CONFUSION[metric](matrix_TKK.reshape(len(tried_T), -1)), nan=-np.inf)
    if scores_T.max() <= best + 1e-12:
        return best, offsets_K
    equally_good = np.flatnonzero(scores_T >= scores_T.max() - 1e-12)
    found_K = offsets_K.copy()
    found_K[k] = tried_T[equally_good[len(equally_good) // 2]]
    return float(scores_T.max()), found_K
