"""Metrics of class probabilities: AUC, scores of the confusion matrix, log loss and Brier score."""

from __future__ import annotations

from collections.abc import Callable

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
    y_N, scores_NK = checked_classes(y, scores)
    n_classes = scores_NK.shape[1]
    if len(np.unique(y_N)) < n_classes or not np.isfinite(scores_NK).all():
        return float("nan")
    from scipy.stats import rankdata  # scipy.stats takes most of a second to import

    found = []
    for k in _ranked_classes(n_classes):
        positive_N = y_N == k
        n_positive = int(positive_N.sum())
        rank_sum = rankdata(scores_NK[:, k])[positive_N].sum()
        pairs = n_positive * (len(y_N) - n_positive)
        found.append((rank_sum - n_positive * (n_positive + 1) / 2) / pairs)
    return float(np.mean(found))


def auc_resampled(y: ArrayLike, scores: ArrayLike, subject_N: Ints, counts_RS: Ints) -> Floats:
    """Return the AUC of each resample by counting pairs of weighted windows in order of score; a tie counts half."""
    y_N, scores_NK = checked_classes(y, scores)
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
    seen_SK = np.zeros((counts_RS.shape[1], n_classes))
    np.add.at(seen_SK, (subject_N, y_N), 1.0)
    complete_R = (counts_RS @ seen_SK > 0).all(1)
    return np.where(complete_R, out_R / len(_ranked_classes(n_classes)), np.nan)


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
