"""The level at which predictions are scored wherever trials or methods are compared: decided here, used everywhere.

Where each person has one target for all windows, a score is of one mean prediction per person: a person is one data
point, however many windows there are. Folds that are repeated predict each window, or person, once in each repeat; each
of these predictions is a row of its own. Metrics that only rank predictions (`Metric.by_fold`) are taken within each
fold and averaged. Each fold has a network of its own, and the constant offsets between networks, which the ensemble of
all folds averages out, would lower a score over all folds together.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raypipe.core.class_metrics import auc_within, auc_within_resampled, indices_of
from raypipe.core.metrics import Floats, Ints, Metric, get_metric, score
from raypipe.core.outputs import mean_over_outputs

Level = Literal["window", "person"]
"""What one data point of a score is."""


class ScoredRows(NamedTuple):
    """Windows, or people, that predictions are scored on."""

    targets: NDArray[Any]
    """(N,), or (N, K) of several values."""
    subjects: NDArray[Any]
    """(N,)."""
    folds: NDArray[Any]
    """(N,) fold whose network predicts them."""
    predictions: NDArray[Any]
    """(N, outputs)."""


def level_of(subjects: ArrayLike, targets: ArrayLike) -> Level:
    """Return ``person`` if each person has one target for all windows, and some person has several windows."""
    names, first, index = np.unique(np.asarray(subjects), return_index=True, return_inverse=True)
    targets_N = np.asarray(targets)
    same = len(names) < len(targets_N) and bool(np.all(targets_N[first][index] == targets_N))
    return "person" if same else "window"


def mean_per_person(subjects: ArrayLike, predictions: NDArray[Any]) -> Floats:
    """Average the predictions (N, outputs) of each person: (people, outputs), people in sorted order."""
    return mean_per_row(np.unique(np.asarray(subjects), return_inverse=True)[1], predictions)


def even_people(subjects: ArrayLike) -> Floats:
    """Return weights (N,) of windows, of mean one, by which each person counts the same."""
    _, index_N, counts = np.unique(np.asarray(subjects), return_inverse=True, return_counts=True)
    return np.asarray(len(index_N) / len(counts) / counts[index_N])


def mean_per_row(row_N: NDArray[Any], predictions: NDArray[Any]) -> Floats:
    """Average the predictions (N, outputs) with each row number in (N,): (rows, outputs)."""
    sums = np.zeros((int(row_N.max(initial=-1)) + 1, predictions.shape[1]))
    np.add.at(sums, row_N, predictions)
    return np.asarray(sums / np.bincount(row_N)[:, None])


def people_rows(subjects: ArrayLike, folds: ArrayLike) -> tuple[Ints, Ints]:
    """Return a window of each row of people, and the row of each window (N,).

    A row is a person and the fold whose network predicts them. Folds that are repeated predict a person once in each
    repeat, each time by another network. Rows are in order of the people and then of the folds.
    """
    person_N = np.unique(np.asarray(subjects), return_inverse=True)[1]
    folds_F, fold_N = np.unique(np.asarray(folds), return_inverse=True)
    _, first, row_N = np.unique(person_N * max(1, len(folds_F)) + fold_N, return_index=True, return_inverse=True)
    return first, row_N


def rows_at_level(
    level: Level, targets: NDArray[Any], subjects: NDArray[Any], folds: NDArray[Any], predictions: NDArray[Any]
) -> ScoredRows:
    """Return windows as they are, or one row per person and repeat with the mean prediction (`people_rows`)."""
    if level == "window":
        return ScoredRows(targets, subjects, folds, predictions)
    first, row_N = people_rows(subjects, folds)
    return ScoredRows(targets[first], subjects[first], folds[first], mean_per_row(row_N, predictions))


def ranking_score(
    metric: str,
    level: Level,
    targets: NDArray[Any],
    predictions: NDArray[Any],
    subjects: NDArray[Any],
    folds: NDArray[Any],
) -> float:
    """Return the score by which trials, epochs and methods are compared; NaN where it is undefined.

    Parameters
    ----------
    metric
        Name in `metrics.METRICS`.
    level
        `level_of` the run's windows.
    targets, predictions, subjects, folds
        (N,) or (N, K), (N, outputs), (N,) and (N,) of windows.
    """
    rows = rows_at_level(level, targets, subjects, folds, predictions)
    return score(within_folds(metric, rows.folds), rows.targets, rows.predictions)


def within_folds(metric: str | Metric, folds: ArrayLike) -> Metric:
    """Return a metric of rows with these folds (N,): within folds, if the metric only ranks.

    An AUC is the share of all pairs of one fold that are in the right order, of several classes the mean over the
    classes (`class_metrics.auc_within`). A correlation is the mean of those of the folds, each of which weighs as many
    pairs of rows with different targets as it has. If no fold has such a pair, as where each has one person, the score
    is that of all folds together; each resample decides this for the people that it has.
    """
    plain, fold_N = get_metric(metric), np.asarray(folds)
    if not plain.by_fold or len(np.unique(fold_N)) < 2:
        return plain
    if plain.name == "auc":
        return plain._replace(
            value=lambda y, pred: auc_within(y, pred, fold_N),
            resampled=lambda y, pred, subject_N, counts_RS: auc_within_resampled(y, pred, fold_N, subject_N, counts_RS),
            folds=fold_N,
        )

    def value(y: ArrayLike, pred: ArrayLike) -> float:
        y_N, pred_NO = np.asarray(y), np.asarray(pred)
        found = [(plain.value(y_N[i], pred_NO[i]), _n_pairs(y_N[i])) for i in indices_of(fold_N)]
        known = [(one, weight) for one, weight in found if weight and not np.isnan(one)]
        if not known or not np.isfinite(pred_NO).all():
            return plain.value(y, pred)
        return float(np.average([one for one, _ in known], weights=[weight for _, weight in known]))

    def resampled(y: ArrayLike, pred: ArrayLike, subject_N: Ints, counts_RS: Ints) -> Floats:
        y_N, pred_NO = np.asarray(y), np.asarray(pred)
        total_R, weight_R = np.zeros(len(counts_RS)), np.zeros(len(counts_RS))
        for i in indices_of(fold_N):
            of_R = plain.resampled(y_N[i], pred_NO[i], subject_N[i], counts_RS)
            pairs_R = np.where(np.isnan(of_R), 0.0, _pairs_resampled(y_N[i], subject_N[i], counts_RS))
            total_R += pairs_R * np.nan_to_num(of_R)
            weight_R += pairs_R
        lacks_R = weight_R == 0  # as each resample decides for itself, not as all people do
        if lacks_R.any():
            total_R[lacks_R] = plain.resampled(y_N, pred_NO, subject_N, counts_RS[lacks_R])
            weight_R[lacks_R] = 1.0
        return total_R / weight_R

    return mean_over_outputs(plain._replace(value=value, resampled=resampled, folds=fold_N))


def describe_level(metric: str, level: Level) -> str:
    """Return what one score over all folds is of, for reports and records."""
    of = "one mean prediction per person" if level == "person" else "all windows"
    return f"{of}, within each fold and averaged over the folds" if get_metric(metric).by_fold else of


def _n_pairs(y_N: NDArray[Any]) -> float:
    """Return the number of pairs of rows with different targets."""
    counts = np.unique(y_N, return_counts=True)[1]
    return float(counts.sum() ** 2 - (counts**2).sum()) / 2


def _pairs_resampled(y_N: NDArray[Any], subject_N: Ints, counts_RS: Ints) -> Floats:
    """Return the number of pairs (R,) of rows with different targets in each resample."""
    values, index_N = np.unique(y_N, return_inverse=True)
    n_SK = np.zeros((counts_RS.shape[1], len(values)))
    np.add.at(n_SK, (subject_N, index_N), 1.0)
    n_RK = counts_RS @ n_SK
    return np.asarray((n_RK.sum(1) ** 2 - (n_RK**2).sum(1)) / 2)
