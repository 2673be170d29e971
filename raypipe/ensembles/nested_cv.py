"""Nested cross-validation over subjects: what a method is worth on subjects that it was not fitted on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from raypipe.core.metrics import get_metric, score
from raypipe.ensembles.methods import METHODS, Method, forward, linear, ranking, splits
from raypipe.ensembles.oof import Floats, Members
from raypipe.models.combine import Rule

OUTER, CHOICE = 6, 4
"""Groups of subjects that methods are judged over, and that the choice among them is made over inside of each."""

AUTO = "auto"

FitFunction = Callable[[Members], Rule]


@dataclass(frozen=True)
class NestedScores:
    """What nested cross-validation gave."""

    predictions: dict[str, Floats]
    """By method, (N, outputs) answers to subjects that it was not fitted on."""
    scores: dict[str, float]
    """By method, the task's metric of those."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Methods that cannot be used, and why."""

    def winner(self, metric: str, names: list[str]) -> str:
        """Which of these methods has the best nested score, the simplest of equals."""
        return best_of({name: self.scores[name] for name in names}, metric)


def best_of(scores: Mapping[str, float], metric: str) -> str:
    """Name of the best score; the first of equals."""
    better = get_metric(metric).better
    names = list(scores)
    chosen = names[0]
    for name in names[1:]:
        if better(scores[name], scores[chosen]):
            chosen = name
    return chosen


def limited(fit: FitFunction, most: int | None) -> FitFunction:
    """`fit` over at most so many members: those that complement each other best, chosen on the same subjects."""

    def fit_some(members: Members) -> Rule:
        if most is None or most >= len(members.names):
            return fit(members)
        places = sorted(forward(members, most))
        return spread(fit(members.only(places)), places, len(members.names))

    return fit_some


def spread(rule: Rule, places: list[int], n: int) -> Rule:
    """A rule for some members as a rule for all `n`: ``only`` tells whose answers it takes."""
    if rule["kind"] == "linear":
        weights = np.zeros(n)
        weights[places] = rule["weights"]
        return linear(weights, rule["intercept"])
    return {**rule, "only": places}


def cross_predict(fit: FitFunction, members: Members, n: int = OUTER) -> Floats:
    """Answers (N, outputs) to every subject by a rule that was fitted on others."""
    out_NO = np.empty_like(members.goals)
    for fit_N, judge_N in splits(members, n):
        out_NO[judge_N] = applied(fit(members.rows(fit_N)), members.rows(judge_N))
    return out_NO


def applied(rule: Rule, members: Members) -> Floats:
    """What a rule makes of members, of whom it may take some only."""
    return members.combined(rule) if "only" not in rule else members.only(rule["only"]).combined(rule)


def usable(members: Members, methods: Mapping[str, Method]) -> tuple[dict[str, Method], dict[str, str]]:
    """Methods that can be used with these members, and why the others cannot."""
    refused = {name: reason for name, method in methods.items() if (reason := _refusal(method, members))}
    return {name: method for name, method in methods.items() if name not in refused}, refused


def _refusal(method: Method, members: Members) -> str | None:
    inside = [members.rows(fit_N) for fit_N, _ in splits(members, OUTER)]
    return next((reason for part in [members, *inside] if (reason := method.refusal(part))), None)


def choose(members: Members, methods: Mapping[str, Method], most: int | None, n: int = CHOICE) -> str:
    """Name of the method with the best cross-validated score on these members' subjects."""
    scores = {
        name: score(members.metric, members.targets, cross_predict(limited(method.fit, most), members, n))
        for name, method in methods.items()
        if not any(method.refusal(members.rows(fit_N)) for fit_N, _ in splits(members, n))
    }
    return best_of(scores, members.metric)


def nested_scores(
    members: Members, names: list[str] | None = None, *, most: int | None = None, auto: bool = True
) -> NestedScores:
    """Judge methods on subjects that they were not fitted on.

    Parameters
    ----------
    members
        All members' out-of-fold answers.
    names
        Methods; None for all.
    most
        Members that a method may use.
    auto
        Judge the choice among the methods as well (under the name ``auto``): in each part it is made anew, by
        cross-validation within the other subjects. A winner's own nested score is the best of several, and so
        optimistic; this one is not.
    """
    wanted = {name: METHODS[name] for name in names or METHODS}
    methods, left_out = usable(members, wanted)
    predictions = {name: cross_predict(limited(method.fit, most), members) for name, method in methods.items()}
    if auto and len(methods) > 1:

        def fit_auto(inside: Members) -> Rule:
            return limited(methods[choose(inside, methods, most)].fit, most)(inside)

        predictions[AUTO] = cross_predict(fit_auto, members)
    elif auto:
        predictions[AUTO] = next(iter(predictions.values()))
    scores = {name: score(members.metric, members.targets, each) for name, each in predictions.items()}
    return NestedScores(predictions, scores, left_out)


def curve(members: Members) -> dict[str, list[float]]:
    """Nested score against the number of members, weighted alike: by rank, and by who complements whom.

    In each part, the order is found on the other subjects.
    """
    n = len(members.names)
    out = {"by rank": np.empty((n, *members.goals.shape)), "complementing": np.empty((n, *members.goals.shape))}
    for fit_N, judge_N in splits(members, OUTER):
        inside, outside = members.rows(fit_N), members.rows(judge_N)
        for name, order in (("by rank", ranking(inside)), ("complementing", forward(inside, n))):
            means = np.cumsum(outside.answers[order], axis=0) / np.arange(1, n + 1)[:, None, None]
            out[name][:, judge_N] = means
    return {
        name: [float(score(members.metric, members.targets, each)) for each in means] for name, means in out.items()
    }


def correlations(members: Members) -> Floats:
    """Correlations (M, M) of the members' errors over windows (and classes)."""
    wrong_MX = (members.answers - members.goals).reshape(len(members.names), -1)
    if len(wrong_MX) == 1:
        return np.ones((1, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.nan_to_num(np.corrcoef(wrong_MX), nan=0.0))
