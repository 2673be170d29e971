"""Who may learn from whom: one frozen subject-to-fold map per run, and the audit of its use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raypipe.core.errors import UserError, nearest
from raypipe.core.record import Record

HELD_OUT = -1

Index = NDArray[np.int64]


class LeakError(Exception):
    """A subject stands on both sides of a split. Nothing that was computed from it may be shown."""


class FoldMap(Record):
    """The fold of every subject; `HELD_OUT` for those that no trial sees.

    Written once when a run is made, read by every trial, never changed.
    """

    format: Literal["raypipe-folds/1"] = "raypipe-folds/1"
    seed: int
    n_folds: int
    fold_of: dict[str, int]

    @property
    def held_out(self) -> list[str]:
        """Subjects that no trial, no ensemble weight and no choice has seen."""
        return sorted(subject for subject, fold in self.fold_of.items() if fold == HELD_OUT)

    def folds(self, subjects_N: Iterable[str]) -> Index:
        """Fold number of each window's subject (N,).

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
        """Training and validation window indices of `fold`, audited."""
        folds_N = self.folds(subjects_N)
        train = np.flatnonzero((folds_N != fold) & (folds_N != HELD_OUT))
        validation = np.flatnonzero(folds_N == fold)
        audit(subjects_N, {"training": train, "validation": validation, "held-out": self.held_out_index(subjects_N)})
        return train, validation

    def held_out_index(self, subjects_N: NDArray[Any]) -> Index:
        """Window indices of the held-out subjects."""
        return np.flatnonzero(self.folds(subjects_N) == HELD_OUT)

    def search_index(self, subjects_N: NDArray[Any]) -> Index:
        """Window indices of all subjects that are not held out, in store order: the rows of out-of-fold predictions."""
        return np.flatnonzero(self.folds(subjects_N) != HELD_OUT)


def audit(subjects_N: NDArray[Any], parts: dict[str, Index]) -> None:
    """Check that no subject has windows in two of `parts`, and that none of them is empty.

    Raises
    ------
    LeakError
        Names the subjects and the two parts.
    """
    seen: dict[str, str] = {}
    for part, index in parts.items():
        if len(index) == 0:
            raise LeakError(f"the {part} part has no window")
        both = sorted({str(s) for s in np.unique(subjects_N[index])} & seen.keys())
        if both:
            shown = ", ".join(both[:5]) + (", ..." if len(both) > 5 else "")
            raise LeakError(f"{len(both)} subject(s) in both {seen[both[0]]} and {part}: {shown}")
        seen |= {str(s): part for s in np.unique(subjects_N[index])}


def make_folds(
    subjects_N: NDArray[Any],
    targets_N: NDArray[Any],
    *,
    classes: bool,
    n_folds: int = 5,
    held_out: float | Sequence[str] = 0.2,
    seed: int = 0,
) -> FoldMap:
    """Deal subjects into held-out subjects and `n_folds` folds.

    Parameters
    ----------
    subjects_N, targets_N
        Subject and target of every window.
    classes
        Targets are classes: the deal is stratified by them (scikit-learn's StratifiedGroupKFold, else GroupKFold).
    held_out
        Share of the subjects, or their names.

    Raises
    ------
    UserError
        Too few subjects for the folds asked for, or an unknown held-out subject.
    """
    names = sorted({str(s) for s in subjects_N})
    if len(names) < 2:
        raise UserError(f"the data has one subject only ({names[0] if names else 'none'}); subject folds need three")
    if isinstance(held_out, int | float):
        if not 0 < held_out < 1:
            raise UserError(f"held-out share {held_out}: must lie between 0 and 1, for example 0.2")
        n_out = max(1, round(held_out * len(names)))
    else:
        if not held_out:
            raise UserError("no held-out subject is named; name at least one, or a share such as 0.2")
        unknown = [s for s in held_out if s.removeprefix("sub-") not in names]
        if unknown:
            raise UserError(f"held-out subject '{unknown[0]}' is not in the data; {nearest(unknown[0], names)}")
        n_out = len(held_out)
    if n_folds < 2:
        raise UserError(f"{n_folds} fold(s): cross-validation needs at least 2")
    if n_folds > len(names) - n_out:
        raise UserError(
            f"{n_folds} folds need at least {n_folds} subjects beside the {n_out} held out; the data has {len(names)} "
            f"subjects in all: use at most --folds {max(len(names) - n_out, 0)}"
        )
    fold_of = dict.fromkeys(names, 0)
    if isinstance(held_out, int | float):
        out_splits = max(2, round(len(names) / n_out))
        chosen = set(_deal(subjects_N, targets_N, classes, out_splits, seed)[0])
    else:
        chosen = {s.removeprefix("sub-") for s in held_out}
    fold_of |= dict.fromkeys(chosen, HELD_OUT)
    rest = np.array([fold_of[str(s)] != HELD_OUT for s in subjects_N])
    for fold, group in enumerate(_deal(subjects_N[rest], targets_N[rest], classes, n_folds, seed + 1)):
        fold_of |= dict.fromkeys(group, fold)
    made = FoldMap(seed=seed, n_folds=n_folds, fold_of=fold_of)
    for fold in range(n_folds):
        made.split(subjects_N, fold)
    return made


def _deal(
    subjects_N: NDArray[Any], targets_N: NDArray[Any], classes: bool, n_splits: int, seed: int
) -> list[list[str]]:
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    groups = np.array([str(s) for s in subjects_N])
    fewest = min(np.unique(targets_N, return_counts=True)[1]) if classes else 0
    # Stratified splits of very few windows come out empty or not at all.
    for kind in (StratifiedGroupKFold, GroupKFold) if fewest >= n_splits else (GroupKFold,):
        splits = kind(n_splits, shuffle=True, random_state=seed).split(groups, targets_N, groups)
        dealt = [sorted(set(groups[test].tolist())) for _, test in splits]
        if all(dealt):
            break
    return dealt
