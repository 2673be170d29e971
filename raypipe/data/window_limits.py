"""Limit the number of windows of a person: the most are drawn, and people with too few are left out."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from raypipe.core.errors import UserError
from raypipe.data.accounting import Ledger
from raypipe.data.manifest import Settings

if TYPE_CHECKING:
    import pandas as pd

TOO_FEW = "of a person with too few windows"
NOT_DRAWN = "of which no window was drawn"
"""Reasons for leaving recordings out."""


def check_limits(asked: Settings) -> None:
    """Check the numbers of windows that a person may have.

    Raises
    ------
    UserError
        One is out of range, or they contradict each other.
    """
    for name, value in (("max_windows", asked.max_windows), ("min_windows", asked.min_windows)):
        if value is not None and value < 1:
            raise UserError(f"{name} {value}: must be at least 1")
    if asked.max_windows and asked.min_windows and asked.min_windows > asked.max_windows:
        raise UserError(
            f"min_windows {asked.min_windows}: more than max_windows ({asked.max_windows}) leaves no person"
        )
    if asked.seed < 0:
        raise UserError(f"seed {asked.seed}: must be at least 0")
    if asked.seed and asked.max_windows is None:
        raise UserError(f"seed {asked.seed}: draws the windows of max_windows, which is not given")


def limit_windows(table: pd.DataFrame, asked: Settings, ledger: Ledger) -> pd.DataFrame:
    """Return the rows of windows that stay, in their order; the others are counted in the account.

    Parameters
    ----------
    table
        A row per window, with `recording` and `subject`; a person's rows in order of recording and time.
    """
    if asked.max_windows is None and asked.min_windows is None:
        return table
    kept: list[NDArray[np.int64]] = []
    subject_N = table["subject"].to_numpy(dtype=str)
    for person in dict.fromkeys(subject_N.tolist()):
        places = np.flatnonzero(subject_N == person)
        if asked.min_windows is not None and len(places) < asked.min_windows:
            ledger.leave_parts_out(person, {f"windows of people with fewer than {asked.min_windows}": len(places)})
            continue
        if asked.max_windows is not None:
            drawn = spread_draw(len(places), asked.max_windows, _seed(asked.seed, person))
            ledger.leave_parts_out(
                person, {f"windows beyond the {asked.max_windows} drawn of a person": len(places) - len(drawn)}
            )
            places = places[drawn]
        kept.append(places)
    limited = table.iloc[np.sort(np.concatenate(kept))] if kept else table.iloc[:0]
    _leave_recordings_out(table, limited, ledger)
    return limited.reset_index(drop=True)


def _leave_recordings_out(before: pd.DataFrame, after: pd.DataFrame, ledger: Ledger) -> None:
    people, recordings = set(after["subject"]), set(after["recording"])
    counts = Counter(before["recording"])
    for recording, person in dict(zip(before["recording"], before["subject"], strict=True)).items():
        if recording not in recordings:
            reason = NOT_DRAWN if person in people else TOO_FEW
            ledger.leave_out(recording, reason, f"{counts[recording]} windows")


def spread_draw(count: int, most: int, seed: int) -> NDArray[np.int64]:
    """Draw at most `most` of `count` places, spread over all: one at random of each of `most` parts of equal size."""
    if count <= most:
        return np.arange(count)
    edges = np.arange(most + 1) * count // most
    return np.random.default_rng(seed).integers(edges[:-1], edges[1:])


def _seed(seed: int, person: str) -> int:
    """Return a seed for a person, so that the draw does not depend on who else is there."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{person}".encode()).digest()[:8], "little")
