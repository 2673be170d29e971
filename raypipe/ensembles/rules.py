"""Schemas of the rules that combine members (`raypipe.models.combine`), for files that come from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from raypipe.core.record import FrozenModel, describe_problem, first_problem

MAX_MEMBERS = 10_000
"""Members that a rule combines at most."""
MAX_VALUES = 1000
"""Values that a target has at most."""
MAX_NODES = 4_000_000
"""Nodes of all trees at most, each tree padded to the size of the largest."""
_MAX_VALUE = 1e30
"""Larger numbers overflow when predictions are computed."""

Finite = Annotated[float, Field(ge=-_MAX_VALUE, le=_MAX_VALUE)]
NotNegative = Annotated[float, Field(ge=0.0, le=_MAX_VALUE)]
ByMember = Field(min_length=1, max_length=MAX_MEMBERS)


class LinearRule(FrozenModel):
    """Fixed weights."""

    kind: Literal["linear"]
    weights: Annotated[list[NotNegative], ByMember]
    intercept: Finite | Annotated[list[Finite], Field(min_length=2, max_length=MAX_VALUES)]
    """Of one value, or of each of several."""


class PrecisionRule(FrozenModel):
    """Weights of a window are the inverse of a calibrated variance."""

    kind: Literal["precision"]
    scale: Annotated[list[NotNegative], ByMember]
    floor: Annotated[list[Annotated[float, Field(gt=0.0, le=_MAX_VALUE)]], ByMember]

    @model_validator(mode="after")
    def _lengths_are_equal(self) -> Self:
        if len(self.scale) != len(self.floor):
            raise ValueError(f"{len(self.scale)} scales and {len(self.floor)} floors; one of each per member is needed")
        return self


class EntropyRule(FrozenModel):
    """Weights of a window decrease with the entropy of each member's probabilities."""

    kind: Literal["entropy"]
    weights: Annotated[list[Annotated[float, Field(ge=0.0, le=1.0)]], ByMember]
    temperatures: Annotated[list[Annotated[float, Field(ge=1e-3, le=1e3)]], ByMember]
    gamma: Annotated[float, Field(ge=0.0, le=100.0)]

    @model_validator(mode="after")
    def _weights_fit(self) -> Self:
        if len(self.weights) != len(self.temperatures):
            raise ValueError(f"{len(self.weights)} weights and {len(self.temperatures)} temperatures")
        _require_sum_of_one(self.weights)
        return self


class Tree(FrozenModel):
    """A tree, as lists over its nodes; see `raypipe.models.combine.boosted_trees`."""

    feature: Annotated[list[Annotated[int, Field(ge=-1)]], Field(min_length=1)]
    threshold: list[float]
    left: list[int]
    right: list[int]
    value: list[Finite]
    depth: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _nodes_fit(self) -> Self:
        n = len(self.feature)
        if any(len(nodes) != n for nodes in (self.threshold, self.left, self.right, self.value)):
            raise ValueError("its lists have different lengths")
        if any(not 0 <= child < n for child in (*self.left, *self.right)):
            raise ValueError(f"a child is none of its {n} nodes")
        if self.depth > n:
            raise ValueError(f"depth {self.depth} of {n} nodes")
        return self


class TreesRule(FrozenModel):
    """Boosted trees."""

    kind: Literal["trees"]
    start: Annotated[list[Finite], Field(min_length=1)]
    trees: Annotated[list[list[Tree]], Field(min_length=1)]

    @model_validator(mode="after")
    def _outputs_fit(self) -> Self:
        if any(len(trees) != len(self.start) for trees in self.trees):
            raise ValueError(f"a round has other than {len(self.start)} trees, one for each start")
        padded = len(self.trees) * len(self.start) * max(len(tree.feature) for trees in self.trees for tree in trees)
        if padded > MAX_NODES:
            raise ValueError(f"{padded:,} nodes; at most {MAX_NODES:,} are read")
        return self


Rule = LinearRule | PrecisionRule | EntropyRule | TreesRule


DecisionWeights = Annotated[list[Annotated[float, Field(gt=0.0, le=1.0)]], Field(min_length=2)]
"""Weights of classes (`raypipe.ensembles.decisions`)."""


class CalibrationMap(FrozenModel):
    """A map of class probabilities (`raypipe.models.combine.calibrate`)."""

    scale: Annotated[float, Field(gt=0.0, le=100.0)]
    shift: Annotated[list[Annotated[float, Field(ge=-100.0, le=100.0)]], Field(min_length=2)]


class CalibrationRecord(CalibrationMap):
    """A map of class probabilities, and the weights of classes that decide between them."""

    decision_weights: DecisionWeights


_ADAPTER: TypeAdapter[Rule] = TypeAdapter(Annotated[Rule, Field(discriminator="kind")])


def check_rule(
    rule: Mapping[str, Any], *, n_members: int, n_outputs: int, n_variances: int, classification: bool
) -> None:
    """Check that a rule has the right fields, and that it fits the members that it combines.

    Parameters
    ----------
    rule
        The rule.
    n_members
        Number of trials and snapshots.
    n_outputs
        1 for regression, or its number of values; else the number of classes.
    n_variances
        Number of members that predict a variance.
    classification
        The members predict probabilities.

    Raises
    ------
    ValueError
        Says in one line what is wrong.
    """
    checked = check_rule_fields(rule, n_members)
    if isinstance(checked, TreesRule):
        if n_outputs > 1 and not classification:
            raise ValueError(f"rule: 'trees' is for one value or classes, and there are {n_outputs} values")
        _check_trees(checked, n_members, n_outputs, n_variances)
    if isinstance(checked, LinearRule) and isinstance(checked.intercept, list) and len(checked.intercept) != n_outputs:
        raise ValueError(f"rule: {len(checked.intercept)} intercepts for {n_outputs} outputs")
    if isinstance(checked, PrecisionRule if classification else EntropyRule):
        raise ValueError(f"rule: '{checked.kind}' is for {'regression' if classification else 'classes'}")
    if isinstance(checked, LinearRule) and classification:
        _require_sum_of_one(checked.weights, "rule: ")
        if checked.intercept:
            raise ValueError("rule: intercept: classes have none")


def check_rule_fields(rule: Mapping[str, Any], n_members: int) -> Rule:
    """Check that a rule has the right fields and combines this many members.

    Raises
    ------
    ValueError
        Says in one line what is wrong.
    """
    try:
        checked = _ADAPTER.validate_python(dict(rule))
    except ValidationError as error:
        raise ValueError(f"rule: {describe_problem(first_problem(error))}") from None
    if isinstance(checked, TreesRule):
        return checked
    given = len(checked.floor if isinstance(checked, PrecisionRule) else checked.weights)
    if given != n_members:
        raise ValueError(f"rule: it combines {given} members, and there are {n_members}")
    return checked


def _check_trees(rule: TreesRule, n_members: int, n_outputs: int, n_variances: int) -> None:
    """Check the numbers of outputs and of features; see `raypipe.models.combine.tree_features`."""
    n_values = max(1, n_outputs - 1)
    others = n_members if n_outputs > 1 or n_variances else 0
    n_features = n_members * n_values + 2 * n_values + others
    used = max(max(tree.feature) for trees in rule.trees for tree in trees)
    if used >= n_features:
        raise ValueError(f"rule: a tree asks for feature {used}, and {n_members} members have {n_features}")
    wanted = n_outputs if n_outputs > 2 else 1
    if len(rule.start) != wanted:
        raise ValueError(f"rule: {len(rule.start)} trees a round; {n_outputs} outputs need {wanted}")


def require_shares(weights: list[float], what: str) -> None:
    """Check that weights sum to one.

    Raises
    ------
    ValueError
        They do not.
    """
    _require_sum_of_one(weights, f"{what}: ")


def _require_sum_of_one(weights: list[float], prefix: str = "") -> None:
    if abs(sum(weights) - 1.0) > 1e-3:
        raise ValueError(f"{prefix}the weights sum to {sum(weights):.4g}; they must sum to one")
