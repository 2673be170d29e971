"""Fit the methods on out-of-fold predictions, choose one, and find the members that it ships."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raypipe.core.errors import UserError
from raypipe.core.progress import Progress
from raypipe.ensembles.candidates import Candidates
from raypipe.ensembles.inference import used_members
from raypipe.ensembles.members import MergedNetworks
from raypipe.ensembles.methods import METHODS, auto_methods
from raypipe.ensembles.nested_cv import (
    AUTO,
    NestedResult,
    limit_members,
    run_nested_cv,
    simplest_within_error,
)
from raypipe.ensembles.oof import Floats
from raypipe.ensembles.soup import SOUPS, SoupMaker, SoupResult, compatible_members, make_soup
from raypipe.ensembles.verdict import soup_notes
from raypipe.models.combine import Rule
from raypipe.storage.records import Member

ALL = "all"
"""Ship the same method as `AUTO`, and score every method."""


@dataclass(frozen=True)
class FittedMethods:
    """Methods fitted on all search subjects, their nested cross-validation, and the method that is shipped."""

    chosen: str
    chosen_by_score: bool
    """The method was chosen by nested scores, not by the user."""
    among: list[str]
    """Usable methods that it was chosen among; empty if the user chose it."""
    rules: dict[str, Rule]
    nested: NestedResult
    soups: dict[str, SoupResult]
    compatible: list[Member]
    """Members that the soups may average."""
    excluded: dict[str, str]
    """Methods that cannot be used, and why."""

    @property
    def nested_predictions(self) -> Floats:
        """Predictions (N, outputs) of ensembles that were chosen and fitted on other subjects.

        A choice by score is repeated in each split. Of a soup, the trials and their epochs were chosen on all subjects.
        """
        if self.chosen in self.soups:
            return self.soups[self.chosen].by_other_half
        return self.nested.predictions[AUTO if self.chosen_by_score else self.chosen]

    def notes(self, candidates: Candidates) -> list[str]:
        """Write notes on the method that is shipped."""
        soup = self.soups.get(self.chosen)
        if soup is None:
            return []
        return soup_notes(self.chosen, soup.networks.members, candidates.members, self.compatible)


def fit_methods(candidates: Candidates, method: str, progress: Progress | None) -> FittedMethods:
    """Fit the methods that the table needs, and choose the one that is shipped.

    Raises
    ------
    UserError
        The requested method cannot be used.
    """
    by_score = method in (AUTO, ALL)
    among = auto_methods(candidates.run.info.kind) if by_score else []
    wanted = [name for name in METHODS if method == ALL or name in ("best", "equal", method, *among)]
    nested = run_nested_cv(candidates.pool, wanted, max_members=candidates.max_members, auto=among)
    if not by_score and method in nested.excluded:
        raise UserError(f"--method {method}: {nested.excluded[method]}; use --method auto")
    usable = [name for name in wanted if name not in nested.excluded]
    rules = {name: _fit_rule(candidates, name) for name in usable}
    chosen = method
    if by_score:
        scored = {name: nested.predictions[name] for name in among if name in usable}
        chosen = simplest_within_error(scored, candidates.predictions)
    soups, compatible, excluded = make_soups(candidates, method, progress)
    among = [name for name in among if name in usable]
    return FittedMethods(chosen, by_score, among, rules, nested, soups, compatible, nested.excluded | excluded)


def _fit_rule(candidates: Candidates, name: str) -> Rule:
    """Fit a method on all search subjects."""
    fit = METHODS[name].fit
    return (fit if name == "best" else limit_members(fit, candidates.max_members))(candidates.predictions)


def make_soups(
    candidates: Candidates, method: str, progress: Progress | None
) -> tuple[dict[str, SoupResult], list[Member], dict[str, str]]:
    """Make the soups that a method needs.

    Returns
    -------
    soups
        By name.
    compatible
        Members that they may average.
    excluded
        Soups that cannot be made, and why.
    """
    wanted = [method] if method in SOUPS else list(SOUPS) if method == ALL else []
    soups: dict[str, SoupResult] = {}
    excluded: dict[str, str] = {}
    if not wanted:
        return soups, [], excluded
    run, members = candidates.run, candidates.members
    try:
        compatible = compatible_members(run, members)
    except UserError as error:
        if method != ALL:
            raise
        return soups, [], dict.fromkeys(wanted, str(error).removeprefix("--method soup: "))
    predictions = candidates.predictions.select_members([members.index(member) for member in compatible])
    maker = SoupMaker(run, candidates.windows, predictions, compatible, progress, device=candidates.device)
    for name in wanted:
        try:
            soups[name] = make_soup(maker, name)
        except UserError as error:
            if method != ALL:
                raise
            excluded[name] = str(error).removeprefix(f"--method {name}: ")
    return soups, compatible, excluded


# What is shipped


@dataclass(frozen=True)
class ShippedMembers:
    """The members that are shipped, and how they are combined."""

    indices: list[int]
    """Their indices among the candidates."""
    members: list[Member]
    weights: Floats
    """(M,)."""
    rule: Rule | None
    merged: MergedNetworks | None
    """A soup, or a distilled network, that is shipped in their place."""

    @property
    def alone(self) -> str | None:
        """Name of the member if only one is shipped, else None."""
        return str(self.members[0]) if len(self.members) == 1 and self.merged is None else None


def shipped_members(candidates: Candidates, fits: FittedMethods, student: MergedNetworks | None) -> ShippedMembers:
    """Return the members that the chosen method uses."""
    members, soup = candidates.members, fits.soups.get(fits.chosen)
    if soup is not None:
        indices = [members.index(member) for member in soup.networks.members]
        weights, rule = np.full(len(indices), 1.0 / len(indices)), None
    else:
        indices, weights, rule = used_members(fits.rules[fits.chosen], len(members))
    merged = student or (soup.networks if soup is not None else None)
    rule = None if merged is not None else rule  # a rule combines members; merged networks are one per fold, or one
    return ShippedMembers(indices, [members[index] for index in indices], weights, rule, merged)
