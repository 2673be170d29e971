"""Bootstrap over subjects: intervals of scores and of their differences.

How scores of resamples become an interval: `raypipe.core.intervals`. Where all resamples agree on the best score that
can be, or the worst, they have no width: the bound is then that of `raypipe.core.perfect_scores`. Of fewer than
`MIN_SUBJECTS` subjects there is no interval.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raypipe.core.intervals import NO_INTERVAL, Interval, Samples, contain_zero, interval_of, sign_flip_chance, widened
from raypipe.core.metrics import Floats, Ints, Metric, get_metric
from raypipe.core.perfect_scores import interval_of_agreeing

MIN_SUBJECTS = 6
"""Subjects, or groups of them, from which a score or a difference has an interval.

By chance, all n signs of a difference agree in a share of 2^(1 - n): of five subjects, in 6 %, so no interval at 95 %
can exclude 0. Resamples of so few often agree in everything, and their intervals may then have no width at all.
"""
MAX_CHANCE = 0.025
"""Promised rate, on each side, of claims about a difference that is 0."""


def bootstrap_subjects(
    metric: str | Metric,
    y: ArrayLike,
    pred: ArrayLike,
    subjects: ArrayLike,
    *,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    cross_validated: bool = False,
) -> Interval:
    """Return the interval of a score over subjects.

    Windows of one subject resemble each other, so an interval over resampled windows would be too narrow.

    Parameters
    ----------
    metric
        Name in `metrics.METRICS`, or a metric.
    y, pred
        Targets and predictions, as `metrics.score` takes them.
    subjects
        (N,) subject of each window, or the group of its subject where subjects of a group are not independent.
    n
        Number of resamples. Those on which the metric is undefined (a class is absent) are left out of the interval.
    seed
        Seed of the resamples. Equal seeds and subjects give equal resamples.
    level
        Promised rate at which the interval contains the true score.
    cross_validated
        The subjects are scored by networks that were trained on one another.

    Returns
    -------
    Interval
        `NO_INTERVAL` of fewer than `MIN_SUBJECTS` subjects.

    Raises
    ------
    ValueError
        Lengths differ.
    """
    if _few(subjects, y):
        return NO_INTERVAL
    subject_N, counts_RS = _resamples(subjects, n, seed)
    scores_R = _scores(metric, y, pred, subject_N, counts_RS)
    samples, known = _split(scores_R, counts_RS), get_metric(metric)
    found = _of_scores(known, samples, y, subjects, level)
    return _clipped(widened(found, samples.all), *known.limits) if cross_validated else found


def _of_scores(metric: Metric, samples: Samples, y: ArrayLike, subjects: ArrayLike, level: float) -> Interval:
    """Return the interval of a score, within its limits."""
    found = interval_of(samples, level)
    if _agree(samples):
        return Interval(*interval_of_agreeing(metric, samples.all, y, subjects, level), found.usable)
    return _clipped(found, *metric.limits)


def _clipped(found: Interval, low: float, high: float) -> Interval:
    return Interval(float(np.clip(found.low, low, high)), float(np.clip(found.high, low, high)), found.usable)


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
    cross_validated: bool = False,
) -> Interval:
    """Return the interval of ``score(a) - score(b)``, both on the same resamples.

    It contains 0 unless a sign-flip test over subjects rejects 0 too. Parameters, errors and the least number of
    subjects are those of `bootstrap_subjects`.
    """
    a, b = (Scored(get_metric(metric), y, pred, subjects) for pred in (pred_a, pred_b))
    return difference_of(a, b, n=n, seed=seed, level=level, cross_validated=cross_validated)


class Scored(NamedTuple):
    """Predictions with the metric that scores them, which may be one of these rows, as within their folds."""

    metric: Metric
    y: ArrayLike
    pred: ArrayLike
    subjects: ArrayLike
    """(N,) subject, or group, of each row."""

    @property
    def score(self) -> float:
        """Return the score of all rows."""
        return self.metric.value(self.y, self.pred)


def difference_of(
    a: Scored, b: Scored, *, n: int = 2000, seed: int = 0, level: float = 0.95, cross_validated: bool = False
) -> Interval:
    """Return the interval of ``a.score - b.score`` as `bootstrap_difference` does; each may have rows of its own.

    Raises
    ------
    ValueError
        Lengths differ, or the subjects of `a` are not those of `b`.
    """
    if _few(a.subjects, a.y) or _few(b.subjects, b.y):
        return NO_INTERVAL
    names, index_N = np.unique(np.asarray(b.subjects), return_inverse=True)
    if not np.array_equal(names, np.unique(np.asarray(a.subjects))):
        raise ValueError("expected the same subjects on both sides of a difference")
    subject_N, counts_RS = _resamples(a.subjects, n, seed)
    a_R = _scores(a.metric, a.y, a.pred, subject_N, counts_RS)
    b_R = _scores(b.metric, b.y, b.pred, index_N.astype(np.int64), counts_RS)
    samples = _split(a_R - b_R, counts_RS)
    found = interval_of(samples, level)
    if _agree(samples) and not np.array_equal(np.asarray(a.pred), np.asarray(b.pred)):
        of_a = _of_scores(a.metric, _split(a_R, counts_RS), a.y, a.subjects, level)
        of_b = _of_scores(b.metric, _split(b_R, counts_RS), b.y, b.subjects, level)
        found = Interval(of_a.low - of_b.high, of_a.high - of_b.low, found.usable)
    found = widened(found, samples.all) if cross_validated else found
    found = contain_zero(found, sign_flip_chance(samples, seed), level)
    lowest, highest = a.metric.limits
    return _clipped(found, lowest - highest, highest - lowest)


def smallest_chance(targets: ArrayLike, subjects: ArrayLike, *, classes: bool, parts: ArrayLike | None = None) -> float:
    """Return the smallest rate at which chance alone gives the clearest result that these subjects could show.

    The clearest result has all n subjects on one side, which happens by chance at a rate of 2^-n. Where each subject
    has one class, the predictions put all subjects in the right order: as rare as one among all assignments of the
    classes to subjects. A claim with fewer errors than this rate cannot be made.

    In a cross-validation with these `parts` (N,), subjects are put in order within each part, and a score varies as
    that of half as many subjects (`CROSS_VALIDATED`): the rate is the square root. If no part has two classes, the
    order is that of all subjects together, as for a score (`raypipe.core.levels.within_folds`).
    """
    names, first, index_N = np.unique(np.asarray(subjects), return_index=True, return_inverse=True)
    targets_N, n = np.asarray(targets), len(names)
    part_S = np.zeros(n) if parts is None else np.asarray(parts)[first]
    chance = 2.0**-n
    if targets_N.ndim == 1 and classes and np.all(targets_N == targets_N[first][index_N]):
        within = sum(_log_arrangements(targets_N[first][part_S == part]) for part in np.unique(part_S))
        chance = max(chance, math.exp(-(within or _log_arrangements(targets_N[first]))))
    return chance if parts is None else math.sqrt(chance)


def _log_arrangements(targets_S: NDArray[Any]) -> float:
    """Return the logarithm of the number of ways to assign these classes to as many subjects."""
    counts_K = np.unique(targets_S, return_counts=True)[1].tolist()
    return math.lgamma(len(targets_S) + 1) - sum(math.lgamma(count + 1) for count in counts_K)


def jackknife_error(values_G: Floats) -> float:
    """Return the standard error of a statistic from its values with each group left out; 0 where undefined."""
    known_G = values_G[np.isfinite(values_G)]
    n = len(known_G)
    return float(np.sqrt((n - 1) * np.var(known_G))) if n > 1 else 0.0


def _agree(samples: Samples) -> bool:
    """Return whether the score is the same for all parts for which it is defined, to rounding."""
    parts = np.concatenate([samples.left_out_S, samples.resampled_R])
    spread = np.abs(parts[~np.isnan(parts)] - samples.all)
    return bool(len(spread) and spread.max() <= 1e-12 * max(1.0, abs(samples.all)))


def _few(subjects: ArrayLike, y: ArrayLike) -> bool:
    """Return whether there are too few subjects for an interval."""
    given, expected = np.shape(subjects), (len(np.asarray(y)),)
    if given != expected:
        raise ValueError(f"expected the subject of each of {expected[0]} windows, got {given}")
    return len(np.unique(np.asarray(subjects))) < MIN_SUBJECTS


def _resamples(subjects: ArrayLike, n: int, seed: int) -> tuple[Ints, Ints]:
    """Return the subject's index of each window (N,), and how often each part has each subject (1 + S + R, S).

    The parts are all subjects, all but one, and resamples.
    """
    names, subject_N = np.unique(np.asarray(subjects), return_inverse=True)
    s = len(names)
    drawn_RS = np.random.default_rng(seed).multinomial(s, np.full(s, 1.0 / s), size=n)
    parts = (np.ones((1, s)), 1 - np.eye(s), drawn_RS)
    return subject_N.astype(np.int64), np.concatenate(parts).astype(np.int64)


def _split(scores_R: Floats, counts_RS: Ints) -> Samples:
    """Return the scores of the parts that `_resamples` made."""
    drawn = 1 + counts_RS.shape[1]
    return Samples(float(scores_R[0]), scores_R[1:drawn], scores_R[drawn:], counts_RS[drawn:])


def _scores(metric: str | Metric, y: ArrayLike, pred: ArrayLike, subject_N: Ints, counts_RS: Ints) -> Floats:
    """Return the score of each part (R,); NaN where it is undefined."""
    if not np.isfinite(np.asarray(pred, dtype=np.float64)).all():
        return np.full(len(counts_RS), np.nan)
    return get_metric(metric).resampled(y, pred, subject_N, counts_RS)
