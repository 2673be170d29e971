"""Scores that rank trials, and their confidence intervals over subjects."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raypipe.core.errors import UserError, nearest

Direction = Literal["minimize", "maximize"]
Kind = Literal["classification", "regression"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_CHUNK = 4_000_000  # numbers in the largest temporary array of a bootstrap


class Interval(NamedTuple):
    """A percentile interval over resampled subjects."""

    low: float
    high: float
    usable: int
    """Resamples on which the metric is defined; both ends are NaN if there is none."""


class Metric(NamedTuple):
    """A score, which way is better, and the same score of many resamples at once."""

    name: str
    direction: Direction
    kind: Kind
    value: Callable[[Any, Any], float]
    """``value(y, pred)``."""
    resampled: Callable[[Any, Any, Ints, Ints], Floats]
    """``resampled(y, pred, subject_N, counts_RS)``: the score of each of R resamples in which subject s occurs
    ``counts_RS[r, s]`` times; NaN where it is undefined."""

    @property
    def sign(self) -> float:
        """Return 1.0 where lower scores are better, else -1.0: ``sign * score`` is lower for the better score."""
        return 1.0 if self.direction == "minimize" else -1.0

    def better(self, a: float, b: float) -> bool:
        """Return whether `a` is a strictly better score than `b`; NaN is worse than any number."""
        if np.isnan(a) or np.isnan(b):
            return bool(np.isnan(b) and not np.isnan(a))
        return self.sign * a < self.sign * b


def nrmse(y: ArrayLike, pred: ArrayLike) -> float:
    """Root mean square error over the population standard deviation of `y`, pooled over all windows.

    The NeurIPS 2025 EEG challenge's score: predicting the mean of `y` gives 1. Pool before scoring; a mean of batches'
    or folds' values is another number.

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
    """Area under the ROC curve (scikit-learn); from three classes on, the mean of each class against the rest.

    Parameters
    ----------
    y
        Classes (N,).
    scores
        (N, K), larger is likelier; with two classes, column 1 counts.

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
    """Mean recall over the classes that occur in `y` (scikit-learn) when the class of the largest score is predicted.

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


def _nrmse_resampled(y: Any, pred: Any, subject_N: Ints, counts_RS: Ints) -> Floats:
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


def _auc_resampled(y: Any, scores: Any, subject_N: Ints, counts_RS: Ints) -> Floats:
    """Score by counting pairs of weighted windows in order of their scores; a tie counts half."""
    y_N, scores_NK = _classes(y, scores)
    n_classes = scores_NK.shape[1]
    out_R = np.zeros(len(counts_RS))
    rows = max(1, _CHUNK // max(1, len(y_N)))
    for k in _ranked_classes(n_classes):
        order_N = np.argsort(scores_NK[:, k], kind="stable")
        ranked_N = scores_NK[order_N, k]
        first_T = np.flatnonzero(np.r_[True, ranked_N[1:] != ranked_N[:-1]])  # where each run of ties begins
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


def _balanced_accuracy_resampled(y: Any, scores: Any, subject_N: Ints, counts_RS: Ints) -> Floats:
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
        Metric("auc", "maximize", "classification", auc, _auc_resampled),
        Metric("balanced_accuracy", "maximize", "classification", balanced_accuracy, _balanced_accuracy_resampled),
    )
}
"""Metrics by name."""


def get_metric(name: str) -> Metric:
    """Look a metric up.

    Raises
    ------
    UserError
        There is none of that name.
    """
    if name not in METRICS:
        raise UserError(f"there is no metric '{name}'; {nearest(name, METRICS)}")
    return METRICS[name]


def score(metric: str, y: ArrayLike, pred: ArrayLike) -> float:
    """Score predictions: (N, 1) for regression, probabilities (N, n_classes) for classes; NaN where undefined."""
    return get_metric(metric).value(y, pred)


def bootstrap_subjects(
    metric: str,
    y: ArrayLike,
    pred: ArrayLike,
    subjects: ArrayLike,
    *,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of a score when subjects, not windows, are drawn again with replacement.

    Windows of one subject resemble each other; an interval over windows is too narrow.

    Parameters
    ----------
    metric
        Name in `METRICS`.
    y, pred
        As `score` takes them.
    subjects
        Subject of each window (N,).
    n
        Resamples. Those on which the metric is undefined (a class is absent) are left out; `Interval.usable` counts
        the rest.
    seed
        Of the resamples: equal seeds and subjects give the same ones.
    level
        Share of resamples within the interval.

    Raises
    ------
    ValueError
        There are fewer than two subjects, or lengths differ.
    """
    subject_N, counts_RS = _resamples(subjects, len(np.asarray(y)), n, seed)
    return _interval(_scores(metric, y, pred, subject_N, counts_RS), level)


def bootstrap_difference(
    metric: str,
    y: ArrayLike,
    pred_a: ArrayLike,
    pred_b: ArrayLike,
    subjects: ArrayLike,
    *,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of ``score(a) - score(b)``, both on the same resamples; see `bootstrap_subjects`."""
    subject_N, counts_RS = _resamples(subjects, len(np.asarray(y)), n, seed)
    a_R, b_R = (_scores(metric, y, pred, subject_N, counts_RS) for pred in (pred_a, pred_b))
    return _interval(a_R - b_R, level)


def constant_prediction(kind: Kind, y_train: ArrayLike, n: int, n_classes: int = 0) -> Floats:
    """Predictions of one who knows the training targets and no EEG.

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
    """`constant_prediction` for each fold's windows by one who knows the targets of the other folds: (N, outputs)."""
    y_N, fold_N = np.asarray(y), np.asarray(folds)
    found_NO = np.empty((len(y_N), n_classes or 1))
    for fold in np.unique(fold_N):
        inside = fold_N == fold
        found_NO[inside] = constant_prediction(kind, y_N[~inside], int(inside.sum()), n_classes)
    return found_NO


def _resamples(subjects: ArrayLike, n_windows: int, n: int, seed: int) -> tuple[Ints, Ints]:
    """Index the subject of each window, and count how often each resample drew each subject."""
    names, subject_N = np.unique(np.asarray(subjects), return_inverse=True)
    if subject_N.shape != (n_windows,):
        raise ValueError(f"expected the subject of each of {n_windows} windows, got {subject_N.shape}")
    if len(names) < 2:
        raise ValueError(f"a bootstrap over subjects needs two or more, got {len(names)}")
    rng = np.random.default_rng(seed)
    counts_RS = rng.multinomial(len(names), np.full(len(names), 1.0 / len(names)), size=n)
    return subject_N.astype(np.int64), counts_RS.astype(np.int64)


def _scores(metric: str, y: ArrayLike, pred: ArrayLike, subject_N: Ints, counts_RS: Ints) -> Floats:
    if not np.isfinite(np.asarray(pred, dtype=np.float64)).all():
        return np.full(len(counts_RS), np.nan)
    return get_metric(metric).resampled(y, pred, subject_N, counts_RS)


def _interval(scores_R: Floats, level: float) -> Interval:
    usable_R = scores_R[~np.isnan(scores_R)]
    if len(usable_R) == 0:
        return Interval(float("nan"), float("nan"), 0)
    low, high = np.quantile(usable_R, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Interval(float(low), float(high), len(usable_R))


def _ranked_classes(n_classes: int) -> list[int]:
    return [1] if n_classes == 2 else list(range(n_classes))


def _sums(values_NK: Floats, subject_N: Ints, n_subjects: int) -> Floats:
    out_SK = np.zeros((n_subjects, values_NK.shape[1]))
    np.add.at(out_SK, subject_N, values_NK)
    return out_SK


def _values(y: Any, pred: Any) -> tuple[Floats, Floats]:
    y_N, pred_N = np.asarray(y, dtype=np.float64), np.asarray(pred, dtype=np.float64)
    if y_N.ndim != 1 or pred_N.shape not in (y_N.shape, (len(y_N), 1)):
        raise ValueError(f"expected targets (N,) and predictions (N, 1), got {y_N.shape} and {pred_N.shape}")
    return y_N, pred_N.reshape(-1)


def _classes(y: Any, scores: Any) -> tuple[Ints, Floats]:
    y_N, scores_NK = np.asarray(y), np.asarray(scores, dtype=np.float64)
    if y_N.ndim != 1 or scores_NK.ndim != 2 or len(scores_NK) != len(y_N) or scores_NK.shape[1] < 2:
        raise ValueError(f"expected classes (N,) and scores (N, K), got {y_N.shape} and {scores_NK.shape}")
    classes_N = y_N.astype(np.int64)
    if len(y_N) and (np.any(classes_N != y_N) or classes_N.min() < 0 or classes_N.max() >= scores_NK.shape[1]):
        raise ValueError(f"classes must be whole numbers from 0 to {scores_NK.shape[1] - 1}")
    return classes_N, scores_NK
