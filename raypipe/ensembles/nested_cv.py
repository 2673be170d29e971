"""Nested cross-validation: scores of methods on subjects that the ensemble was not chosen on.

For each group of people, everything that `raypipe ensemble` chooses is chosen anew by the others: the epoch of each
trial, the trials, the method and its weights. What the search itself has chosen is not repeated: which configurations
were drawn, and when trials were stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np

from raypipe.core.bootstrap import bootstrap_subjects, jackknife_error
from raypipe.core.levels import within_folds
from raypipe.core.metrics import get_metric
from raypipe.ensembles.methods import METHODS, Method
from raypipe.ensembles.oof import Floats, Mask, MemberPredictions, people_scores, subject_splits
from raypipe.ensembles.selection import forward_selection
from raypipe.ensembles.trial_pool import CHOICE_GROUPS, OUTER_GROUPS
from raypipe.ensembles.weights import linear_rule
from raypipe.models.combine import Rule

AUTO = "auto"
"""The choice among methods, scored as a method of its own."""
CURVE_RESAMPLES = 500
"""Resamples of the intervals of `score_by_ensemble_size`, of which there are many."""
MAX_JACKKNIFE_GROUPS = 30
"""Groups of people that are left out in turn to find a standard error."""

FitFunction = Callable[[MemberPredictions], Rule]
OrderFunction = Callable[[MemberPredictions], list[int]]
Fits = Mapping[str, FitFunction]


class Pool(Protocol):
    """Members that are chosen (`TrialPool`), or given (`MemberPredictions`)."""

    @property
    def windows_like(self) -> MemberPredictions:
        """Return predictions of any members, which have targets, subjects and metric of the windows."""

    def choose(self, inside_N: Mask) -> MemberPredictions:
        """Return the members, with predictions for all windows, that the windows in a mask (N,) choose."""


@dataclass(frozen=True)
class NestedResult:
    """Result of nested cross-validation."""

    predictions: dict[str, Floats]
    """By method, predictions (N, outputs) for subjects that no choice has used."""
    scores: dict[str, float]
    """By method, the target's metric of these predictions."""
    excluded: dict[str, str]
    """Methods that cannot be used, and why."""


def run_nested_cv(
    pool: Pool,
    names: Sequence[str] | None = None,
    *,
    max_members: int | None = None,
    auto: Sequence[str] = (),
) -> NestedResult:
    """Score methods on subjects that neither the choice of members nor their fit has used.

    Parameters
    ----------
    pool
        The members, or the trials and epochs that they are chosen from.
    names
        Methods; None for all.
    max_members
        Members that a method may use.
    auto
        Methods among which one is chosen: score the choice too, under the name ``auto``. In each split it is made by
        cross-validation within the subjects to fit on. The nested score of the winner itself is the best of several,
        and so optimistic.
    """
    like = pool.windows_like
    fits = _fits({name: METHODS[name] for name in names or METHODS}, max_members)
    predictions, excluded = cross_predict(fits, pool, OUTER_GROUPS)
    among = {name: METHODS[name] for name in auto if name in predictions}
    if among:
        predictions[AUTO] = np.empty_like(like.encoded_targets)
        for fit_N, test_N in subject_splits(like, OUTER_GROUPS):
            chosen = choose_method(pool, among, max_members, fit_N)
            predictions[AUTO][test_N] = predictions[chosen][test_N]
    scores = {name: like.score(each) for name, each in predictions.items()}
    return NestedResult(predictions, scores, excluded)


def _fits(methods: Mapping[str, Method], max_members: int | None) -> dict[str, FitFunction]:
    return {name: limit_members(method.fit, max_members) for name, method in methods.items()}


def choose_method(
    pool: Pool, methods: Mapping[str, Method], max_members: int | None, inside_N: Mask | None = None
) -> str:
    """Return the name of the method that the cross-validated scores of the subjects in a mask (N,) choose.

    See `simplest_within_error`. None is a mask of all subjects.
    """
    like = pool.windows_like
    inside_N = np.ones(len(like.targets), dtype=bool) if inside_N is None else inside_N
    if len(methods) == 1 or len(np.unique(like.subjects[inside_N])) < 2:
        return next(iter(methods))
    predictions, _ = cross_predict(_fits(methods, max_members), pool, CHOICE_GROUPS, inside_N)
    inside = like.select_windows(inside_N)
    return simplest_within_error({name: each[inside_N] for name, each in predictions.items()}, inside)


def simplest_within_error(predictions: Mapping[str, Floats], like: MemberPredictions) -> str:
    """Return the name of the first predictions that are worse than the best by one standard error at most.

    This is the rule of Breiman et al. (1984) for the paired difference to the best score. Its standard error is that of
    a jackknife over people, in `MAX_JACKKNIFE_GROUPS` groups where they are more.

    Parameters
    ----------
    predictions
        Predictions (N, outputs) of each method, simpler ones first.
    like
        Predictions of any members for the same windows.
    """
    sign = get_metric(like.metric).sign
    parts = [fit_N for fit_N, _ in subject_splits(like, MAX_JACKKNIFE_GROUPS)]
    everyone_N = np.ones(len(like.targets), dtype=bool)
    losses = {name: sign * people_scores(like, each, [everyone_N, *parts]) for name, each in predictions.items()}
    best = best_name({name: float(sign * each_P[0]) for name, each_P in losses.items()}, like.metric)
    for name, losses_P in losses.items():
        difference, *left_out_G = losses_P - losses[best]
        if difference <= jackknife_error(np.array(left_out_G)):
            return name
    return best


def best_name(scores: Mapping[str, float], metric: str) -> str:
    """Return the name of the best score; the first of several equal ones."""
    better = get_metric(metric).better
    names = list(scores)
    best = names[0]
    for name in names[1:]:
        if better(scores[name], scores[best]):
            best = name
    return best


def cross_predict(
    fits: Fits, pool: Pool, groups: int, inside_N: Mask | None = None
) -> tuple[dict[str, Floats], dict[str, str]]:
    """Predict every group of subjects with members and rules that the other groups chose and fitted.

    Parameters
    ----------
    fits
        Functions that fit a rule, by name of the method.
    pool
        The members, or the trials and epochs that they are chosen from.
    groups
        Number of groups.
    inside_N
        (N,) mask of whole subjects; others take no part. None for all.

    Returns
    -------
    predictions
        By method, (N, outputs); NaN for subjects that took no part.
    excluded
        Methods that cannot be used in one of the splits, or with the members that all subjects choose, and why.
    """
    shape = pool.windows_like.encoded_targets.shape
    everyone_N = np.ones(shape[0], dtype=bool) if inside_N is None else inside_N
    excluded = _unusable(fits, pool.choose(everyone_N).select_windows(everyone_N)) if inside_N is None else {}
    out = {name: np.full(shape, np.nan) for name in fits}
    for fit_N, test_N in subject_splits(pool.windows_like, groups, inside_N):
        members = pool.choose(fit_N)
        inside, test = members.select_windows(fit_N), members.select_windows(test_N)
        excluded |= _unusable(fits, inside)
        for name in fits.keys() - excluded.keys():
            out[name][test_N] = test.combine(fits[name](inside))
    return {name: each for name, each in out.items() if name not in excluded}, excluded


def _unusable(fits: Fits, members: MemberPredictions) -> dict[str, str]:
    """Return the methods that cannot be fitted on members, and why."""
    reasons = {name: METHODS[name].unusable_reason(members) for name in fits if name in METHODS}
    return {name: reason for name, reason in reasons.items() if reason}


def limit_members(fit: FitFunction, max_members: int | None) -> FitFunction:
    """Return `fit` restricted to the `max_members` members that forward selection takes on the same subjects."""

    def fit_selected(members: MemberPredictions) -> Rule:
        if max_members is None or max_members >= len(members.names):
            return fit(members)
        selected = sorted(forward_selection(members, max_members))
        return expand_rule(fit(members.select_members(selected)), selected, len(members.names))

    return fit_selected


def expand_rule(rule: Rule, selected: list[int], n_members: int) -> Rule:
    """Turn a rule for selected members into one for all; ``only`` lists the selected ones where weights cannot."""
    if rule["kind"] == "linear":
        weights = np.zeros(n_members)
        weights[selected] = rule["weights"]
        return linear_rule(weights, rule["intercept"])
    return {**rule, "only": selected}


# Diversity of the members


class SizeScore(NamedTuple):
    """A nested score of some members, and its 95 % interval over people, or their groups."""

    score: float
    low: float
    high: float


def score_by_ensemble_size(pool: Pool) -> dict[str, list[SizeScore]]:
    """Return nested scores of equal weights over 1, 2, ... members, in order of rank and of forward selection.

    In each split members and their order are found on the other subjects. Scores are NaN above the number of members
    that every split has.
    """
    like = pool.windows_like
    n_members = len(pool.choose(np.ones(len(like.targets), dtype=bool)).names)
    orders: dict[str, OrderFunction] = {
        "by rank": lambda inside: inside.ranking(),
        "complementing": lambda inside: forward_selection(inside, n_members),
    }
    means = {name: np.full((n_members, *like.encoded_targets.shape), np.nan) for name in orders}
    for fit_N, test_N in subject_splits(like, OUTER_GROUPS):
        members = pool.choose(fit_N)
        inside, test = members.select_windows(fit_N), members.select_windows(test_N)
        for name, find_order in orders.items():
            sums_MNO = np.cumsum(test.predictions[find_order(inside)[:n_members]], axis=0)
            means[name][: len(sums_MNO), test_N] = sums_MNO / np.arange(1, len(sums_MNO) + 1)[:, None, None]
    return {name: [_with_interval(like, mean_NO) for mean_NO in means_MNO] for name, means_MNO in means.items()}


def _with_interval(like: MemberPredictions, mean_NO: Floats) -> SizeScore:
    found = replace(like, predictions=mean_NO[None], variances=None).at_level()
    metric = within_folds(found.metric, found.folds)
    interval = bootstrap_subjects(
        metric, found.targets, found.predictions[0], found.units, n=CURVE_RESAMPLES, cross_validated=True
    )
    return SizeScore(like.score(mean_NO), interval.low, interval.high)


def error_correlations(members: MemberPredictions) -> Floats:
    """Return the correlations (M, M) of the members' errors over windows and outputs."""
    like = members.standardised()
    residuals_MX = (like.predictions - like.encoded_targets).reshape(len(like.names), -1)
    if len(residuals_MX) == 1:
        return np.ones((1, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.nan_to_num(np.corrcoef(residuals_MX), nan=0.0))
