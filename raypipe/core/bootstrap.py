"""Confidence intervals of scores by a bootstrap over subjects."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from raypipe.core.metrics import Floats, Ints, Metric, get_metric


class Interval(NamedTuple):
    """A percentile interval over resampled subjects."""

    low: float
    high: float
    usable: int
    """Resamples on which the metric is defined. Both ends are NaN if there is none."""


def bootstrap_subjects(
    metric: str | Metric,
    y: ArrayLike,
    pred: ArrayLike,
    subjects: ArrayLike,
    *,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Return the percentile interval of a score, by resampling subjects with replacement.

    Windows of one subject resemble each other, so an interval over resampled windows would be too narrow.

    Parameters
    ----------
    metric
        Name in `metrics.METRICS`, or a metric (`levels.within_folds`).
    y, pred
        Targets and predictions, as `metrics.score` takes them.
    subjects
        (N,) subject of each window.
    n
        Number of resamples. Those on which the metric is undefined (a class is absent) are left out of the interval.
    seed
        Seed of the resamples. Equal seeds and subjects give equal resamples.
    level
        Share of the resamples inside the interval.

    Raises
    ------
    ValueError
        There are fewer than two subjects, or lengths differ.
    """
    subject_N, counts_RS = _resamples(subjects, len(np.asarray(y)), n, seed)
    return _interval(_scores(metric, y, pred, subject_N, counts_RS), level)


def bootstrap_difference(
    metric: str | Metric,
    y: ArrayLike,
    pred_a: ArrayLike,
    pred_b: ArrayLike,
    subjects: ArrayLike,
    *,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Return the percentile interval of ``score(a) - score(b)``, both on the same resamples.

    Parameters and errors are those of `bootstrap_subjects`.
    """
    subject_N, counts_RS = _resamples(subjects, len(np.asarray(y)), n, seed)
    a_R, b_R = (_scores(metric, y, pred, subject_N, counts_RS) for pred in (pred_a, pred_b))
    return _interval(a_R - b_R, level)


def _resamples(subjects: ArrayLike, n_windows: int, n: int, seed: int) -> tuple[Ints, Ints]:
    """Return the subject's index of each window (N,), and how often each resample drew each subject (R, S)."""
    names, subject_N = np.unique(np.asarray(subjects), return_inverse=True)
    if subject_N.shape != (n_windows,):
        raise ValueError(f"expected the subject of each of {n_windows} windows, got {subject_N.shape}")
    if len(names) < 2:
        raise ValueError(f"a bootstrap over subjects needs two or more, got {len(names)}")
    rng = np.random.default_rng(seed)
    counts_RS = rng.multinomial(len(names), np.full(len(names), 1.0 / len(names)), size=n)
    return subject_N.astype(np.int64), counts_RS.astype(np.int64)


def _scores(metric: str | Metric, y: ArrayLike, pred: ArrayLike, subject_N: Ints, counts_RS: Ints) -> Floats:
    """Return the score of each resample (R,); NaN where it is undefined."""
    if not np.isfinite(np.asarray(pred, dtype=np.float64)).all():
        return np.full(len(counts_RS), np.nan)
    return get_metric(metric).resampled(y, pred, subject_N, counts_RS)


def _interval(scores_R: Floats, level: float) -> Interval:
    usable_R = scores_R[~np.isnan(scores_R)]
    if len(usable_R) == 0:
        return Interval(float("nan"), float("nan"), 0)
    low, high = np.quantile(usable_R, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Interval(float(low), float(high), len(usable_R))
