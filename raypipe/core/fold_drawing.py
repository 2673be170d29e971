"""Draw fold maps: subjects, or whole groups of them, are distributed over held-out subjects and folds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypipe.core.errors import UserError, nearest
from raypipe.core.folds import HELD_OUT, FoldMap, name_some
from raypipe.core.outputs import one_value
from raypipe.core.seeds import derive_seed

MAX_DRAWS = 20
"""Fold maps that are drawn for a repeat until one differs from those of the other repeats."""


def make_folds(
    subjects_N: NDArray[Any],
    targets_N: NDArray[Any],
    *,
    classes: bool,
    n_folds: int = 5,
    repeats: int = 1,
    held_out: float | Sequence[str] = 0.2,
    seed: int = 0,
    group_of: Mapping[str, str] | None = None,
) -> FoldMap:
    """Distribute subjects over held-out subjects and `n_folds` folds, the latter `repeats` times from other seeds.

    Parameters
    ----------
    subjects_N, targets_N
        (N,) subject and target of every window.
    classes
        Targets are classes. Folds are then stratified by them (scikit-learn's StratifiedGroupKFold) if there are enough
        windows of each class; else GroupKFold is used. Folds of values are stratified by the subjects' mean target.
    held_out
        Share of the subjects, or their names. A share is rounded to 1/k, where k is 2 or more: subjects are split into
        k parts of about equally many windows, and one part is held out.
    group_of
        Group of each subject that shares one with others. A group is never split.

    Raises
    ------
    UserError
        There are too few subjects or groups for the folds or repeats, a held-out subject is unknown, or only a part of
        a group is named to be held out.
    """
    names = sorted({str(s) for s in subjects_N})
    if len(names) < 2:
        raise UserError(f"the data has one subject only ({names[0] if names else 'none'}); subject folds need three")
    folds = FoldMap(seed=seed, n_folds=n_folds, fold_of={}, group_of=_shared_groups(group_of or {}, names))
    units_N = folds.groups(subjects_N)
    n_held_out = _count_held_out(held_out, names)
    if isinstance(held_out, int | float):
        n_parts = min(max(2, round(len(names) / n_held_out)), len(set(units_N.tolist())))
        part = split_units(units_N, targets_N, classes, n_parts, seed)[0] if n_parts > 1 else []
        chosen = {str(s) for s, unit in zip(subjects_N, units_N, strict=True) if unit in set(part)}
    else:
        chosen = {_without_prefix(s) for s in held_out}
        _check_whole_groups(folds, names, chosen)
    # The split into equal parts may hold out a subject more than the share says.
    _check_fold_count(n_folds, len(names), max(n_held_out, len(chosen)))
    rest = np.array([str(s) not in chosen for s in subjects_N])
    _check_group_count(n_folds, len(set(units_N[rest].tolist())), bool(folds.group_of))
    maps: list[dict[str, int]] = []
    for repeat, parts in enumerate(_repeated_parts(units_N[rest], targets_N[rest], classes, n_folds, repeats, seed)):
        fold_of_unit = {unit: repeat * n_folds + fold for fold, units in enumerate(parts) for unit in units}
        maps.append({s: HELD_OUT if s in chosen else fold_of_unit[str(folds.groups([s])[0])] for s in names})
    folds = folds.model_copy(update={"fold_of": maps[0], "repeated": maps[1:], "n_folds": repeats * n_folds})
    for fold in range(folds.n_folds):
        folds.split(subjects_N, fold)
    return folds


def _repeated_parts(
    units_N: NDArray[Any], targets_N: NDArray[Any], classes: bool, n_folds: int, repeats: int, seed: int
) -> list[list[list[str]]]:
    """Return the units of each fold, for each repeat; no two repeats have the same folds."""
    found: list[list[list[str]]] = []
    for draw in range(repeats * MAX_DRAWS):
        # The first repeat has the seed that follows that of the held-out subjects.
        drawn_seed = seed + 1 if draw == 0 else derive_seed("folds", seed, draw) % 2**32
        parts = split_units(units_N, targets_N, classes, n_folds, drawn_seed)
        if sorted(parts) not in map(sorted, found):
            found.append(parts)
        if len(found) == repeats:
            return found
    raise UserError(
        f"--repeats {repeats}: {len(set(units_N.tolist()))} subjects (or groups) were split into {n_folds} folds in "
        f"{len(found)} different way(s) only; use at most --repeats {len(found)}"
    )


def make_outer_parts(
    subjects_N: NDArray[Any],
    targets_N: NDArray[Any],
    *,
    classes: bool,
    n_parts: int,
    seed: int = 0,
    group_of: Mapping[str, str] | None = None,
) -> list[list[str]]:
    """Distribute all subjects over the parts of an outer cross-validation, each of which is held out once.

    Parameters
    ----------
    subjects_N, targets_N, classes, group_of
        See `make_folds`.

    Raises
    ------
    UserError
        There are fewer subjects or groups than parts, or there is one part only.
    """
    names = sorted({str(s) for s in subjects_N})
    folds = FoldMap(seed=seed, n_folds=n_parts, fold_of={}, group_of=_shared_groups(group_of or {}, names))
    units_N, unit_of_name = folds.groups(subjects_N), folds.groups(names)
    n_units = len(set(unit_of_name.tolist()))
    if n_parts < 2:
        raise UserError(f"--outer {n_parts}: an outer cross-validation needs at least 2 parts")
    if n_parts > n_units:
        what = "group" if folds.group_of else "subject"
        raise UserError(f"--outer {n_parts}: the data has {n_units} {what}(s); use at most that many parts")
    parts = split_units(units_N, targets_N, classes, n_parts, seed)
    if not all(parts):
        raise UserError(f"--outer {n_parts}: a part would have no subject; use fewer parts")
    return [[name for name, unit in zip(names, unit_of_name, strict=True) if unit in set(part)] for part in parts]


def _shared_groups(group_of: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """Return the groups of these subjects that several of them share."""
    groups = {name: group_of[name] for name in names if group_of.get(name)}
    counts = Counter(groups.values())
    return {name: group for name, group in groups.items() if counts[group] > 1}


def _check_whole_groups(folds: FoldMap, names: Sequence[str], chosen: set[str]) -> None:
    groups = {folds.group_of[s] for s in chosen if s in folds.group_of}
    missing = [s for s in names if s not in chosen and folds.group_of.get(s) in groups]
    if missing:
        raise UserError(
            f"held-out subjects share a group with {len(missing)} that are not held out ({name_some(missing)}); hold "
            "out these too"
        )


def _check_group_count(n_folds: int, n_groups: int, grouped: bool) -> None:
    if grouped and n_folds > n_groups:
        raise UserError(
            f"{n_folds} folds need at least {n_folds} groups beside the held-out subjects; the data has {n_groups}: "
            + (f"use at most --folds {n_groups}" if n_groups >= 2 else "prepare with another column of --groups")
        )


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


def split_units(
    units_N: NDArray[Any], targets_N: NDArray[Any], classes: bool, n_parts: int, seed: int
) -> list[list[str]]:
    """Split units (subjects or groups) into parts of about equally many windows, stratified by target."""
    if not classes:
        return _split_by_mean_target(units_N, targets_N, n_parts, seed)
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    n_rarest_class = min(np.unique(targets_N, return_counts=True)[1])
    # A stratified split of very few windows may have an empty part, or raise an error.
    for splitter in (StratifiedGroupKFold, GroupKFold) if n_rarest_class >= n_parts else (GroupKFold,):
        splits = splitter(n_parts, shuffle=True, random_state=seed).split(units_N, targets_N, units_N)
        parts = [sorted(set(units_N[test].tolist())) for _, test in splits]
        if all(parts):
            break
    return parts


def _split_by_mean_target(units_N: NDArray[Any], targets_N: NDArray[Any], n_parts: int, seed: int) -> list[list[str]]:
    """Split units into parts with similar targets and about equally many windows.

    Units are taken in order of their mean target, `n_parts` at a time. Of each such block, the largest unit goes to the
    part with the fewest windows so far; sizes that differ by less than half the mean size count as equal. In every
    second block, of equal ones the unit with the highest target goes to the part with the lowest targets so far. In the
    other blocks their order is random, so that seeds give different parts.
    """
    names, index_N = np.unique(units_N, return_inverse=True)
    size_U = np.bincount(index_N)
    mean_U = np.bincount(index_N, weights=one_value(targets_N).astype(np.float64)) / size_U
    size_U, mean_U = size_U / size_U.mean(), mean_U - mean_U.mean()
    rng = np.random.default_rng(seed)
    order_U = np.argsort(mean_U, kind="stable")
    parts: list[list[str]] = [[] for _ in range(n_parts)]
    load_P, target_P = np.zeros(n_parts), np.zeros(n_parts)
    for number, start in enumerate(range(0, len(names), n_parts)):
        block = order_U[start : start + n_parts]
        block_U, of_P = rng.permutation(block), rng.permutation(n_parts)
        # numpy.lexsort takes the least important key first.
        unit_keys, part_keys = [-np.round(size_U[block_U])], [np.round(load_P[of_P] - load_P.min())]
        if number % 2:
            unit_keys, part_keys = [-mean_U[block_U], *unit_keys], [target_P[of_P], *part_keys]
        for unit, part in zip(block_U[np.lexsort(unit_keys)], of_P[np.lexsort(part_keys)], strict=False):
            parts[part].append(str(names[unit]))
            load_P[part] += size_U[unit]
            target_P[part] += mean_U[unit]
    return [sorted(part) for part in parts]
