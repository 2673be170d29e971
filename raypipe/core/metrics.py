"""Metrics that rank trials, and constant predictions to compare scores with."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raypipe.core.errors import UserError, nearest

Direction = Literal["minimize", "maximize"]
Kind = Literal["classification", "regression"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_MAX_ELEMENTS = 4_000_000
"""Elements of the largest temporary array of a bootstrap."""


class Metric(NamedTuple):
    """A score, and which direction is better."""

    name: str
    direction: Direction
    kind: Kind
    value: Callable[[ArrayLike, ArrayLike], float]
    """Score of predictions: ``value(y, pred)``."""
    resampled: Callable[[ArrayLike, ArrayLike, Ints, Ints], Floats]
    """Scores (R,) of resamples: ``resampled(y, pred, subject_N, counts_RS)``. Resample r has subject s
    ``counts_RS[r, s]`` times. NaN where the score is undefined."""
    by_fold: bool = False
    """It compares predictions with one another only, so it is taken within folds (`levels.within_folds`)."""

    @property
    def sign(self) -> float:
        """Return 1.0 if lower scores are better, else -1.0; ``sign * score`` is lower for the better score."""
        return 1.0 if self.direction == "minimize" else -1.0

    def better(self, a: float, b: float) -> bool:
        """Return whether `a` is a strictly better score than `b`; NaN is worse than any number."""
        if np.isnan(a) or np.isnan(b):
            return bool(np.isnan(b) and not np.isnan(a))
        return self.sign * a < self.sign * b


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
    y_N, pred_N = _values(y, pred)
    if len(y_N) == 0 or np.ptp(y_N) == 0.0 or not np.isfinite(pred_N).all():
        return float("nan")
    return float(np.sqrt(np.mean((y_N - pred_N) ** 2)) / y_N.std())


def auc(y: ArrayLike, scores: ArrayLike) -> float:
    """Return the area under the ROC curve (scikit-learn); for three classes or more, the mean of each against the rest.

    Parameters
    ----------
    y
        Classes (N,).
    scores
        (N, K), larger is likelier. With two classes, column 1 is used.

    Returns
    -------
    float
        NaN when a class is absent from `y`, or a score is not finite.
    """
    y_N, scores_NK = _classes(y, scores)
    n_classes = scores_NK.shape[1]
    if len(np.unique(y_N)) < n_classes or not np.isfinite(scores_NK).all():
        return float("nan")
    from sklearn.metrics import roc_auc_score  # scikit-learn takes most of a second to import

    return float(np.mean([roc_auc_score(y_N == k, scores_NK[:, k]) for k in _ranked_classes(n_classes)]))


def balanced_accuracy(y: ArrayLike, scores: ArrayLike) -> float:
    """Return the mean recall over the classes in `y` (scikit-learn), predicting the class of the largest score.

    Parameters
    ----------
    y
        Classes (N,).
    scores
        (N, K), larger is likelier.

    Returns
    -------
    float
        NaN when `y` is empty, or a score is not finite.
    """
    y_N, scores_NK = _classes(y, scores)
    if len(y_N) == 0 or not np.isfinite(scores_NK).all():
        return float("nan")
    from sklearn.metrics import balanced_accuracy_score

    with warnings.catch_warnings():  # a class may be predicted that does not occur
        warnings.simplefilter("ignore", UserWarning)
        return float(balanced_accuracy_score(y_N, scores_NK.argmax(1)))


def _nrmse_resampled(y: ArrayLike, pred: ArrayLike, subject_N: Ints, counts_RS: Ints) -> Floats:
    y_N, pred_N = _values(y, pred)
    y_N, error_N = y_N - y_N.mean(), y_N - pred_N  # a variance from sums of squares needs a mean near 0
    n_R, sum_R, square_R, error_R = (
        counts_RS @ np.bincount(subject_N, weights=each_N, minlength=counts_RS.shape[1])
        for each_N in (np.ones_like(y_N), y_N, y_N**2, error_N**2)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        variance_R = square_R / n_R - (sum_R / n_R) ** 2
        rounding_R = 1e-12 * square_R / n_R
        return np.sqrt(np.where(variance_R > rounding_R, error_R / n_R / variance_R, np.nan))


def _auc_resampled(y: ArrayLike, scores: ArrayLike, subject_N: Ints, counts_RS: Ints) -> Floats:
    """Return the AUC of each resample by counting pairs of weighted windows in order of score; a tie counts half."""
    y_N, scores_NK = _classes(y, scores)
    n_classes = scores_NK.shape[1]
    out_R = np.zeros(len(counts_RS))
    rows = max(1, _MAX_ELEMENTS // max(1, len(y_N)))
    for k in _ranked_classes(n_classes):
        order_N = np.argsort(scores_NK[:, k], kind="stable")
        ranked_N = scores_NK[order_N, k]
        first_T = np.flatnonzero(np.r_[True, ranked_N[1:] != ranked_N[:-1]])  # first index of each group of ties
        positive_N, subject_of_N = (y_N == k)[order_N], subject_N[order_N]
        for start in range(0, len(counts_RS), rows):
            part = slice(start, start + rows)
            weights_RN = counts_RS[part][:, subject_of_N].astype(np.float64)
            hits_RT = np.add.reduceat(weights_RN * positive_N, first_T, axis=1)
            misses_RT = np.add.reduceat(weights_RN * ~positive_N, first_T, axis=1)
            below_RT = np.cumsum(misses_RT, axis=1) - 0.5 * misses_RT
            pairs_R = hits_RT.sum(1) * misses_RT.sum(1)
            with np.errstate(invalid="ignore", divide="ignore"):
                out_R[part] += np.where(pairs_R > 0, (hits_RT * below_RT).sum(1) / pairs_R, np.nan)
    seen_SK = _sums(np.eye(n_classes)[y_N], subject_N, counts_RS.shape[1])
    complete_R = (counts_RS @ seen_SK > 0).all(1)
    return np.where(complete_R, out_R / len(_ranked_classes(n_classes)), np.nan)


def _balanced_accuracy_resampled(y: ArrayLike, scores: ArrayLike, subject_N: Ints, counts_RS: Ints) -> Floats:
    y_N, scores_NK = _classes(y, scores)
    one_hot_NK = np.eye(scores_NK.shape[1])[y_N]
    right_N1 = (scores_NK.argmax(1) == y_N)[:, None]
    n_RK = counts_RS @ _sums(one_hot_NK, subject_N, counts_RS.shape[1])
    right_RK = counts_RS @ _sums(one_hot_NK * right_N1, subject_N, counts_RS.shape[1])
    with np.errstate(invalid="ignore"):
        recall_RK = np.where(n_RK > 0, right_RK / n_RK, 0.0)
        return np.asarray(recall_RK.sum(1) / (n_RK > 0).sum(1), dtype=np.float64)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("nrmse", "minimize", "regression", nrmse, _nrmse_resampled),
        Metric("auc", "maximize", "classification", auc, _auc_resampled, by_fold=True),
        Metric("balanced_accuracy", "maximize", "classification", balanced_accuracy, _balanced_accuracy_resampled),
    )
}
"""Metrics by name."""


def get_metric(name: str | Metric) -> Metric:
    """Return the metric of a name; a metric is returned as it is.

    Raises
    ------
    UserError
        There is no such metric.
    """
    if isinstance(name, Metric):
        return name
    if name not in METRICS:
        raise UserError(f"there is no metric '{name}'; {nearest(name, METRICS)}")
    return METRICS[name]


def score(metric: str | Metric, y: ArrayLike, pred: ArrayLike) -> float:
    """Return the score of predictions, NaN where it is undefined.

    Parameters
    ----------
    metric
        Name in `METRICS`, or a metric.
    y
        (N,) targets or classes.
    pred
        (N, 1) values for regression, (N, n_classes) probabilities for classes.

    Raises
    ------
    UserError
        There is no such metric.
    ValueError
        The shapes differ from those above.
    """
    return get_metric(metric).value(y, pred)


def constant_prediction(kind: Kind, y_train: ArrayLike, n: int, n_classes: int = 0) -> Floats:
    """Return the best constant predictions, which use the training targets and no EEG.

    Returns
    -------
    pred
        Regression: the training mean, (n, 1). Classification: the training frequencies, (n, n_classes).

    Raises
    ------
    ValueError
        There are no training targets.
    """
    y_N = np.asarray(y_train)
    if y_N.ndim != 1 or len(y_N) == 0:
        raise ValueError(f"expected one or more training targets (N,), got {y_N.shape}")
    if kind == "regression":
        return np.full((n, 1), y_N.mean(dtype=np.float64))
    return np.tile(np.bincount(y_N.astype(np.int64), minlength=n_classes) / len(y_N), (n, 1))


def constant_out_of_fold(kind: Kind, y: ArrayLike, folds: ArrayLike, n_classes: int = 0) -> Floats:
    """Return (N, outputs): for the windows of each fold, the `constant_prediction` from the targets of the others."""
    y_N, fold_N = np.asarray(y), np.asarray(folds)
    pred_NO = np.empty((len(y_N), n_classes or 1))
    for fold in np.unique(fold_N):
        inside = fold_N == fold
        pred_NO[inside] = constant_prediction(kind, y_N[~inside], int(inside.sum()), n_classes)
    return pred_NO


def _ranked_classes(n_classes: int) -> list[int]:
    """Return the classes whose AUC is averaged."""
    return [1] if n_classes == 2 else list(range(n_classes))


def _sums(values_NK: Floats, subject_N: Ints, n_subjects: int) -> Floats:
    """Return the sums (S, K) of the rows of each subject."""
    out_SK = np.zeros((n_subjects, values_NK.shape[1]))
    np.add.at(out_SK, subject_N, values_NK)
    return out_SK


def _values(y: ArrayLike, pred: ArrayLike) -> tuple[Floats, Floats]:
    """Return targets (N,) and predictions (N,), and check their shapes."""
    y_N, pred_N = np.asarray(y, dtype=np.float64), np.asarray(pred, dtype=np.float64)
    if y_N.ndim != 1 or pred_N.shape not in (y_N.shape, (len(y_N), 1)):
        raise ValueError(f"expected targets (N,) and predictions (N, 1), got {y_N.shape} and {pred_N.shape}")
    return y_N, pred_N.reshape(-1)


def _classes(y: ArrayLike, scores: ArrayLike) -> tuple[Ints, Floats]:
    """Return classes (N,) and scores (N, K), and check them."""
    y_N, scores_NK = np.asarray(y), np.asarray(scores, dtype=np.float64)
    if y_N.ndim != 1 or scores_NK.ndim != 2 or len(scores_NK) != len(y_N) or scores_NK.shape[1] < 2:
        raise ValueError(f"expected classes (N,) and scores (N, K), got {y_N.shape} and {scores_NK.shape}")
    classes_N = y_N.astype(np.int64)
    if len(y_N) and (np.any(classes_N != y_N) or classes_N.min() < 0 or classes_N.max() >= scores_NK.shape[1]):
        raise ValueError(f"classes must be whole numbers from 0 to {scores_NK.shape[1] - 1}")
    return classes_N, scores_NK
