"""The subject-to-fold map of a run, and the check that no subject is on two sides of a split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raypipe.core.errors import UserError, nearest
from raypipe.core.record import Record

HELD_OUT = -1
MAX_NAMED = 5
"""Subjects that a message names."""

Index = NDArray[np.int64]


class LeakError(Exception):
    """A subject is on both sides of a split. No result of that split is reported."""


class FoldMap(Record):
    """The fold of every subject, `HELD_OUT` for those that no trial sees (``folds.json``).

    It is written once when a run is created, read by every trial, and never changed.
    """

    format: Literal["raypipe-folds/1"] = "raypipe-folds/1"
    seed: int
    n_folds: int
    fold_of: dict[str, int]

    @property
    def held_out(self) -> list[str]:
        """Return the subjects that no trial, ensemble weight or choice has seen, sorted."""
        return sorted(subject for subject, fold in self.fold_of.items() if fold == HELD_OUT)

    def folds(self, subjects_N: Iterable[str]) -> Index:
        """Return the fold of each window's subject (N,).

        Raises
        ------
        LeakError
            A subject is missing from the map.
        """
        try:
            return np.array([self.fold_of[str(s)] for s in subjects_N], dtype=np.int64)
        except KeyError as error:
            raise LeakError(f"subject {error} is not in the run's fold map") from None

    def split(self, subjects_N: NDArray[Any], fold: int) -> tuple[Index, Index]:
        """Return the indices of the training and validation windows of a fold, after an audit.

        Parameters
        ----------
        subjects_N
            (N,) subject of every window.

        Raises
        ------
        LeakError
            A subject is missing from the map or on two sides, or a side has no window.
        """
        folds_N = self.folds(subjects_N)
        train = np.flatnonzero((folds_N != fold) & (folds_N != HELD_OUT))
        validation = np.flatnonzero(folds_N == fold)
        audit(subjects_N, {"training": train, "validation": validation, "held-out": self.held_out_index(subjects_N)})
        return train, validation

    def held_out_index(self, subjects_N: NDArray[Any]) -> Index:
        """Return the indices of the windows of held-out subjects."""
        return np.flatnonzero(self.folds(subjects_N) == HELD_OUT)

    def search_index(self, subjects_N: NDArray[Any]) -> Index:
        """Return the indices of the windows of all other subjects, ascending: the rows of out-of-fold predictions."""
        return np.flatnonzero(self.folds(subjects_N) != HELD_OUT)


def audit(subjects_N: NDArray[Any], parts: dict[str, Index]) -> None:
    """Check that no subject has windows in two parts, and that no part is empty.

    Parameters
    ----------
    subjects_N
        (N,) subject of every window.
    parts
        Indices of windows by the name of the part.

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
            raise LeakError(f"{len(both)} subject(s) in both {seen[both[0]]} and {part}: {name_some(both)}")
        seen |= {str(s): part for s in np.unique(subjects_N[index])}


def name_some(subjects: Sequence[str]) -> str:
    """Return the first subjects of a list, for a message."""
    return ", ".join(subjects[:MAX_NAMED]) + (", ..." if len(subjects) > MAX_NAMED else "")


def make_folds(
    subjects_N: NDArray[Any],
    targets_N: NDArray[Any],
    *,
    classes: bool,
    n_folds: int = 5,
    held_out: float | Sequence[str] = 0.2,
    seed: int = 0,
) -> FoldMap:
    """Distribute subjects over held-out subjects and `n_folds` folds.

    Parameters
    ----------
    subjects_N, targets_N
        (N,) subject and target of every window.
    classes
        Targets are classes. Folds are then stratified by them (scikit-learn's StratifiedGroupKFold) if there are enough
        windows of each class; else GroupKFold is used.
    held_out
        Share of the subjects, or their names. A share is rounded to 1/k, where k is 2 or more: subjects are split into
        k parts of about equally many windows, and one part is held out.

    Raises
    ------
    UserError
        There are too few subjects for the folds, or a held-out subject is unknown.
    """
    names = sorted({str(s) for s in subjects_N})
    if len(names) < 2:
        raise UserError(f"the data has one subject only ({names[0] if names else 'none'}); subject folds need three")
    n_held_out = _count_held_out(held_out, names)
    if isinstance(held_out, int | float):
        n_parts = max(2, round(len(names) / n_held_out))
        chosen = set(_split_subjects(subjects_N, targets_N, classes, n_parts, seed)[0])
    else:
        chosen = {_without_prefix(s) for s in held_out}
    # The split into equal parts may hold out a subject more than the share says.
    _check_fold_count(n_folds, len(names), max(n_held_out, len(chosen)))
    fold_of = dict.fromkeys(names, 0) | dict.fromkeys(chosen, HELD_OUT)
    rest = np.array([fold_of[str(s)] != HELD_OUT for s in subjects_N])
    for fold, group in enumerate(_split_subjects(subjects_N[rest], targets_N[rest], classes, n_folds, seed + 1)):
        fold_of |= dict.fromkeys(group, fold)
    folds = FoldMap(seed=seed, n_folds=n_folds, fold_of=fold_of)
    for fold in range(n_folds):
        folds.split(subjects_N, fold)
    return folds


def _without_prefix(subject: str) -> str:
    return subject.removeprefix("sub-")


def _count_held_out(held_out: float | Sequence[str], names: list[str]) -> int:
    """Return how many subjects are held out, after a check of the share or of the names."""
    if isinstance(held_out, int | float):
        if not 0 < held_out < 1:
            raise UserError(f"held-out share {held_out}: must be between 0 and 1, for example 0.2")
        return max(1, round(held_out * len(names)))
    if not held_out:
        raise UserError("no held-out subject is named; name at least one, or a share such as 0.2")
    for subject in held_out:
        if _without_prefix(subject) not in names:
            raise UserError(f"held-out subject '{subject}' is not in the data; {nearest(subject, names)}")
    return len(held_out)


def _check_fold_count(n_folds: int, n_subjects: int, n_held_out: int) -> None:
    if n_folds < 2:
        raise UserError(f"{n_folds} fold(s): cross-validation needs at least 2")
    n_left = n_subjects - n_held_out
    if n_folds > n_left:
        advice = f"use at most --folds {n_left}" if n_left >= 2 else "hold out fewer"
        raise UserError(
            f"{n_folds} folds need at least {n_folds} subjects beside the {n_held_out} held out; the data has "
            f"{n_subjects} subjects in all: {advice}"
        )


def _split_subjects(
    subjects_N: NDArray[Any], targets_N: NDArray[Any], classes: bool, n_parts: int, seed: int
) -> list[list[str]]:
    """Split subjects into parts of about equally many windows, stratified by class where that is possible."""
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    groups = np.array([str(s) for s in subjects_N])
    n_rarest_class = min(np.unique(targets_N, return_counts=True)[1]) if classes else 0
    # A stratified split of very few windows may have an empty part, or raise an error.
    for splitter in (StratifiedGroupKFold, GroupKFold) if n_rarest_class >= n_parts else (GroupKFold,):
        splits = splitter(n_parts, shuffle=True, random_state=seed).split(groups, targets_N, groups)
        parts = [sorted(set(groups[test].tolist())) for _, test in splits]
        if all(parts):
            break
    return parts
