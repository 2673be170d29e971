"""Split the subjects of a store: held-out subjects, folds, and a check for leaks before anything is scored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raypipe.core.errors import UserError
from raypipe.core.folds import HELD_OUT, FoldMap, LeakError, audit, make_folds
from raypipe.data.hbn import RELEASES, WARM_UP

if TYPE_CHECKING:
    from raypipe.data.window_store import WindowStore

DEFAULT_SHARE = 0.2
"""Share of the subjects that a run holds out by default."""


def folds_of(windows: WindowStore, n_folds: int, held_out: float | Sequence[str] | str, seed: int) -> FoldMap:
    """Make the fold map of a store (`raypipe.core.folds.make_folds`); equal arguments give equal maps.

    Parameters
    ----------
    held_out
        See `held_out_of`.
    """
    return make_folds(
        windows.subjects,
        windows.targets,
        classes=bool(windows.classes),
        n_folds=n_folds,
        held_out=held_out_of(held_out, windows.releases),
        seed=seed,
    )


def held_out_of(asked: float | Sequence[str] | str, release_by_subject: dict[str, str]) -> float | list[str]:
    """Return the share of subjects, or the subjects, that a run holds out.

    Parameters
    ----------
    asked
        A share; names of subjects and of releases, which stand for their subjects; or ``auto``: the warm-up release if
        there are others too, else `DEFAULT_SHARE`.

    Raises
    ------
    UserError
        No subject is of a named release.
    """
    if asked == "auto":
        releases = set(release_by_subject.values())
        if len(releases) > 1 and WARM_UP in releases:
            return subjects_of([WARM_UP], release_by_subject)
        return DEFAULT_SHARE
    return float(asked) if isinstance(asked, int | float | str) else subjects_of(asked, release_by_subject)


def subjects_of(names: Sequence[str], release_by_subject: dict[str, str]) -> list[str]:
    """Replace names of releases by their subjects; other names are kept.

    Raises
    ------
    UserError
        No subject is of a named release.
    """
    out: list[str] = []
    for name in names:
        if name not in RELEASES:
            out.append(name)
            continue
        inside = sorted(subject for subject, release in release_by_subject.items() if release == name)
        if not inside:
            present = ", ".join(sorted(set(release_by_subject.values()) - {""})) or "none"
            raise UserError(f"held out {name}: no subject is of that release; available: {present}")
        out += inside
    return out


def audit_subjects(windows: WindowStore, folds: FoldMap) -> None:
    """Check that no subject, recording or signal is on two sides of a run's fold map.

    Parameters
    ----------
    windows
        The run's windows.
    folds
        The run's map. Held-out subjects are a side of their own.

    Raises
    ------
    LeakError
        A subject is not in the map; a recording has windows in two folds; or two recordings in different folds hold the
        same samples (by content hash).
    """
    folds_N = folds.folds(windows.subjects)
    sides = {
        ("held-out" if fold == HELD_OUT else f"fold {fold}"): np.flatnonzero(folds_N == fold) for fold in set(folds_N)
    }
    audit(windows.subjects, sides)
    _check_recordings(windows, folds_N)
    _check_copies(windows, folds_N)


def _check_recordings(windows: WindowStore, folds_N: NDArray[Any]) -> None:
    """Check that all windows of a recording are in one fold, and say how many overlap if they are not."""
    length = windows.window_samples / windows.sfreq
    onset_N = windows.table["onset"].to_numpy()
    for recording, rows in windows.table.groupby("recording", sort=False):
        index = rows.index.to_numpy()
        if len(set(folds_N[index])) > 1:
            index = index[np.argsort(onset_N[index], kind="stable")]
            close = np.diff(onset_N[index]) < length - 1e-9
            overlapping = int((close & (np.diff(folds_N[index]) != 0)).sum())
            over = f", {overlapping} of them overlapping across" if overlapping else ""
            raise LeakError(f"recording {recording}: its windows are in several folds{over}")


def _check_copies(windows: WindowStore, folds_N: NDArray[Any]) -> None:
    """Check that recordings with equal samples are in one fold."""
    copies: dict[str, list[int]] = defaultdict(list)
    for number, shard in enumerate(windows.manifest.shards):
        if shard.rows:
            copies[shard.sha256].append(number)
    fold_of_shard = dict(zip(windows.table["shard"].tolist(), folds_N.tolist(), strict=True))
    for same in copies.values():
        if len({fold_of_shard[number] for number in same}) > 1:
            names = [windows.manifest.shards[number].recording for number in same]
            raise LeakError(
                f"recordings {names[0]} and {names[1]} hold the same samples, but are in different folds: remove one "
                "of them and make a new run"
            )
