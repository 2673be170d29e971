"""Ensemble methods by name.

A method's ``fit`` takes out-of-fold predictions of some subjects and returns a rule (`raypipe.models.combine`) for the
predictions of any other subjects. Parameters of a method, such as a temperature or a penalty, are cross-validated over
the subjects that it was given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from raypipe.core.metrics import Kind
from raypipe.ensembles.oof import MemberPredictions
from raypipe.ensembles.selection import greedy_selection
from raypipe.ensembles.stacking import boosting, not_boosted, ridge_stacking
from raypipe.ensembles.weights import (
    average_of_best,
    average_of_snapshots,
    best_member,
    equal_weights,
    inverse_error,
    missing_variances,
    power_of_inverse_error,
    softmax_of_errors,
    variance_or_entropy_weights,
)
from raypipe.models.combine import Rule

BOTH: tuple[Kind, ...] = ("classification", "regression")
NO_SNAPSHOTS = "no trial has snapshots; they come with optim/schedule=cyclic"


@dataclass(frozen=True)
class Method:
    """A way to combine members."""

    name: str
    description: str
    """One line, as docs/ensembles.md has it."""
    fit: Callable[[MemberPredictions], Rule]
    unusable_reason: Callable[[MemberPredictions], str | None] = lambda members: None
    """Return why the method cannot be used with these members, or None."""
    in_auto: tuple[Kind, ...] = ()
    """Kinds of target of which ``auto`` considers the method; others are scored by ``--method all`` only."""


def missing_snapshots(members: MemberPredictions) -> str | None:
    """Return why snapshots cannot be averaged, or None."""
    if members.trials is None or len(set(members.trials)) == len(members.trials):
        return NO_SNAPSHOTS
    return None


_ALL = (
    Method("best", "the best single member", best_member, in_auto=BOTH),
    Method("equal", "equal weights over all members", equal_weights, in_auto=BOTH),
    Method("greedy", "greedy selection with replacement, bagged over subjects", greedy_selection, in_auto=BOTH),
    Method("ridge", "non-negative ridge stacking", ridge_stacking, in_auto=BOTH),
    Method(
        "sample",
        "weights per window, by calibrated entropy (classes) or predicted variance (regression)",
        partial(variance_or_entropy_weights, by_member=False),
        missing_variances,
        in_auto=("regression",),
    ),
    Method(
        "snapshots",
        "equal weights over the best trial and its snapshots",
        average_of_snapshots,
        missing_snapshots,
    ),
    Method("average", "equal weights over the best n members, with the best n", average_of_best),
    Method("inverse-mse", "weights by inverse mean squared error (classes: Brier score)", inverse_error),
    Method("confidence", "weights by a fitted power of the inverse mean squared error", power_of_inverse_error),
    Method("softmax", "weights by a softmax of the errors, the temperature cross-validated", softmax_of_errors),
    Method(
        "member-sample",
        "weights per member and window",
        partial(variance_or_entropy_weights, by_member=True),
        missing_variances,
    ),
    Method("boosting", "gradient boosting on predictions and confidence features", boosting, not_boosted),
)
METHODS: dict[str, Method] = {method.name: method for method in _ALL}
"""Methods by name. Those of ``auto`` come first, simpler ones before others: a simpler one is preferred."""


def auto_methods(kind: Kind) -> list[str]:
    """Return the methods that ``auto`` chooses among for a kind of target, simpler ones first."""
    return [name for name, method in METHODS.items() if kind in method.in_auto]
