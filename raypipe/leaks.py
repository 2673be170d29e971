"""The leak audit: subjects, recordings, overlapping windows and copies of recordings, before any score is shown."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from raypipe.folds import FoldMap, LeakError, audit

if TYPE_CHECKING:
    from raypipe.windows import WindowStore


def audit_store(windows: WindowStore, folds: FoldMap) -> None:
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
