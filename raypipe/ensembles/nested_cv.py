"""Nested cross-validation: scores of methods on subjects that neither their fit nor the choice among them has used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from raypipe.core.metrics import get_metric
from raypipe.ensembles.methods import METHODS, Method
from raypipe.ensembles.oof import Floats, MemberPredictions, subject_splits
from raypipe.ensembles.selection import forward_selection
from raypipe.ensembles.weights import linear_rule
from raypipe.models.combine import Rule

OUTER_GROUPS = 6
"""Groups of subjects on which methods are scored in turn."""
CHOICE_GROUPS = 4
"""Groups of the remaining subjects over which the choice among methods is cross-validated."""

AUTO = "auto"
"""The choice among methods, scored as a method of its own."""

FitFunction = Callable[[MemberPredictions], Rule]
OrderFunction = Callable[[MemberPredictions], list[int]]


@dataclass(frozen=True)
class NestedResult:
    """Result of nested cross-validation."""

    predictions: dict[str, Floats]
    """By method, predictions (N, outputs) for subjects that it was not fitted on."""
    scores: dict[str, float]
    """By method, the task's metric of these predictions."""
    excluded: dict[str, str]
    """Methods that cannot be used, and why."""


def run_nested_cv(
    members: MemberPredictions, names: list[str] | None = None, *, max_members: int | None = None, auto: bool = True
) -> NestedResult:
    """Score methods on subjects that they were not fitted on.

    Parameters
    ----------
    members
        Out-of-fold predictions of all members.
    names
        Methods; None for all.
    max_members
        Members that a method may use.
    auto
        Score the choice among the methods too, under the name ``auto``. In each split it is made by cross-validation
        within the subjects to fit on. The nested score of the winner itself is the best of several, and so optimistic.
    """
    methods, excluded = usable_methods(members, {name: METHODS[name] for name in names or METHODS})
    fits = {name: limit_members(method.fit, max_members) for name, method in methods.items()}
    predictions = {name: cross_predict(fit, members, OUTER_GROUPS) for name, fit in fits.items()}
    if auto and len(methods) > 1:
        predictions[AUTO] = cross_predict(
            lambda inside: fits[choose_method(inside, methods, max_members)](inside), members, OUTER_GROUPS
        )
    elif auto:
        predictions[AUTO] = next(iter(predictions.values()))
    scores = {name: members.score(each) for name, each in predictions.items()}
    return NestedResult(predictions, scores, excluded)


def usable_methods(
    members: MemberPredictions, methods: Mapping[str, Method]
) -> tuple[dict[str, Method], dict[str, str]]:
    """Return the methods that can be fitted on all members and in every split, and why the others cannot."""
    parts = [members, *(members.select_windows(fit_N) for fit_N, _ in subject_splits(members, OUTER_GROUPS))]
    usable, excluded = {}, {}
    for name, method in methods.items():
        reason = next((reason for part in parts if (reason := method.unusable_reason(part))), None)
        if reason is None:
            usable[name] = method
        else:
            excluded[name] = reason
    return usable, excluded


def choose_method(members: MemberPredictions, methods: Mapping[str, Method], max_members: int | None) -> str:
    """Return the name of the method with the best cross-validated score on these members' subjects."""
    parts = [members.select_windows(fit_N) for fit_N, _ in subject_splits(members, CHOICE_GROUPS)]
    scores = {}
    for name, method in methods.items():
        if not any(method.unusable_reason(part) for part in parts):
            predictions_NO = cross_predict(limit_members(method.fit, max_members), members, CHOICE_GROUPS)
            scores[name] = members.score(predictions_NO)
    return best_name(scores, members.metric)


def best_name(scores: Mapping[str, float], metric: str) -> str:
    """Return the name of the best score; the first of several equal ones."""
    better = get_metric(metric).better
    names = list(scores)
    best = names[0]
    for name in names[1:]:
        if better(scores[name], scores[best]):
            best = name
    return best


def cross_predict(fit: FitFunction, members: MemberPredictions, groups: int) -> Floats:
    """Return predictions (N, outputs) for every subject by a rule that was fitted on the other groups of subjects."""
    out_NO = np.empty_like(members.encoded_targets)
    for fit_N, test_N in subject_splits(members, groups):
        out_NO[test_N] = members.select_windows(test_N).combine(fit(members.select_windows(fit_N)))
    return out_NO


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


def score_by_ensemble_size(members: MemberPredictions) -> dict[str, list[float]]:
    """Return nested scores of equal weights over 1, 2, ... members, in order of rank and of forward selection.

    In each split the order is found on the other subjects.
    """
    n = len(members.names)
    orders: dict[str, OrderFunction] = {
        "by rank": lambda inside: inside.ranking(),
        "complementing": lambda inside: forward_selection(inside, n),
    }
    out = {}
    for name, find_order in orders.items():
        means_MNO = np.empty((n, *members.encoded_targets.shape))
        for fit_N, test_N in subject_splits(members, OUTER_GROUPS):
            order = find_order(members.select_windows(fit_N))
            sums_MNO = np.cumsum(members.select_windows(test_N).predictions[order], axis=0)
            means_MNO[:, test_N] = sums_MNO / np.arange(1, n + 1)[:, None, None]
        out[name] = [members.score(mean_NO) for mean_NO in means_MNO]
    return out


def error_correlations(members: MemberPredictions) -> Floats:
    """Return the correlations (M, M) of the members' errors over windows and outputs."""
    residuals_MX = (members.predictions - members.encoded_targets).reshape(len(members.names), -1)
    if len(residuals_MX) == 1:
        return np.ones((1, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.nan_to_num(np.corrcoef(residuals_MX), nan=0.0))
