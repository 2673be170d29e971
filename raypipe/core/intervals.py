"""Confidence intervals from scores of resamples; error rates set by simulation (`benchmarks/interval_coverage.py`).

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
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from raypipe.core.metrics import Floats, Ints

TAIL_SHARE = 0.8
"""Nominal tail of the bootstrap, as a share of the promised one. Simulation found it."""
MAX_STUDENT = 1.5
"""Largest quantile of the studentised bootstrap, in quantiles of Student's t."""
CROSS_VALIDATED = math.sqrt(2.0)
"""Width of the interval of a cross-validated score, in widths of one of people whom no network was trained on."""
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
