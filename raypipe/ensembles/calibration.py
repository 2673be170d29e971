"""Calibrate class probabilities, and choose the probability from which the second of two classes is predicted.

Both are fitted on predictions of subjects that no network was trained on, and shipped with the ensemble. Nested scores
use those that were fitted on other subjects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raypipe.core.class_metrics import OF_CONFUSION
from raypipe.core.levels import level_of, mean_per_person
from raypipe.core.metrics import Floats, get_metric
from raypipe.ensembles.oof import MemberPredictions, subject_splits
from raypipe.ensembles.trial_pool import OUTER_GROUPS
from raypipe.models.combine import calibrate

SCALE_LIMITS = (0.05, 5.0)
"""Range of the factor of log probabilities. It is positive, so that calibration keeps the order of probabilities."""
MAX_SHIFT = 20.0
MAX_THRESHOLDS = 500
"""Thresholds that are tried."""
EVEN = 0.5
"""Threshold of the most probable of two classes."""
Array = NDArray[Any]


@dataclass(frozen=True)
class Calibration:
    """A map of class probabilities, and the threshold of the second of two classes."""

    scale: float
    """Factor of log probabilities."""
    shift: tuple[float, ...]
    """Added to the scaled log probability of each class."""
    threshold: float = EVEN
    """The second class is predicted for a calibrated probability above it."""

    def __call__(self, p_NK: Array) -> Floats:
        """Return calibrated probabilities (N, K)."""
        with torch.no_grad():
            return np.asarray(calibrate(torch.from_numpy(np.asarray(p_NK, dtype=np.float64)), self.spec).numpy())

    @property
    def spec(self) -> dict[str, Any]:
        """Return the map as `raypipe.models.ensemble.EnsembleModule` takes it."""
        return {"scale": self.scale, "shift": list(self.shift)}


def fit_calibration(metric: str, p_NK: Array, y: Array, subjects: Array) -> Calibration:
    """Fit the map and the threshold on predictions of subjects that no network was trained on.

    The map is temperature scaling with a bias for each class (Alexandari et al. 2020, arXiv:1901.06852); for two
    classes it is Platt scaling of the log odds. It has the highest likelihood, where each subject counts as one
    observation, and a normal prior of mean "no change" and variance 1 has the weight of such an observation. So few
    subjects change little.

    Parameters
    ----------
    metric
        Metric of the run. The threshold has its best score if it is one of predicted classes; otherwise it is 0.5.
    p_NK
        Probabilities (N, K).
    y, subjects
        (N,) classes and subjects.
    """
    from scipy.optimize import minimize

    y_N, p_NK = np.asarray(y, dtype=np.int64), np.asarray(p_NK, dtype=np.float64)
    n_classes, n_subjects = p_NK.shape[1], len(np.unique(subjects))
    log_NK = np.log(np.clip(p_NK, 1e-7, None))
    one_hot_NK = np.eye(n_classes)[y_N]

    def loss(values: Floats) -> tuple[float, Floats]:
        raw_NK = values[0] * log_NK + np.r_[0.0, values[1:]]
        raw_NK = raw_NK - raw_NK.max(1, keepdims=True)
        q_NK = np.exp(raw_NK)
        q_NK /= q_NK.sum(1, keepdims=True)
        error_NK = (q_NK - one_hot_NK) / len(y_N)
        change = values - start
        log_true_N = np.log(np.clip((q_NK * one_hot_NK).sum(1), 1e-300, None))
        value = -log_true_N.mean() + 0.5 * change @ change / n_subjects
        slope = np.r_[(error_NK * log_NK).sum(), error_NK.sum(0)[1:]] + change / n_subjects
        return float(value), slope

    start = np.r_[1.0, np.zeros(n_classes - 1)]
    bounds = [SCALE_LIMITS, *[(-MAX_SHIFT, MAX_SHIFT)] * (n_classes - 1)]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x.tolist()
    fitted = Calibration(found[0], (0.0, *found[1:]))
    if n_classes != 2 or get_metric(metric).reads != "classes":
        return fitted
    threshold = choose_threshold(metric, fitted(p_NK)[:, 1], y_N, np.asarray(subjects))
    return Calibration(fitted.scale, fitted.shift, threshold)


def choose_threshold(metric: str, p: Array, y: Array, subjects: Array) -> float:
    """Return the threshold of the second class's probability with the best score.

    Of equally good ones it is the middle one. Where each subject has one class, it is of their mean probabilities.
    """
    p_N, y_N = np.asarray(p, dtype=np.float64), np.asarray(y)
    if level_of(subjects, y_N) == "person":
        p_N = mean_per_person(subjects, p_N[:, None])[:, 0]
        y_N = y_N[np.unique(subjects, return_index=True)[1]]
    levels = np.unique(np.quantile(p_N, np.linspace(0, 1, MAX_THRESHOLDS), method="nearest"))
    thresholds_T = np.r_[levels[0] / 2, (levels[1:] + levels[:-1]) / 2, (1 + levels[-1]) / 2]
    above = [len(p_N[y_N == k]) - np.searchsorted(np.sort(p_N[y_N == k]), thresholds_T, side="right") for k in (0, 1)]
    n0, n1 = int(np.sum(y_N == 0)), int(np.sum(y_N == 1))
    matrices_T4 = np.stack([n0 - above[0], above[0], n1 - above[1], above[1]], axis=1).astype(np.float64)
    scores_T = np.nan_to_num(OF_CONFUSION[metric](matrices_T4), nan=-np.inf)
    best = np.flatnonzero(scores_T >= scores_T.max() - 1e-12)
    return float(thresholds_T[best[len(best) // 2]])


def decide(p_NK: Array, thresholds: Array | float = EVEN) -> Floats:
    """Return the predicted class of each row as a probability of 1 (N, K); thresholds are for two classes only."""
    n_classes = p_NK.shape[1]
    predicted_N = (p_NK[:, 1] > thresholds).astype(np.int64) if n_classes == 2 else p_NK.argmax(1)
    return np.asarray(np.eye(n_classes)[predicted_N])


def calibrate_across(like: MemberPredictions, p_NK: Array) -> tuple[Floats, Floats]:
    """Return the probabilities (N, K) and thresholds (N,) of each subject by a calibration fitted on others.

    Parameters
    ----------
    like
        Predictions of any members for the same windows.
    p_NK
        Nested probabilities (N, K).
    """
    out_NK, thresholds_N = np.asarray(p_NK, dtype=np.float64).copy(), np.full(len(p_NK), EVEN)
    for fit_N, test_N in subject_splits(like, OUTER_GROUPS):
        if fit_N.any():
            fitted = fit_calibration(like.metric, p_NK[fit_N], like.targets[fit_N], like.subjects[fit_N])
            out_NK[test_N], thresholds_N[test_N] = fitted(p_NK[test_N]), fitted.threshold
    return out_NK, thresholds_N
