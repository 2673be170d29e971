"""The training subjects, or groups of them, that a fold sets apart to choose its epoch, with ``early_stop=fold``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypipe.core.errors import UserError
from raypipe.core.folds import Index
from raypipe.core.seeds import derive_seed

INNER_FRACTION = 0.15
"""Fraction of a fold's training subjects, or groups, that choose its epoch."""
MIN_INNER_SUBJECTS = 4
"""Smallest number of subjects, or groups, that choose an epoch. The best epoch of fewer is that of one or two."""
MIN_TRAIN_SUBJECTS = 16
"""Smallest number of training subjects, or groups, of a fold that sets some apart: at most a quarter of them."""
MAX_DRAWS = 1000
"""Draws until every class occurs on both sides."""


def split_inner(
    train: Index,
    subjects: NDArray[Any],
    classes: NDArray[Any] | None = None,
    *,
    groups: NDArray[Any] | None = None,
    seed: int,
    fold: int,
) -> tuple[Index, Index]:
    """Split a fold's training windows by subject, or group: those it trains on, and those it chooses its epoch by.

    Parameters
    ----------
    train
        (N,) numbers of the training windows.
    subjects, classes
        (N,) their subjects, and their classes; None for regression.
    groups
        (N,) group of each window's subject, or the subject where it has none, see `FoldMap.groups`. A group is on one
        side, and counts as one. None where subjects share no groups.
    seed, fold
        Seed of the draw.

    Raises
    ------
    UserError
        There are too few subjects or groups, or no draw has every class on both sides.
    """
    units = subjects if groups is None else groups
    names = np.unique(units)
    what = "subjects" if len(names) == len(np.unique(subjects)) else "groups of subjects"
    if len(names) < MIN_TRAIN_SUBJECTS:
        raise UserError(
            f"early_stop=fold: fold {fold} has {len(names)} training {what}, and setting some apart needs "
            f"{MIN_TRAIN_SUBJECTS}; use early_stop=trial"
        )
    n_inner = max(MIN_INNER_SUBJECTS, round(INNER_FRACTION * len(names)))
    rng = np.random.default_rng(derive_seed("inner", seed, fold))
    for _ in range(MAX_DRAWS):
        inner = np.isin(units, rng.permutation(names)[:n_inner])
        if classes is None or set(classes[inner]) == set(classes[~inner]):
            return train[~inner], train[inner]
    raise UserError(
        f"early_stop=fold: fold {fold} cannot choose its epoch by {n_inner} of its {len(names)} training {what}, "
        "since they lack a class; use early_stop=trial"
    )
