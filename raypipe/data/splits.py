"""Split the subjects of a store: held-out subjects, folds, and a check for leaks before anything is scored."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from raypipe.core.errors import UserError
from raypipe.core.fold_drawing import make_folds, make_outer_parts
from raypipe.core.folds import HELD_OUT, FoldMap, LeakError, audit
from raypipe.data.hbn import RELEASES, WARM_UP

if TYPE_CHECKING:
    from raypipe.data.window_store import WindowStore

HeldOut = float | list[str] | Literal["auto"]
"""Held-out subjects: see `held_out_of`."""
DEFAULT_SHARE = 0.2
"""Share of the subjects that a run holds out by default."""


def folds_of(windows: WindowStore, n_folds: int, held_out: HeldOut, seed: int, repeats: int = 1) -> FoldMap:
    """Return the fold map of a store (see `raypipe.core.folds.make_folds`). Equal arguments give equal maps.

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
        repeats=repeats,
        held_out=held_out_of(held_out, windows),
        seed=seed,
        group_of=windows.group_of,
    )


def outer_parts_of(windows: WindowStore, n_parts: int, seed: int) -> list[list[str]]:
    """Return whom each part of an outer cross-validation holds out (`raypipe.core.folds.make_outer_parts`)."""
    return make_outer_parts(
        windows.subjects,
        windows.targets,
        classes=bool(windows.classes),
        n_parts=n_parts,
        seed=seed,
        group_of=windows.group_of,
    )


def held_out_of(asked: HeldOut, windows: WindowStore) -> float | list[str]:
    """Return the share of subjects that a run holds out, or their labels.

    Parameters
    ----------
    asked
        A share; names of subjects and of releases, where a name of both is the subject's; or ``auto``: the subjects of
        the warm-up release if there are other releases too, else `DEFAULT_SHARE`.

    Raises
    ------
    UserError
        No subject is of a named release.
    """
    if asked == "auto":
        releases = set(windows.releases.values())
        if len(releases) > 1 and WARM_UP in releases:
            return subjects_of([WARM_UP], windows.releases)
        return DEFAULT_SHARE
    if isinstance(asked, int | float):
        return float(asked)
    present = set(windows.subjects.tolist())
    return subjects_of(asked, windows.releases, present)


def subjects_of(names: Sequence[str], release_by_subject: dict[str, str], subjects: Collection[str] = ()) -> list[str]:
    """Replace names of releases by their subjects; other names are kept, and so are those of `subjects`.

    Raises
    ------
    UserError
        No subject is of a named release.
    """
    out: list[str] = []
    for name in names:
        if name in subjects or name not in RELEASES:
            out.append(name)
            continue
        inside = sorted(subject for subject, release in release_by_subject.items() if release == name)
        if not inside:
            present = ", ".join(sorted(set(release_by_subject.values()) - {""})) or "none"
            raise UserError(f"held out {name}: no subject is of that release; available: {present}")
        out += inside
    return out


def audit_subjects(windows: WindowStore, folds: FoldMap) -> None:
    """Check that no subject, group, recording or window is in two parts of a run's fold map.

    Parameters
    ----------
    windows
        The run's windows.
    folds
        The run's fold map. The held-out subjects are one of its parts.

    Raises
    ------
    LeakError
        A subject is not in the map; a group or a recording has windows in two parts; or two windows in different parts
        hold the same samples (by their hashes in the table, which `prepare` took while it wrote them).
    """
    for repeat in range(folds.repeats):
        folds_N = folds.folds(windows.subjects, repeat)
        parts = {
            ("held-out" if fold == HELD_OUT else f"fold {fold}"): np.flatnonzero(folds_N == fold)
            for fold in set(folds_N)
        }
        audit(windows.subjects, parts)
        if folds.group_of:
            audit(folds.groups(windows.subjects), parts, of="group")
        _check_recordings(windows, folds_N)
        _check_copies(windows, folds_N)


def _check_recordings(windows: WindowStore, folds_N: NDArray[Any]) -> None:
    """Check that all windows of each recording are in one fold; the error counts overlaps across folds."""
    length = windows.window_samples / windows.sfreq
    onset_N = windows.table["onset"].to_numpy()
    for recording, rows in windows.table.groupby("recording", sort=False):
        index = rows.index.to_numpy()
        if len(set(folds_N[index])) > 1:
            index = index[np.argsort(onset_N[index], kind="stable")]
            close = np.diff(onset_N[index]) < length - 1e-9
            overlapping = int((close & (np.diff(folds_N[index]) != 0)).sum())
            detail = f", with {overlapping} overlaps across folds" if overlapping else ""
            raise LeakError(f"recording {recording}: its windows are in several folds{detail}")


def _check_copies(windows: WindowStore, folds_N: NDArray[Any]) -> None:
    """Check that windows with equal samples are in one fold."""
    for one, other in copied_windows(windows.table["digest"].to_numpy(str)):
        if folds_N[one] != folds_N[other]:
            table = windows.table
            places = [f"{table['recording'][n]} at {table['onset'][n]:g} s" for n in (one, other)]
            raise LeakError(
                f"windows of {places[0]} and {places[1]} hold the same samples but are in different folds: remove one "
                "of the recordings, or name both subjects as one with prepare --groups, and make a new run"
            )


def copied_windows(digests_N: NDArray[np.str_]) -> Iterator[tuple[int, int]]:
    """Yield each window that has the samples of earlier ones: the previous one of these, and the window itself."""
    order = np.argsort(digests_N, kind="stable")
    ranked = digests_N[order]
    for place in np.flatnonzero((ranked[1:] == ranked[:-1]) & (ranked[1:] != "")):
        yield int(order[place]), int(order[place + 1])
