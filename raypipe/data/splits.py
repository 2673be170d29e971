"""Subject splits of a store: held-out subjects, the fold map, and the audit for leaks before any score."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from raypipe.core.folds import FoldMap, LeakError, audit, make_folds
from raypipe.data.hbn import WARM_UP

if TYPE_CHECKING:
    from raypipe.data.window_store import WindowStore

from collections.abc import Sequence
from typing import TYPE_CHECKING

from raypipe.core.errors import UserError
from raypipe.data.hbn import RELEASES


def audit_subjects(windows: WindowStore, folds: FoldMap) -> None:
    """Check that no subject, recording or stretch of signal stands on two sides of a run's fold map.

    Parameters
    ----------
    windows
        The run's windows.
    folds
        Its map; held-out subjects are a side of their own.

    Raises
    ------
    LeakError
        A subject is not in the map; a recording has windows in two folds, overlapping or not; or two recordings in
        different folds hold the very same samples (by content hash).
    """
    folds_N = folds.folds(windows.subjects)
    sides = {("held-out" if fold < 0 else f"fold {fold}"): np.flatnonzero(folds_N == fold) for fold in set(folds_N)}
    audit(windows.subjects, sides)
    table = windows.table
    length = windows.window_samples / windows.sfreq
    for recording, part in table.groupby("recording", sort=False):
        places = part.index.to_numpy()
        if len(set(folds_N[places])) > 1:
            order = places[np.argsort(table["onset"].to_numpy()[places], kind="stable")]
            onsets, sided = table["onset"].to_numpy()[order], folds_N[order]
            close = (np.diff(onsets) < length - 1e-9) & (np.diff(sided) != 0)
            over = f", {int(close.sum())} of them overlapping across" if close.any() else ""
            raise LeakError(f"recording {recording}: its windows are in several folds{over}")
    copies: dict[str, list[int]] = defaultdict(list)
    for number, shard in enumerate(windows.manifest.shards):
        if shard.rows:
            copies[shard.sha256].append(number)
    fold_of_shard = dict(zip(table["shard"].tolist(), folds_N.tolist(), strict=True))
    for same in copies.values():
        if len({fold_of_shard[number] for number in same}) > 1:
            names = [windows.manifest.shards[number].recording for number in same]
            raise LeakError(
                f"recordings {names[0]} and {names[1]} hold the same samples, but stand in different folds: remove one "
                "of them and make a new run"
            )


def folds_of(windows: WindowStore, n_folds: int, held_out: float | Sequence[str] | str, seed: int) -> FoldMap:
    """`make_folds` of a store, whose releases may be named in `held_out`; the same call gives the same map."""
    return make_folds(
        windows.subjects,
        windows.targets,
        classes=bool(windows.classes),
        n_folds=n_folds,
        held_out=held_out_of(held_out, windows.releases),
        seed=seed,
    )


def held_out_of(asked: float | Sequence[str] | str, release_by_subject: dict[str, str]) -> float | list[str]:
    """Whom a run holds out: a share as it is, names with releases replaced by their subjects.

    ``auto`` is the warm-up release where it lies among others, a fifth of the subjects elsewhere.

    Raises
    ------
    UserError
        A release that no subject is of.
    """
    if asked == "auto":
        several = len(set(release_by_subject.values())) > 1 and WARM_UP in release_by_subject.values()
        return subjects_of([WARM_UP], release_by_subject) if several else 0.2
    return float(asked) if isinstance(asked, int | float | str) else subjects_of(asked, release_by_subject)


def subjects_of(names: Sequence[str], release_by_subject: dict[str, str]) -> list[str]:
    """Replace names of releases by their subjects; other names stay.

    Raises
    ------
    UserError
        A release that no subject is of.
    """
    out: list[str] = []
    for name in names:
        if name not in RELEASES:
            out.append(name)
            continue
        inside = sorted(subject for subject, release in release_by_subject.items() if release == name)
        if not inside:
            there = ", ".join(sorted(set(release_by_subject.values()) - {""})) or "none"
            raise UserError(f"held out {name}: no subject is of that release; there is: {there}")
        out += inside
    return out
