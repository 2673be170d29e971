"""Confidence intervals of scores over subjects, with error rates set by simulation (`benchmarks/interval_coverage.py`).

A percentile interval over few resampled subjects is too narrow. The interval here is the wider, at each end, of two:

- percentiles of the bootstrap at tails that Student's t distribution widens (Hesterberg 2015,
  doi:10.1080/00031305.2015.1089789) and `TAIL_SHARE` narrows further;
- the studentised bootstrap (Efron and Tibshirani 1993, chapter 12.5) of the jackknife pseudo-values. Its quantiles are
  kept between one and `MAX_STUDENT` times Student's, because few subjects make them unstable.

Where people are scored by networks that were trained on one another, as in a cross-validation, each end is
`CROSS_VALIDATED` times as far from the score. Resamples keep predictions as they are, and so miss that two people are
in each other's training data. If the prediction of person i is the sum of K_ij y_j over the people it was trained on,
and there is no effect, the sum of y_i times the predictions has a variance proportional to that of K_ij^2 + K_ij K_ji
over pairs. Resamples see the first term; the second is at most as large (Cauchy-Schwarz), and equal for a symmetric K
such as that of ridge regression. It has no unbiased estimator (Bengio and Grandvalet 2004, JMLR 5:1089), so it is
bounded. Nadeau and Bengio (2003, doi:10.1023/A:1024068626366) have 1 + k / (k - 1) times the variance for k folds,
where this bound has 2. With a strong effect the second term is small, and the interval is wider than it need be.

An interval of a difference also contains 0 unless a sign-flip test over subjects rejects 0 at the same level.

Where all resamples agree on the best score that can be, or the worst, they have no width: the bound is then that of
`raypipe.core.perfect_scores`. Of fewer than `MIN_SUBJECTS` subjects there is no interval.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raypipe.core.metrics import Floats, Ints, Metric, get_metric
from raypipe.core.perfect_scores import interval_of_agreeing

TAIL_SHARE = 0.8
"""Nominal tail of the bootstrap, as a share of the promised one. Simulation found it."""
MIN_SUBJECTS = 6
"""Subjects, or groups of them, from which a score or a difference has an interval.

By chance, all n signs of a difference agree in a share of 2^(1 - n): of five subjects, in 6 %, so no interval at 95 %
can exclude 0. Resamples of so few often agree in everything, and their intervals may then have no width at all.
"""
MAX_STUDENT = 1.5
"""Largest quantile of the studentised bootstrap, in quantiles of Student's t."""
CROSS_VALIDATED = math.sqrt(2.0)
"""Width of the interval of a cross-validated score, in widths of one of people whom no network was trained on."""
MAX_CHANCE = 0.025
"""Promised rate, on each side, of claims about a difference that is 0."""
_MAX_ENUMERATED = 12
"""Subjects up to which all sign flips are tried; for more, `_FLIPS` are drawn."""
_FLIPS = 10_000


class Interval(NamedTuple):
    """An interval over subjects."""

    low: float
    high: float
    usable: int
    """Resamples on which the metric is defined. Both ends are NaN if there is none, or too few subjects."""


NO_INTERVAL = Interval(math.nan, math.nan, 0)
"""Of too few subjects, or of an undefined score."""


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


# From scores of resamples to an interval


class Samples(NamedTuple):
    """A score, or a difference of scores, of all subjects and of parts of them."""

    all: float
    left_out_S: Floats  # noqa: N815 - axes
    """Without each subject."""
    resampled_R: Floats  # noqa: N815 - axes
    """NaN where it is undefined."""
    counts_RS: Ints  # noqa: N815 - axes
    """How often each resample has each subject."""

    @property
    def part_S(self) -> Floats:  # noqa: N802 - axes
        """Return the jackknife pseudo-value of each subject: its part of the score, whose mean is about the score."""
        n = len(self.left_out_S)
        without_S = np.where(np.isnan(self.left_out_S), self.all, self.left_out_S)
        return n * self.all - (n - 1) * without_S


def interval_of(samples: Samples, level: float = 0.95) -> Interval:
    """Return the interval at a level; see the module."""
    from scipy.stats import norm, t  # scipy.stats takes a second to import

    usable_R = samples.resampled_R[~np.isnan(samples.resampled_R)]
    if len(usable_R) == 0 or np.isnan(samples.all):
        return NO_INTERVAL
    n, tail = len(samples.left_out_S), (1.0 - level) / 2.0
    share = norm.cdf(math.sqrt(n / (n - 1)) * t.ppf(TAIL_SHARE * tail, n - 1))
    low, high = np.quantile(usable_R, [share, 1.0 - share])
    below, above = _studentised_reach(samples.part_S, samples.counts_RS, tail)
    return Interval(float(min(low, samples.all - below)), float(max(high, samples.all + above)), len(usable_R))


def widened(interval: Interval, score: float) -> Interval:
    """Return the interval of a cross-validated score, from that of predictions which are taken as fixed."""
    low, high = (score + CROSS_VALIDATED * (end - score) for end in (interval.low, interval.high))
    return interval._replace(low=low, high=high)


def _studentised_reach(part_S: Floats, counts_RS: Ints, tail: float) -> tuple[float, float]:
    """Return how far a studentised interval reaches below and above the score."""
    from scipy.stats import t

    n = len(part_S)
    mean_R = counts_RS @ part_S / n
    error_R = np.sqrt(np.maximum(counts_RS @ part_S**2 / n - mean_R**2, 0.0) / (n - 1))
    shift_R = mean_R - part_S.mean()
    usual = float(t.ppf(1.0 - tail, n - 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        student_R = np.nan_to_num(shift_R / error_R, posinf=MAX_STUDENT * usual, neginf=-MAX_STUDENT * usual)
    upper, lower = np.quantile(student_R, [1.0 - tail, tail])
    error = float(part_S.std(ddof=1)) / math.sqrt(n)
    below, above = np.clip([upper, -lower], usual, MAX_STUDENT * usual) * error
    return float(below), float(above)


def sign_flip_chance(samples: Samples, seed: int = 0) -> float:
    """Return the two-sided p of the sign-flip test that a difference is 0.

    Each subject's part of the difference is its jackknife pseudo-value. Under the null hypothesis their signs are
    random.
    """
    if np.isnan(samples.all):
        return 1.0
    part_S = samples.part_S
    n = len(part_S)
    if n <= _MAX_ENUMERATED:
        signs_FS = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    else:
        signs_FS = np.random.default_rng(seed).choice([-1.0, 1.0], (_FLIPS, n))
        signs_FS[0] = 1.0  # what was found is one of the flips
    flipped_F, found = signs_FS @ part_S, part_S.sum()
    rounding = 1e-9 * float(np.abs(part_S).sum())
    one_sided = min(float(np.mean(flipped_F >= found - rounding)), float(np.mean(flipped_F <= found + rounding)))
    return min(1.0, 2.0 * one_sided)


def contain_zero(interval: Interval, chance: float, level: float = 0.95) -> Interval:
    """Extend an interval of a difference to 0 where the sign-flip test does not reject 0 at the same level."""
    if np.isnan(interval.low) or chance <= 1.0 - level + 1e-12:
        return interval
    return interval._replace(low=min(interval.low, 0.0), high=max(interval.high, 0.0))


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
