"""Which held-out targets may be exchanged in a test of chance: those of people, of runs of windows, or of trials."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raypipe.core.levels import ScoredRows, mean_per_row

IN_RUNS = 2 / 3
"""Targets come in runs if there are at most this many times the runs that a random order would have."""


class Exchangeable(NamedTuple):
    """Rows, and which of them are exchanged."""

    rows: ScoredRows
    blocks: list[NDArray[np.int64]]
    """Each (groups, S): places of the rows of groups, which are exchanged whole, and rows within each of them."""
    runs: int | None
    """Number of runs of equal targets that are a row each; None where rows are as they were."""

    @property
    def log_orders(self) -> float:
        """Logarithm of the number of different orders of the targets."""
        target_N = _number_targets(self.rows)
        return sum(_log_orders(target_N[block_GS]) for block_GS in self.blocks)


def between_people(rows: ScoredRows, group_of: Mapping[Any, Any] | None) -> Exchangeable:
    """Return that people are exchanged within folds: whole groups of the same size, and people within each.

    Parameters
    ----------
    rows
        One row per person.
    group_of
        Group of each person; None where each is alone.
    """
    groups_N = [str(subject if group_of is None else group_of[subject]) for subject in rows.subjects.tolist()]
    return Exchangeable(rows, _blocks(rows.folds, np.array(groups_N)), None)


def within_people(rows: ScoredRows, recordings: NDArray[Any] | None) -> Exchangeable:
    """Return that windows, or the runs in which equal targets come, are exchanged within people.

    Recordings of a person with equally many are exchanged whole too. A run of windows with equal targets, in one
    recording, is a row with the mean prediction: its windows share more than the target, such as an offset, and are
    not independent.

    Parameters
    ----------
    rows
        Windows, those of a recording in order of time.
    recordings
        (N,) recording of each window, of which no two people share one; None for one of each person.
    """
    recording_N = np.unique(rows.subjects if recordings is None else recordings, return_inverse=True)[1]
    order_N = np.lexsort((recording_N, rows.subjects))
    rows, recording_N, runs = ScoredRows(*(each[order_N] for each in rows)), recording_N[order_N], None
    if _come_in_runs(rows, recording_N):
        begins_N = np.diff(np.c_[recording_N, _number_targets(rows)], axis=0, prepend=-1).any(axis=1)
        means_RK = mean_per_row(np.cumsum(begins_N) - 1, rows.predictions)
        rows = ScoredRows(*(each[begins_N] for each in rows))._replace(predictions=means_RK)
        recording_N, runs = recording_N[begins_N], len(means_RK)
    return Exchangeable(rows, _blocks(rows.subjects, recording_N), runs)


def _come_in_runs(rows: ScoredRows, recording_N: NDArray[np.int64]) -> bool:
    """Return whether each recording has one target, or equal targets of people mostly follow one another."""
    target_N = _number_targets(rows)
    if len(np.unique(np.c_[recording_N, target_N], axis=0)) == len(np.unique(recording_N)):
        return True
    runs = expected = 0.0
    for subject in np.unique(rows.subjects):
        own_N = target_N[rows.subjects == subject]
        counts = np.unique(own_N, return_counts=True)[1]
        if len(counts) > 1:
            runs += 1 + np.count_nonzero(np.diff(own_N))
            expected += 1 + len(own_N) - (counts**2).sum() / len(own_N)  # of a random order
    return runs <= IN_RUNS * expected


def _number_targets(rows: ScoredRows) -> NDArray[np.int64]:
    """Return a number for each different target (N,); where there are several values, for all of them together."""
    return np.unique(rows.targets, axis=0, return_inverse=True)[1].reshape(-1)


def _blocks(within_N: NDArray[Any], groups_N: NDArray[Any]) -> list[NDArray[np.int64]]:
    """Return which rows are exchanged: for each part of `within_N` and size S of groups, (groups, S)."""
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
