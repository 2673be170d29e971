"""Permutation test of an ensemble on held-out subjects.

Its p counts the observed order too (Phipson & Smyth 2010, doi:10.2202/1544-6115.1585).

Held-out targets are shuffled, and the predictions are kept. Trials, epochs, members and weights were chosen without
these people. If EEG says nothing about the target, every order of their targets is equally likely, whatever was chosen.
So no network is trained again, and the test is exact for the whole search. Where people share groups (families), their
targets are not independent: whole groups of the same size are exchanged, and people within each (Winkler et al. 2015,
doi:10.1016/j.neuroimage.2015.05.092). The test is not exact for an outer cross-validation,
whose parts were trained on one another's people: such a test finds something in up to 9 % where 5 % are meant
(benchmarks/chance.py), so there is none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypipe.core.errors import UserError
from raypipe.core.levels import Level, ScoredRows, rows_at_level, within_folds
from raypipe.core.metrics import get_metric
from raypipe.ensembles.decisions import decide
from raypipe.ensembles.fitted import Ensemble
from raypipe.ensembles.labels import metric_label
from raypipe.storage.run_store import RunStore

MIN_ORDERS = 20
"""Fewer orders of the targets cannot give a p of 0.05."""


@dataclass(frozen=True)
class ChanceTest:
    """Result of a permutation test."""

    metric: str
    level: Level
    """``person``: targets are exchanged between people; ``window``: between the windows of each person."""
    people: int
    groups: int
    """Groups of these people; as many as people where they share none."""
    score: float
    null: NDArray[np.float64]
    """(permutations,) scores under shuffled targets."""

    @property
    def p(self) -> float:
        """Share of the orders with a score at least as good, or with none, the observed one included."""
        sign = get_metric(self.metric).sign
        as_good = ~np.isfinite(self.null) | (sign * self.null <= sign * self.score + 1e-12)
        return float((1 + as_good.sum()) / (1 + len(self.null)))

    @property
    def error(self) -> float:
        """Monte-Carlo standard error of `p`."""
        return math.sqrt(self.p * (1.0 - self.p) / len(self.null))

    def render(self) -> str:
        """Return the result in two sentences."""
        shuffled = "between the people" if self.level == "person" else "within each person"
        if self.level == "person" and self.groups < self.people:
            shuffled = (
                f"between those of their {self.groups} groups that have equally many people, and within each group,"
            )
        low, high = np.quantile(self.null, [0.025, 0.975])
        return (
            f"{metric_label(self.metric)} {self.score:.3f} on {self.people} held-out people; with targets shuffled "
            f"{shuffled} it is {low:.3f} to {high:.3f} (95 % of {len(self.null)} permutations): p = {self.p:.4g} "
            f"(Monte-Carlo error {self.error:.2g}). The test is exact for the whole search, which has not seen these "
            "people."
        )


def chance_test(run: RunStore, *, permutations: int = 1000, seed: int = 0) -> ChanceTest:
    """Test whether the ensemble of a run predicts better than chance on the held-out subjects.

    Parameters
    ----------
    run
        A run with an ensemble.
    permutations
        Number of orders of the targets.
    seed
        Seed of the orders.

    Raises
    ------
    UserError
        There is no ensemble, the score is undefined, the seed is negative, or the targets have too few different
        orders.
    """
    if permutations < 1:
        raise UserError(f"--permutations {permutations}: at least 1 is needed; 1000 are usual")
    if seed < 0:
        raise UserError(f"--seed {seed}: must be 0 or more")
    ensemble, level = Ensemble.load(run), run.info.level
    held = ensemble.held_out
    parts_N = np.zeros(len(held.targets), dtype=np.int64)
    rows = rows_at_level(level, held.targets, held.subjects, parts_N, held.predictions)
    if get_metric(run.info.metric).reads == "classes":
        rows = rows._replace(predictions=decide(rows.predictions, np.array(ensemble.decision_weights)))
    group_of = dict(zip(held.subjects.tolist(), held.groups.tolist(), strict=True))
    return permute(run.info.metric, level, rows, permutations, seed, group_of)


def permute(
    metric: str,
    level: Level,
    rows: ScoredRows,
    permutations: int,
    seed: int,
    group_of: Mapping[Any, Any] | None = None,
) -> ChanceTest:
    """Score predictions under shuffled targets.

    Parameters
    ----------
    metric
        Name in `metrics.METRICS`.
    level
        See `ChanceTest.level`.
    rows
        Predictions at this level. Targets are exchanged within the folds of `rows` only.
    permutations, seed
        See `chance_test`.
    group_of
        Group of each person; None where each is alone.

    Raises
    ------
    UserError
        The score is undefined, or the targets have fewer than `MIN_ORDERS` different orders.
    """
    single = len(np.unique(rows.subjects)) == len(rows.subjects)  # one row per person: people are exchanged
    people = len(np.unique(rows.subjects))
    groups_N = np.array([str(subject if group_of is None else group_of[subject]) for subject in rows.subjects.tolist()])
    blocks = _exchangeable(rows.folds, groups_N) if single else _exchangeable(rows.subjects, np.arange(len(groups_N)))
    target_N = np.unique(rows.targets, axis=0, return_inverse=True)[1].reshape(-1)  # of several values, all of them
    orders = sum(_log_orders(target_N[block_GS]) for block_GS in blocks)
    if orders < math.log(MIN_ORDERS):
        raise UserError(
            f"the targets of these {people} people have {round(math.exp(orders))} different orders, and a test of "
            f"chance needs {MIN_ORDERS}; hold out more people"
        )
    found, rng = within_folds(metric, rows.folds), np.random.default_rng(seed)
    observed = found.value(rows.targets, rows.predictions)
    if not math.isfinite(observed):
        raise UserError(
            f"the {metric_label(metric)} of these {people} people is undefined: a class is missing among them, or a "
            "value is the same for all; hold out more people"
        )
    null, source_N = np.empty(permutations), np.arange(len(rows.targets))
    for number in range(permutations):
        for block_GS in blocks:
            source_N[block_GS] = rng.permuted(rng.permutation(block_GS), axis=1)
        null[number] = found.value(rows.targets[source_N], rows.predictions)
    return ChanceTest(
        metric=metric,
        level="person" if single else level,
        people=people,
        groups=len(np.unique(groups_N)),
        score=observed,
        null=null,
    )


def _exchangeable(within_N: NDArray[Any], groups_N: NDArray[Any]) -> list[NDArray[np.int64]]:
    """Return the rows whose targets are exchanged: for each part of `within_N` and size S of groups, (groups, S)."""
    blocks = []
    for part in np.unique(within_N):
        index = np.flatnonzero(within_N == part)
        index = index[np.argsort(groups_N[index], kind="stable")]
        sizes = np.unique(groups_N[index], return_counts=True)[1]
        size_N = np.repeat(sizes, sizes)
        blocks += [index[size_N == size].reshape(-1, size) for size in np.unique(sizes)]
    return blocks


def _log_orders(targets_GS: NDArray[np.int64]) -> float:
    """Return the logarithm of the number of orders of numbered targets, of groups and within groups."""
    groups = np.unique(np.sort(targets_GS, axis=1), axis=0, return_counts=True)[1]
    return _log_multinomial(groups) + sum(
        _log_multinomial(np.unique(each_S, return_counts=True)[1]) for each_S in targets_GS
    )


def _log_multinomial(counts: NDArray[np.int64]) -> float:
    """Return the logarithm of the number of different orders of things of which some are equal."""
    return math.lgamma(counts.sum() + 1) - sum(math.lgamma(count + 1) for count in counts)
