"""The subject-to-fold map of a run, and the check that no subject is on two sides of a split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from raypipe.core.record import Record

HELD_OUT = -1
MAX_NAMED = 5
"""Subjects that a message names."""

Index = NDArray[np.int64]


class LeakError(Exception):
    """A subject is on both sides of a split. No result of that split is reported."""


class PredictedRows(NamedTuple):
    """Out-of-fold predictions of a trial: one per window of a search subject and repeat."""

    windows: Index
    """(N,) numbers of the windows, ascending within each repeat."""
    folds: Index
    """(N,) folds whose networks predict them."""


class FoldMap(Record):
    """The fold of every subject, `HELD_OUT` for those that no trial sees (``folds.json``).

    It is written once when a run is created, read by every trial, and never changed. In a repeat, the same search
    subjects are distributed over other folds. All folds are numbered in one sequence: repeat r has the folds from
    ``r * folds_per_repeat``.
    """

    format: Literal["raypipe-folds/3"] = "raypipe-folds/3"
    seed: int
    n_folds: int
    """Folds of all repeats together. Each has a network of its own."""
    fold_of: dict[str, int]
    """The fold of each subject in the first repeat."""
    repeated: list[dict[str, int]] = Field(default_factory=list)
    """The same of each further repeat."""
    group_of: dict[str, str] = Field(default_factory=dict)
    """The group of each subject that shares one with others (family, site). A group is on one side of every split."""

    @property
    def held_out(self) -> list[str]:
        """Return the subjects that are never used for training or model selection, sorted."""
        return sorted(subject for subject, fold in self.fold_of.items() if fold == HELD_OUT)

    @property
    def repeats(self) -> int:
        """Return how often the search subjects are distributed over folds."""
        return 1 + len(self.repeated)

    @property
    def folds_per_repeat(self) -> int:
        """Return the number of folds of one repeat."""
        return self.n_folds // self.repeats

    def folds(self, subjects_N: Iterable[str], repeat: int = 0) -> Index:
        """Return the fold of each window's subject (N,) in a repeat.

        Raises
        ------
        LeakError
            A subject is missing from the map.
        """
        fold_of = [self.fold_of, *self.repeated][repeat]
        try:
            return np.array([fold_of[str(s)] for s in subjects_N], dtype=np.int64)
        except KeyError as error:
            raise LeakError(f"subject {error} is not in the run's fold map") from None

    def groups(self, subjects_N: Iterable[str]) -> NDArray[np.str_]:
        """Return the group of each window's subject (N,): the subject itself where it has none."""
        return np.array([self._group(str(s)) for s in subjects_N])

    def _group(self, subject: str) -> str:
        return self.group_of.get(subject, f"sub-{subject}")

    def held_out_among(self, seen: Iterable[str]) -> list[str]:
        """Return the held-out subjects that are among `seen`, or of whose group another subject is."""
        groups = {self._group(subject) for subject in seen}
        return [subject for subject in self.held_out if self._group(subject) in groups]

    def split(self, subjects_N: NDArray[Any], fold: int) -> tuple[Index, Index]:
        """Return the indices of the training and validation windows of a fold, after an audit.

        Parameters
        ----------
        subjects_N
            (N,) subject of every window.

        Raises
        ------
        LeakError
            A subject is missing from the map, a subject or a group is on two sides, or a side has no window.
        """
        folds_N = self.folds(subjects_N, fold // self.folds_per_repeat)
        train = np.flatnonzero((folds_N != fold) & (folds_N != HELD_OUT))
        validation = np.flatnonzero(folds_N == fold)
        parts = {"training": train, "validation": validation, "held-out": self.held_out_index(subjects_N)}
        audit(subjects_N, parts)
        if self.group_of:
            audit(self.groups(subjects_N), parts, of="group")
        return train, validation

    def held_out_index(self, subjects_N: NDArray[Any]) -> Index:
        """Return the indices of the windows of held-out subjects."""
        return np.flatnonzero(self.folds(subjects_N) == HELD_OUT)

    def search_index(self, subjects_N: NDArray[Any]) -> Index:
        """Return the indices of the windows of all other subjects, ascending."""
        return np.flatnonzero(self.folds(subjects_N) != HELD_OUT)

    def predicted_rows(self, subjects_N: NDArray[Any]) -> PredictedRows:
        """Return the rows of out-of-fold predictions: those of the first repeat, then of the next."""
        index = self.search_index(subjects_N)
        folds = [self.folds(subjects_N[index], repeat) for repeat in range(self.repeats)]
        return PredictedRows(np.tile(index, self.repeats), np.concatenate(folds))


def audit(subjects_N: NDArray[Any], parts: dict[str, Index], of: str = "subject") -> None:
    """Check that no subject has windows in two parts, and that no part is empty.

    Parameters
    ----------
    subjects_N
        (N,) subject of every window.
    parts
        Indices of windows by the name of the part.
    of
        What `subjects_N` names, for messages.

    Raises
    ------
    LeakError
        Names the subjects and the two parts, or the empty part.
    """
    seen: dict[str, str] = {}
    for part, index in parts.items():
        if len(index) == 0:
            raise LeakError(f"the {part} part has no window")
        both = sorted({str(s) for s in np.unique(subjects_N[index])} & seen.keys())
        if both:
            raise LeakError(f"{len(both)} {of}(s) in both {seen[both[0]]} and {part}: {name_some(both)}")
        seen |= {str(s): part for s in np.unique(subjects_N[index])}


def name_some(subjects: Sequence[str]) -> str:
    """Return the first subjects of a list, for a message."""
    return ", ".join(subjects[:MAX_NAMED]) + (", ..." if len(subjects) > MAX_NAMED else "")
