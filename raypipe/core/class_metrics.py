"""Metrics of class probabilities: AUC, scores of the confusion matrix, log loss and Brier score."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MIN_PROBABILITY = float(np.finfo(np.float32).eps)
"""Smallest probability whose logarithm is taken: networks give 32-bit probabilities, as scikit-learn's clip has it."""
_MAX_ELEMENTS = 4_000_000
"""Elements of the largest temporary array of a bootstrap."""


def checked_classes(y: ArrayLike, scores: ArrayLike) -> tuple[Ints, Floats]:
    """Return classes (N,) and scores (N, K), and check them.

    Raises
    ------
    ValueError
        They have other shapes, or the classes are not numbers from 0 to K - 1.
    """
    y_N, scores_NK = np.asarray(y), np.asarray(scores, dtype=np.float64)
    if y_N.ndim != 1 or scores_NK.ndim != 2 or len(scores_NK) != len(y_N) or scores_NK.shape[1] < 2:
        raise ValueError(f"expected classes (N,) and scores (N, K), got {y_N.shape} and {scores_NK.shape}")
    classes_N = y_N.astype(np.int64)
    if len(y_N) and (np.any(classes_N != y_N) or classes_N.min() < 0 or classes_N.max() >= scores_NK.shape[1]):
        raise ValueError(f"classes must be whole numbers from 0 to {scores_NK.shape[1] - 1}")
    return classes_N, scores_NK


# Rank


def auc(y: ArrayLike, scores: ArrayLike) -> float:
    """Return the area under the ROC curve; for three classes or more, the mean of each against the rest.

    It is computed from ranks (SciPy). scikit-learn's takes twenty times as long for the few windows of a fold.

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
    return auc_within(y, scores, np.zeros(len(np.asarray(y))))


def auc_within(y: ArrayLike, scores: ArrayLike, folds: ArrayLike) -> float:
    """Return the AUC (`auc`) of the pairs of rows that are in one fold.

    Of each class, it is the share of all pairs within a fold, of a row of the class and one of the rest, that are in
    the right order. A fold that lacks a class counts for the others. If a class has no such pair in any fold, as where
    each fold has one person, all folds count as one.

    Parameters
    ----------
    y, scores
        See `auc`.
    folds
        (N,).
    """
    y_N, scores_NK = checked_classes(y, scores)
    if not np.isfinite(scores_NK).all():
        return float("nan")
    fold_N = folds_of_pairs(y_N, folds, scores_NK.shape[1])
    found = [_ordered_pairs(y_N[i], scores_NK[i]) for i in indices_of(fold_N)]
    return float(_mean_share(*np.sum(found, axis=0)[:, None])[0]) if found else float("nan")


def auc_resampled(y: ArrayLike, scores: ArrayLike, subject_N: Ints, counts_RS: Ints) -> Floats:
    """Return the AUC of each resample of subjects, from the ordered pairs of windows that each two subjects have.

    These are counted once, so that thousands of resamples cost little more than one.
    """
    return auc_within_resampled(y, scores, np.zeros(len(np.asarray(y))), subject_N, counts_RS)


def auc_within_resampled(y: ArrayLike, scores: ArrayLike, folds: ArrayLike, subject_N: Ints, counts_RS: Ints) -> Floats:
    """Return `auc_within` of the rows of each resample of subjects; NaN where a class is absent.

    Each resample decides whether its folds count as one: all people may have pairs within a fold that some lack.
    """
    y_N, scores_NK = checked_classes(y, scores)
    total = np.zeros((2, len(counts_RS), len(_ranked_classes(scores_NK.shape[1]))))
    folds_I = list(indices_of(np.asarray(folds)))
    for i in folds_I:
        total += _ordered_pairs_resampled(y_N[i], scores_NK[i], subject_N[i], counts_RS)
    lacks_R = (total[1] == 0).any(axis=1)
    if len(folds_I) > 1 and lacks_R.any():
        total[:, lacks_R] = _ordered_pairs_resampled(y_N, scores_NK, subject_N, counts_RS[lacks_R])
    return _mean_share(*total)


def indices_of(fold_N: NDArray[Any]) -> Iterator[Ints]:
    """Yield the rows of each fold."""
    for fold in np.unique(fold_N):
        yield np.flatnonzero(fold_N == fold)


def folds_of_pairs(y_N: Ints, folds: ArrayLike, n_classes: int) -> NDArray[Any]:
    """Return the folds (N,) within which pairs are counted: one for all where a class has no pair within a fold."""
    fold_N = np.asarray(folds)
    for k in _ranked_classes(n_classes):
        if not any(0 < (y_N[i] == k).sum() < len(i) for i in indices_of(fold_N)):
            return np.zeros_like(fold_N)
    return fold_N


def _mean_share(ordered_RK: Floats, pairs_RK: Floats) -> Floats:
    """Return the mean over the classes of the share of pairs in the right order (R,), NaN where a class has none."""
    return np.asarray(_ratio(ordered_RK, pairs_RK).mean(axis=1))


def _ordered_pairs(y_N: Ints, scores_NK: Floats) -> Floats:
    """Return, for each class whose AUC is averaged, its pairs with the rest in the right order, and all (2, K)."""
    from scipy.stats import rankdata  # scipy.stats takes most of a second to import

    found = []
    for k in _ranked_classes(scores_NK.shape[1]):
        positive_N = y_N == k
        n_positive = int(positive_N.sum())
        pairs = n_positive * (len(y_N) - n_positive)
        ordered = rankdata(scores_NK[:, k])[positive_N].sum() - n_positive * (n_positive + 1) / 2 if pairs else 0.0
        found.append((ordered, float(pairs)))
    return np.array(found).T


def _ordered_pairs_resampled(y_N: Ints, scores_NK: Floats, subject_N: Ints, counts_RS: Ints) -> Floats:
    """Return `_ordered_pairs` of each resample (2, R, K)."""
    n_classes = scores_NK.shape[1]
    present, subject_N = np.unique(subject_N, return_inverse=True)  # those of a fold, of all
    counts_RS = counts_RS[:, present].astype(np.float64)
    seen_SK = np.zeros((counts_RS.shape[1], n_classes))
    np.add.at(seen_SK, (subject_N, y_N), 1.0)
    seen_RK = counts_RS @ seen_SK
    found = []
    for k in _ranked_classes(n_classes):
        wins_SS = _wins(scores_NK[:, k], y_N == k, subject_N, counts_RS.shape[1])
        pairs_R = seen_RK[:, k] * (seen_RK.sum(1) - seen_RK[:, k])
        found.append((((counts_RS @ wins_SS) * counts_RS).sum(1), pairs_R))
    return np.array(found).transpose(1, 2, 0)


def _wins(score_N: Floats, positive_N: NDArray[np.bool_], subject_N: Ints, n_subjects: int) -> Floats:
    """Return how many pairs of a positive window of one subject and a negative one of another are in order (S, S).

    A tie counts half.
    """
    order_N = np.argsort(score_N, kind="stable")
    ranked_N, positive_N, subject_N = score_N[order_N], positive_N[order_N], subject_N[order_N]
    first_T = np.flatnonzero(np.r_[True, ranked_N[1:] != ranked_N[:-1]])  # first index of each group of ties
    end_T = np.r_[first_T[1:], len(ranked_N)]
    wins_SS, below_S = np.zeros((n_subjects, n_subjects)), np.zeros(n_subjects, np.int32)
    done = 0
    while done < len(first_T):
        # Whole groups of ties at a time, of as many windows as the table of counts may have rows.
        rows = max(1, _MAX_ELEMENTS // n_subjects)
        until = max(done + 1, int(np.searchsorted(end_T, first_T[done] + rows, side="right")))
        start, stop = int(first_T[done]), int(end_T[until - 1])
        negatives_BS = np.zeros((stop - start + 1, n_subjects), np.int32)
        inside = np.flatnonzero(~positive_N[start:stop])
        negatives_BS[inside + 1, subject_N[start + inside]] = 1.0
        negatives_BS[0] = below_S
        np.cumsum(negatives_BS, axis=0, out=negatives_BS)
        group = np.repeat(np.arange(done, until), end_T[done:until] - first_T[done:until])
        hits = np.flatnonzero(positive_N[start:stop])
        below_PS = negatives_BS[first_T[group[hits]] - start]
        if len(first_T) < len(ranked_N):  # a tie counts half
            below_PS = 0.5 * (below_PS + negatives_BS[end_T[group[hits]] - start])
        _add_rows(wins_SS, subject_N[start + hits], below_PS)
        below_S, done = negatives_BS[-1], until
    return wins_SS


def _add_rows(total_SX: Floats, row_P: Ints, values_PX: NDArray[Any]) -> None:
    """Add each of P rows to a row of a table; `np.add.at` takes many times as long."""
    if len(row_P):
        order_P = np.argsort(row_P, kind="stable")
        rows, first = np.unique(row_P[order_P], return_index=True)
        total_SX[rows] += np.add.reduceat(values_PX[order_P], first, axis=0, dtype=np.float64)


def _ranked_classes(n_classes: int) -> list[int]:
    """Return the classes whose AUC is averaged."""
    return [1] if n_classes == 2 else list(range(n_classes))


# Predicted classes: the sums are a confusion matrix


def confusion_sums(y: ArrayLike, scores: ArrayLike, subject_N: Ints, n_subjects: int) -> Floats:
    """Return each subject's windows by true and predicted class (S, K²), predicting the class of the largest score."""
    y_N, scores_NK = checked_classes(y, scores)
    n_classes = scores_NK.shape[1]
    cell_N = (subject_N * n_classes + y_N) * n_classes + scores_NK.argmax(1)
    counts = np.bincount(cell_N, minlength=n_subjects * n_classes**2)
    return counts.reshape(n_subjects, n_classes**2).astype(np.float64)


def accuracy(sums_RD: Floats) -> Floats:
    """Return the share of windows whose class is predicted."""
    matrix_RKK = _matrices(sums_RD)
    return _ratio(_right(matrix_RKK).sum(1), matrix_RKK.sum((1, 2)))


def balanced_accuracy(sums_RD: Floats) -> Floats:
    """Return the mean recall over the classes that occur."""
    matrix_RKK = _matrices(sums_RD)
    n_RK = matrix_RKK.sum(2)
    recall_RK = _ratio(_right(matrix_RKK), n_RK)
    return _ratio(np.nansum(recall_RK, axis=1), (n_RK > 0).sum(1))


def f1(sums_RD: Floats) -> Floats:
    """Return the F1 score of the second of two classes; of more classes, the mean over those that occur.

    A class occurs that a window has or that is predicted for one.
    """
    matrix_RKK = _matrices(sums_RD)
    total_RK = matrix_RKK.sum(1) + matrix_RKK.sum(2)
    f1_RK = _ratio(2 * _right(matrix_RKK), total_RK)
    if f1_RK.shape[1] == 2:
        return f1_RK[:, 1]
    return _ratio(np.nansum(f1_RK, axis=1), (total_RK > 0).sum(1))


def kappa(sums_RD: Floats) -> Floats:
    """Return Cohen's kappa of true and predicted classes."""
    matrix_RKK = _matrices(sums_RD)
    n_R = matrix_RKK.sum((1, 2))
    observed_R = _ratio(_right(matrix_RKK).sum(1), n_R)
    expected_R = _ratio((matrix_RKK.sum(1) * matrix_RKK.sum(2)).sum(1), n_R**2)
    return _ratio(observed_R - expected_R, 1.0 - expected_R)


OF_CONFUSION: dict[str, Callable[[Floats], Floats]] = {
    "balanced-accuracy": balanced_accuracy,
    "accuracy": accuracy,
    "f1": f1,
    "kappa": kappa,
}
"""Functions of confusion matrices (R, K²) by name of the metric."""


def _matrices(sums_RD: Floats) -> Floats:
    """Return confusion matrices (R, K, K), true classes first."""
    n_classes = round(np.sqrt(sums_RD.shape[1]))
    return sums_RD.reshape(-1, n_classes, n_classes)


def _right(matrix_RKK: Floats) -> Floats:
    """Return the windows (R, K) of each class that are predicted right."""
    return np.diagonal(matrix_RKK, axis1=1, axis2=2)


def _ratio(part: Floats, whole: Floats | Ints) -> Floats:
    """Return part / whole, NaN where the whole is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(whole != 0, part / whole, np.nan), dtype=np.float64)


# Probabilities: the sums are a number of windows and a loss


def log_loss_sums(y: ArrayLike, scores: ArrayLike, subject_N: Ints, n_subjects: int) -> Floats:
    """Return each subject's windows and their summed negative log probability of the true class (S, 2)."""
    y_N, p_NK = checked_classes(y, scores)
    of_true_N = np.clip(p_NK[np.arange(len(y_N)), y_N], MIN_PROBABILITY, 1.0)
    return mean_sums(-np.log(of_true_N), subject_N, n_subjects)


def brier_sums(y: ArrayLike, scores: ArrayLike, subject_N: Ints, n_subjects: int) -> Floats:
    """Return each subject's windows and their summed Brier score (S, 2).

    For two classes it is the squared error of the second's probability, for more the sum over classes (Brier 1950).
    """
    y_N, p_NK = checked_classes(y, scores)
    n_classes = p_NK.shape[1]
    squared_N = ((p_NK - np.eye(n_classes)[y_N]) ** 2).sum(1)
    return mean_sums(squared_N / 2 if n_classes == 2 else squared_N, subject_N, n_subjects)


def mean_sums(loss_N: Floats, subject_N: Ints, n_subjects: int) -> Floats:
    """Return each subject's windows and the sum of their losses (S, 2)."""
    counted = (np.bincount(subject_N, weights=w, minlength=n_subjects) for w in (np.ones_like(loss_N), loss_N))
    return np.stack(list(counted), axis=1)


def mean(sums_RD: Floats) -> Floats:
    """Return the mean loss from its number and its sum."""
    return _ratio(sums_RD[:, 1], sums_RD[:, 0])
