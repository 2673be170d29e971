"""Calibrate class probabilities, and choose the weights of classes by which one is predicted.

Both are fitted on predictions of subjects that no network was trained on, and shipped with the ensemble. Nested scores
use those that were fitted on other subjects.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raypipe.core.levels import Level, ScoredRows, even_people, level_of, people_rows, rows_at_level
from raypipe.core.metrics import Floats, get_metric
from raypipe.ensembles.decisions import choose_weights, decide, even_weights
from raypipe.ensembles.oof import MemberPredictions, subject_splits
from raypipe.ensembles.trial_pool import OUTER_GROUPS
from raypipe.models.combine import calibrate

SCALE_LIMITS = (0.05, 5.0)
"""Range of the factor of log probabilities. It is positive, so that calibration keeps the order of probabilities."""
MAX_SHIFT = 20.0
Array = NDArray[Any]


@dataclass(frozen=True)
class Calibration:
    """A map of class probabilities, and the weights of classes that decide between them."""

    scale: float
    """Factor of log probabilities."""
    shift: tuple[float, ...]
    """Added to the scaled log probability of each class."""
    decision_weights: tuple[float, ...]
    """The class with the largest product of its calibrated probability and its weight is predicted (`decide`)."""

    def __call__(self, p_NK: Array) -> Floats:
        """Return calibrated probabilities (N, K)."""
        with torch.no_grad():
            return np.asarray(calibrate(torch.from_numpy(np.asarray(p_NK, dtype=np.float64)), self.spec).numpy())

    @property
    def spec(self) -> dict[str, Any]:
        """Return the map as `raypipe.models.ensemble.EnsembleModule` takes it."""
        return {"scale": self.scale, "shift": list(self.shift)}


def fit_calibration(
    metric: str,
    p_NK: Array,
    y: Array,
    subjects: Array,
    units: Array | None = None,
    level: Level | None = None,
) -> Calibration:
    """Fit the map and the weights on predictions of subjects that no network was trained on.

    The map is temperature scaling with a bias for each class (Alexandari et al. 2020, arXiv:1901.06852); for two
    classes it is Platt scaling of the log odds. It has the highest likelihood, where each subject counts as one
    observation, and a normal prior of mean "no change" and variance 1 has the weight of such an observation. So few
    subjects change little. Where each subject has one class, each counts the same, however many windows there are.

    Parameters
    ----------
    metric
        Metric of the run. If it is one of predicted classes, the weights are chosen for it; otherwise they are even.
    p_NK
        Probabilities (N, K).
    y, subjects
        (N,) classes and subjects.
    units
        (N,) group of each subject, such as a family; None where subjects share none.
    level
        That of the run: some of its people may happen to have one class each. None for `level_of` these windows.
    """
    from scipy.optimize import minimize

    y_N, p_NK = np.asarray(y, dtype=np.int64), np.asarray(p_NK, dtype=np.float64)
    n_classes, n_subjects = p_NK.shape[1], len(np.unique(subjects))
    level = level or level_of(subjects, y_N)
    log_NK = np.log(np.clip(p_NK, 1e-7, None))
    one_hot_NK = np.eye(n_classes)[y_N]
    share_N = (even_people(subjects) if level == "person" else np.ones(len(y_N))) / len(y_N)

    def loss(values: Floats) -> tuple[float, Floats]:
        raw_NK = values[0] * log_NK + values[1:]
        raw_NK = raw_NK - raw_NK.max(1, keepdims=True)
        q_NK = np.exp(raw_NK)
        q_NK /= q_NK.sum(1, keepdims=True)
        error_NK = (q_NK - one_hot_NK) * share_N[:, None]
        log_true_N = np.log(np.clip((q_NK * one_hot_NK).sum(1), 1e-300, None))
        # Shifts that sum to zero have the least penalty, whatever the order of the classes.
        pull = np.r_[values[0] - 1.0, 2.0 * values[1:]] / n_subjects
        value = -share_N @ log_true_N + 0.5 * pull @ (values - start)
        slope = np.r_[(error_NK * log_NK).sum(), error_NK.sum(0)] + pull
        return float(value), slope

    start = np.r_[1.0, np.zeros(n_classes)]
    bounds = [SCALE_LIMITS, *[(-MAX_SHIFT, MAX_SHIFT)] * n_classes]
    scale, *shifts = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x.tolist()
    fitted = Calibration(scale, tuple(shift - shifts[0] for shift in shifts), tuple(even_weights(n_classes).tolist()))
    if get_metric(metric).reads != "classes":
        return fitted
    weights_K = choose_weights(metric, fitted(p_NK), y_N, subjects, units, level)
    return replace(fitted, decision_weights=tuple(weights_K.tolist()))


def fit_rows(like: MemberPredictions, p_NK: Array) -> Calibration:
    """Fit probabilities (N, K) for the windows of any members' predictions (`fit_calibration`)."""
    return fit_calibration(like.metric, p_NK, like.targets, like.subjects, like.units, like.level)


def calibrate_across(like: MemberPredictions, p_NK: Array) -> tuple[Floats, Floats]:
    """Return the probabilities (N, K) and weights of classes (N, K) of each subject by a calibration fitted on others.

    Parameters
    ----------
    like
        Predictions of any members for the same windows.
    p_NK
        Nested probabilities (N, K).
    """
    out_NK = np.asarray(p_NK, dtype=np.float64).copy()
    weights_NK = np.tile(even_weights(out_NK.shape[1]), (len(out_NK), 1))
    for fit_N, test_N in subject_splits(like, OUTER_GROUPS):
        if fit_N.any():
            fitted = fit_rows(like.select_windows(fit_N), p_NK[fit_N])
            out_NK[test_N], weights_NK[test_N] = fitted(p_NK[test_N]), fitted.decision_weights
    return out_NK, weights_NK


def calibrate_nested(like: MemberPredictions, nested: Array) -> tuple[Array, Floats | None]:
    """Return predictions (N, outputs) as a nested score reads them, and the weights of classes (N, K) that decide.

    Groups' calibrations would shift their probabilities against each other, so for a metric that reads the order only,
    and for values, predictions stay as they are, without weights.

    Parameters
    ----------
    like
        Predictions of any members for the same windows.
    nested
        Predictions of subjects that no network was trained on.
    """
    if like.kind == "regression" or get_metric(like.metric).reads == "order":
        return nested, None
    return calibrate_across(like, nested)


def scored_rows(like: MemberPredictions, nested: Array, level: Level | None = None) -> ScoredRows:
    """Return nested predictions (N, outputs) as the score table scores them: calibrated, of people, classes decided.

    Parameters
    ----------
    like
        Predictions of any members for the same windows.
    nested
        Predictions by combinations that were fitted on other subjects.
    level
        None for that of `like`.
    """
    level = level or like.level
    nested, weights_NK = calibrate_nested(like, nested)
    rows = rows_at_level(level, like.targets, like.subjects, like.folds, nested)
    if get_metric(like.metric).reads != "classes" or weights_NK is None:
        return rows
    first = people_rows(like.subjects, like.folds)[0] if level == "person" else slice(None)
    return rows._replace(predictions=decide(rows.predictions, weights_NK[first]))
