"""Compare predicted probabilities, and intervals of predicted values, with what happens for other subjects.

All numbers are of nested predictions: the combination, its calibration and the width of its intervals were fitted on
other subjects than those that they are compared for.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from raypipe.core.bootstrap import bootstrap_subjects
from raypipe.core.class_metrics import mean, mean_sums
from raypipe.core.intervals import CROSS_VALIDATED
from raypipe.core.levels import rows_at_level
from raypipe.core.metrics import Floats, Ints, Metric, from_sums
from raypipe.core.record import FrozenModel
from raypipe.ensembles.calibration import calibrate_across
from raypipe.ensembles.oof import MemberPredictions, subject_splits
from raypipe.ensembles.trial_pool import OUTER_GROUPS

N_BINS = 10
"""Groups of windows or people of equal size, in order of their probability, at most."""
MIN_PER_BIN = 5
"""Windows or people of a group."""
LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Nominal coverages of the intervals of a regression: shares of targets that they are to contain."""


class Estimate(FrozenModel):
    """A number with its 95 % interval over subjects, or their groups; None where it is undefined."""

    value: float | None
    low: float | None
    high: float | None


class Bin(FrozenModel):
    """Windows of similar probability; people, where the target is a person's."""

    rows: int
    """Their number; a person is a row in each repeat of the folds."""
    predicted: float
    """Mean probability."""
    observed: Estimate
    """Share of them for which it came true."""


class Coverage(FrozenModel):
    """Intervals around predicted values."""

    level: float
    """Nominal share of targets inside."""
    observed: Estimate
    width: float
    """In units of the target."""


class Reliability(FrozenModel):
    """How far predictions can be taken at their word (`ensemble.json`)."""

    bins: list[Bin] = Field(default_factory=list)
    """Of classes: the second of two classes, or the most probable of more."""
    calibration_error: Estimate | None = None
    """Expected calibration error over these bins (Naeini et al. 2015): the mean distance of predicted and observed."""
    error_before: Estimate | None = None
    """The same without calibration, over bins of the probabilities as the networks gave them."""
    coverage: list[Coverage] = Field(default_factory=list)
    """Of values, at each of `LEVELS`."""


def reliability_of(like: MemberPredictions, nested_NO: NDArray[Any]) -> Reliability:
    """Return the reliability of nested predictions.

    Parameters
    ----------
    like
        Predictions of any members for the same windows.
    nested_NO
        Values (N, 1), or class probabilities (N, K) before they are calibrated.
    """
    if like.kind == "regression":
        return Reliability(coverage=interval_coverage(like, nested_NO))
    given = like.level, like.targets, like.subjects, like.folds
    units = like.at_level().units
    rows, raw = (rows_at_level(*given, p_NK) for p_NK in (calibrate_across(like, nested_NO)[0], nested_NO))
    happened_N, p_N = _event(rows.targets, rows.predictions)
    raw_happened_N, raw_N = _event(raw.targets, raw.predictions)
    return Reliability(
        bins=frequencies(rows.targets, rows.predictions, units, cross_validated=True),
        calibration_error=_estimate(calibration_error(equal_bins(p_N)), happened_N, p_N, units, True),
        error_before=_estimate(calibration_error(equal_bins(raw_N)), raw_happened_N, raw_N, units, True),
    )


def frequencies(
    y: NDArray[Any], p_NK: NDArray[Any], units: NDArray[Any], *, cross_validated: bool = False
) -> list[Bin]:
    """Return how often what was predicted came true, by its probability.

    Parameters
    ----------
    y, p_NK
        (N,) classes and (N, K) probabilities of windows or people.
    units
        (N,) what intervals resample: people, or the groups that they share.
    cross_validated
        See `raypipe.core.bootstrap.bootstrap_subjects`.
    """
    happened_N, p_N = _event(y, p_NK)
    bin_N = equal_bins(p_N)
    places = (bin_N == k for k in range(int(bin_N.max()) + 1))
    return [_bin(happened_N[i], p_N[i], units[i], cross_validated) for i in places]


def _event(y: NDArray[Any], p_NK: NDArray[Any]) -> tuple[Floats, Floats]:
    """Return whether an event happened (N,) and its probability (N,).

    The event is the second of two classes, or of more classes, that the most probable is the true one.
    """
    if p_NK.shape[1] == 2:
        return (np.asarray(y) == 1).astype(np.float64), np.asarray(p_NK[:, 1], dtype=np.float64)
    return (p_NK.argmax(1) == y).astype(np.float64), np.asarray(p_NK.max(1), dtype=np.float64)


def equal_bins(p_N: Floats) -> Ints:
    """Return the bin (N,) of each probability, of about equal size; equal probabilities share one.

    There are `N_BINS`, or fewer, so that each has `MIN_PER_BIN`.
    """
    n_bins = max(1, min(N_BINS, len(p_N) // MIN_PER_BIN))
    edges = np.quantile(p_N, np.linspace(0, 1, n_bins + 1)[1:-1])
    return np.unique(np.searchsorted(edges, p_N, side="right"), return_inverse=True)[1].astype(np.int64)


def calibration_error(bin_N: Ints) -> Metric:
    """Return the expected calibration error over bins of windows as a metric of events and their probabilities."""
    n_bins = int(bin_N.max()) + 1

    def sums(y: ArrayLike, pred: ArrayLike, subject_N: Ints, n_subjects: int) -> Floats:
        gap_N = np.asarray(y, dtype=np.float64) - np.asarray(pred, dtype=np.float64)
        gaps = np.bincount(subject_N * n_bins + bin_N, weights=gap_N, minlength=n_subjects * n_bins)
        n_S = np.bincount(subject_N, minlength=n_subjects).astype(np.float64)
        return np.concatenate([gaps.reshape(n_subjects, n_bins), n_S[:, None]], axis=1)

    def finish(sums_RD: Floats) -> Floats:
        return np.asarray(np.abs(sums_RD[:, :-1]).sum(1) / sums_RD[:, -1])

    return from_sums("calibration error", "minimize", "classification", "probabilities", sums, finish, (0.0, 1.0))


def _bin(happened_N: Floats, p_N: Floats, units: NDArray[Any], cross_validated: bool) -> Bin:
    if len(np.unique(units)) == len(units):
        observed = _share(happened_N, cross_validated)
    else:
        observed = _estimate(_share_metric(), happened_N, happened_N, units, cross_validated)
    return Bin(rows=len(p_N), predicted=float(p_N.mean()), observed=observed)


def _share(happened_N: Floats, cross_validated: bool) -> Estimate:
    """Return the share of events that are independent, with the interval of Wilson (1927), which 0 and 1 have too.

    Twice the variance, of a cross-validation, is that of half as many events.
    """
    n = len(happened_N) / (CROSS_VALIDATED**2 if cross_validated else 1.0)
    share, z = float(happened_N.mean()), 1.959964
    centre, scale = share + z**2 / (2 * n), 1 + z**2 / n
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
    return Estimate(value=share, low=min(low, share), high=max(high, share))


def _share_metric() -> Metric:
    """Return the share of events as a metric; it does not read its first argument."""

    def sums(y: ArrayLike, pred: ArrayLike, subject_N: Ints, n_subjects: int) -> Floats:
        return mean_sums(np.asarray(pred, dtype=np.float64).reshape(-1), subject_N, n_subjects)

    return from_sums("share", "maximize", "regression", "values", sums, mean, (0.0, 1.0))


def _estimate(metric: Metric, y: Floats, pred: Floats, units: NDArray[Any], cross_validated: bool) -> Estimate:
    """Return a score with its interval over subjects, or their groups; None where they are too few."""
    value = metric.value(y, pred)
    inner = bootstrap_subjects(metric, y, pred, units, cross_validated=cross_validated)
    return Estimate(value=_known(value), low=_known(inner.low), high=_known(inner.high))


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def interval_coverage(like: MemberPredictions, nested_N1: NDArray[Any]) -> list[Coverage]:
    """Return how often intervals around predicted values contain the target, at each of `LEVELS`.

    The half width is the quantile of the absolute errors of other subjects that split conformal prediction takes
    (Lei et al. 2018, doi:10.1080/01621459.2017.1307116). A data point is a person where the target is a person's.
    """
    out, units = [], like.at_level().units
    for level in LEVELS:
        width_N = np.full(len(like.targets), np.nan)
        for fit_N, test_N in subject_splits(like, OUTER_GROUPS):
            part = rows_at_level(
                like.level, like.targets[fit_N], like.subjects[fit_N], like.folds[fit_N], nested_N1[fit_N]
            )
            if len(part.targets):
                repeats = len(like.windows) // len(np.unique(like.windows))
                error = np.abs(part.predictions[:, 0] - part.targets)
                width_N[test_N] = conformal_half_width(error, level, repeats)
        both_N2 = np.stack([nested_N1[:, 0], width_N], axis=1)
        rows = rows_at_level(like.level, like.targets, like.subjects, like.folds, both_N2)
        inside_N = (np.abs(rows.targets - rows.predictions[:, 0]) <= rows.predictions[:, 1]).astype(np.float64)
        observed = _estimate(_share_metric(), inside_N, inside_N, units, True)
        out.append(Coverage(level=level, observed=observed, width=float(2 * np.nanmedian(width_N))))
    return out


def conformal_half_width(error_N: Floats, level: float, repeats: int = 1) -> float:
    """Return the absolute error that a new one is below with a probability of `level` or more.

    Of each data point there are `repeats` errors, one by the network of each repeat of the folds.
    """
    n = len(error_N) // repeats
    rank = repeats * min(n, math.ceil((n + 1) * level))
    return float(np.sort(error_N)[rank - 1])
