"""Metrics that rank trials, and constant predictions to compare scores with.

Of targets with several values (N, K), the score is the mean of each output's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raypipe.core import class_metrics, value_metrics
from raypipe.core.class_metrics import auc
from raypipe.core.errors import UserError, nearest
from raypipe.core.outputs import as_columns, mean_over_outputs
from raypipe.core.own_metrics import direction_of, is_own_metric, own_resampled, own_value, split_code
from raypipe.core.value_metrics import nrmse

Direction = Literal["minimize", "maximize"]
Kind = Literal["classification", "regression"]
Reads = Literal["order", "classes", "probabilities", "values"]
MetricName = Literal[
    "auc", "balanced-accuracy", "accuracy", "f1", "kappa", "log-loss", "brier", "nrmse", "rmse", "mae", "r2", "pearson"
]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

Sums = Callable[[ArrayLike, ArrayLike, Ints, int], Floats]
"""Sums (S, D) over the windows of each subject, from which a metric is computed."""


class Metric(NamedTuple):
    """A score, and which direction is better."""

    name: str
    direction: Direction
    kind: Kind | None
    """None for a user's, which takes predictions of the target."""
    reads: Reads
    """What it reads of predictions of classes: their order, the predicted classes, or the probabilities themselves."""
    value: Callable[[ArrayLike, ArrayLike], float]
    """Score of predictions: ``value(y, pred)``."""
    resampled: Callable[[ArrayLike, ArrayLike, Ints, Ints], Floats]
    """Scores (R,) of resamples: ``resampled(y, pred, subject_N, counts_RS)``. Resample r has subject s
    ``counts_RS[r, s]`` times. NaN where the score is undefined."""
    limits: tuple[float, float] = (-np.inf, np.inf)
    """No score is below or above."""
    by_fold: bool = False
    """It compares predictions with one another only, so it is taken within folds (`levels.within_folds`)."""
    folds: NDArray[Any] | None = None
    """Fold of each row (N,), if it is taken within folds."""

    @property
    def sign(self) -> float:
        """Return 1.0 if lower scores are better, else -1.0; ``sign * score`` is lower for the better score."""
        return 1.0 if self.direction == "minimize" else -1.0

    def better(self, a: float, b: float) -> bool:
        """Return whether `a` is a strictly better score than `b`; NaN is worse than any number."""
        if np.isnan(a) or np.isnan(b):
            return bool(np.isnan(b) and not np.isnan(a))
        return self.sign * a < self.sign * b


def from_sums(
    name: str,
    direction: Direction,
    kind: Kind,
    reads: Reads,
    sums: Sums,
    finish: Callable[[Floats], Floats],
    limits: tuple[float, float] = (0.0, np.inf),
    by_fold: bool = False,
) -> Metric:
    """Return a metric that is computed from sums over windows: `finish` maps sums (R, D) to scores (R,)."""

    def value(y: ArrayLike, pred: ArrayLike) -> float:
        """Return the score of all windows; NaN where it is undefined or a prediction is not finite."""
        pooled_1D = sums(y, pred, np.zeros(len(np.asarray(y)), np.int64), 1)
        return float(finish(pooled_1D)[0]) if np.isfinite(np.asarray(pred)).all() else float("nan")

    def resampled(y: ArrayLike, pred: ArrayLike, subject_N: Ints, counts_RS: Ints) -> Floats:
        """Return the scores (R,) of resamples of subjects."""
        return finish(counts_RS @ sums(y, pred, subject_N, counts_RS.shape[1]))

    return Metric(name, direction, kind, reads, value, resampled, limits, by_fold)


_SHARE, _SIGNED, _BELOW_ONE = (0.0, 1.0), (-1.0, 1.0), (-np.inf, 1.0)
"""Ranges of scores."""


def _of_classes(name: str, finish: Callable[[Floats], Floats]) -> Metric:
    """Return a metric of predicted classes, which is computed from confusion matrices."""
    limits = _SIGNED if name == "kappa" else _SHARE
    return from_sums(name, "maximize", "classification", "classes", class_metrics.confusion_sums, finish, limits)


def _of_probabilities(name: str, sums: Sums) -> Metric:
    """Return a metric of probabilities, which is a mean loss."""
    return from_sums(name, "minimize", "classification", "probabilities", sums, class_metrics.mean)


def _of_errors(name: str, sums: Sums, finish: Callable[[Floats], Floats]) -> Metric:
    """Return a metric of values that is an error."""
    return from_sums(name, "minimize", "regression", "values", sums, finish)


def _of_moments(name: str, finish: Callable[[Floats], Floats], limits: tuple[float, float], by_fold: bool) -> Metric:
    """Return a metric of values that is a share or a correlation."""
    return from_sums(name, "maximize", "regression", "values", value_metrics.moment_sums, finish, limits, by_fold)


METRICS: dict[str, Metric] = {
    metric.name: metric if metric.kind == "classification" else mean_over_outputs(metric)
    for metric in (
        Metric("auc", "maximize", "classification", "order", auc, class_metrics.auc_resampled, _SHARE, by_fold=True),
        *(_of_classes(name, finish) for name, finish in class_metrics.OF_CONFUSION.items()),
        _of_probabilities("log-loss", class_metrics.log_loss_sums),
        _of_probabilities("brier", class_metrics.brier_sums),
        _of_errors("nrmse", value_metrics.moment_sums, value_metrics.nrmse_of_moments)._replace(value=nrmse),
        _of_errors("rmse", value_metrics.squared_sums, value_metrics.root_mean),
        _of_errors("mae", value_metrics.absolute_sums, class_metrics.mean),
        _of_moments("r2", value_metrics.r2, _BELOW_ONE, by_fold=False),
        _of_moments("pearson", value_metrics.pearson, _SIGNED, by_fold=True),
    )
}
"""Metrics by name, the default of each kind first."""

DEFAULT_METRIC: dict[Kind, MetricName] = {"classification": "auc", "regression": "nrmse"}
"""Metric of a target that names none."""
NO_SKILL: dict[str, float] = {"nrmse": 1.0, "auc": 0.5, "kappa": 0.0, "r2": 0.0, "pearson": 0.0}
"""Score of a constant prediction, for metrics where the targets do not decide it."""
OF_SQUARED_ERROR = ("nrmse", "rmse", "r2")
"""Metrics that order predictions of the same windows as the mean squared error does."""


def get_metric(name: str | Metric) -> Metric:
    """Return the metric of a name; a metric is returned as it is.

    Raises
    ------
    UserError
        There is no such metric.
    """
    if isinstance(name, Metric):
        return name
    if split_code(name)[1]:
        value, resampled = functools.partial(own_value, name), functools.partial(own_resampled, name)
        return mean_over_outputs(Metric(name, direction_of(name), None, "probabilities", value, resampled))
    if name not in METRICS:
        raise UserError(f"there is no metric '{name}'; {nearest(name, METRICS)}")
    return METRICS[name]


def metric_for(kind: Kind, asked: str | None, target: str) -> MetricName:
    """Return the metric of a target: the one that is asked for, else the default of the kind.

    Raises
    ------
    UserError
        There is no such metric, or it is one of the other kind.
    """
    if asked is None:
        return DEFAULT_METRIC[kind]
    if is_own_metric(asked):
        raise UserError(f"--metric {asked}: a metric of your own is an option of a sweep, and none of its windows")
    if asked not in METRICS:
        raise UserError(f"--metric {asked}: there is no such metric; {nearest(asked, METRICS)}")
    if METRICS[asked].kind != kind:
        what = "values" if kind == "regression" else "classes"
        fitting = ", ".join(name for name, metric in METRICS.items() if metric.kind == kind)
        raise UserError(f"--metric {asked}: target '{target}' predicts {what}; use one of {fitting}")
    return cast(MetricName, asked)


def score(metric: str | Metric, y: ArrayLike, pred: ArrayLike) -> float:
    """Return the score of predictions, NaN where it is undefined.

    Parameters
    ----------
    metric
        Name in `METRICS`, or a metric.
    y
        (N,) targets or classes; (N, K) targets of several values.
    pred
        (N, 1) or (N, K) values for regression, (N, n_classes) probabilities for classes.

    Raises
    ------
    UserError
        There is no such metric.
    ValueError
        The shapes differ from those above.
    """
    return get_metric(metric).value(y, pred)


def constant_prediction(
    kind: Kind, y_train: ArrayLike, n: int, n_classes: int = 0, metric: str | None = None
) -> Floats:
    """Return the best constant predictions, which use the training targets and no EEG.

    Returns
    -------
    pred
        Regression: the training mean, (n, 1) or of several values (n, K); for ``mae`` the median. Classification: the
        training frequencies, (n, n_classes). For a metric of predicted classes, the class that scores best if it is
        always predicted: for ``f1`` it may be a rare one.

    Raises
    ------
    ValueError
        There are no training targets.
    """
    y_N = np.asarray(y_train)
    if y_N.ndim > 1 + (kind == "regression") or len(y_N) == 0:
        raise ValueError(f"expected one or more training targets (N,), got {y_N.shape}")
    if kind == "regression":
        columns_NK = as_columns(y_N)
        centre = [np.median(y) if metric == "mae" else y.mean(dtype=np.float64) for y in columns_NK.T]
        return np.tile(np.array(centre, np.float64), (n, 1))
    share_K = np.bincount(y_N.astype(np.int64), minlength=n_classes) / len(y_N)
    if metric is not None and get_metric(metric).reads == "classes":
        share_K = _best_constant_class(metric, y_N, share_K)
    return np.tile(share_K, (n, 1))


def _best_constant_class(metric: str, y_N: NDArray[np.generic], share_K: Floats) -> Floats:
    """Return the frequencies if the most frequent class scores best as a constant, else 1 for the class that does."""
    one_hot_KK = np.eye(len(share_K))
    scores_K = np.array([score(metric, y_N, np.tile(each_K, (len(y_N), 1))) for each_K in one_hot_KK])
    most = int(share_K.argmax())
    best = int(np.nan_to_num(scores_K, nan=-np.inf).argmax())
    return one_hot_KK[best] if METRICS[metric].better(scores_K[best], scores_K[most]) else share_K


def constant_out_of_fold(
    kind: Kind, y: ArrayLike, folds: ArrayLike, subjects: ArrayLike, n_classes: int = 0, metric: str | None = None
) -> Floats:
    """Return (N, outputs): for the windows of each fold, the `constant_prediction` from the targets of other subjects.

    In another repeat of the folds these subjects' targets are rows too, so subjects, not folds, are left out.
    """
    y_N, fold_N = np.asarray(y), np.asarray(folds)
    subject_N = np.unique(np.asarray(subjects), return_inverse=True)[1]
    pred_NO = np.empty((len(y_N), n_classes or as_columns(y_N).shape[1]))
    for fold in np.unique(fold_N):
        inside = fold_N == fold
        others = ~np.isin(subject_N, subject_N[inside])
        pred_NO[inside] = constant_prediction(kind, y_N[others], int(inside.sum()), n_classes, metric)
    return pred_NO
