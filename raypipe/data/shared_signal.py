"""Find pieces of signal that two people share, which folds over people would not keep together.

Windows that overlap in time are compared sample by sample, but for a constant, which a baseline may have removed. Times
alone prove nothing: recordings of two people may both begin at 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from raypipe.core.errors import UserError

MAX_PAIRS = 200
"""Pairs of windows of one recording that are compared."""
MIN_SHARED = 8
"""Samples that two windows must share to be compared."""
MAX_DIFFERENCE = 1e-3
"""Spread of the difference of two pieces, in spreads of the signal, below which they are one."""

Floats = NDArray[np.float64]


def overlapping_pairs(onsets_N: Floats, people: Sequence[str], samples: int, sfreq: float) -> list[tuple[int, int]]:
    """Return places of neighbours in time that overlap and are of two people: `MAX_PAIRS` of more, drawn by seed.

    Evenly spaced ones could be of the same two people, where people follow each other in a fixed order.
    """
    longest = (samples - MIN_SHARED) / sfreq
    pairs = [
        (int(one), int(other))
        for one, other in pairwise(np.argsort(onsets_N, kind="stable"))
        if people[one] != people[other] and onsets_N[other] - onsets_N[one] <= longest
    ]
    if len(pairs) <= MAX_PAIRS:
        return pairs
    drawn = np.sort(np.random.default_rng(0).permutation(len(pairs))[:MAX_PAIRS])
    return [pairs[place] for place in drawn]


def refuse_shared(
    where: str, windows_CT: tuple[Floats, Floats], onsets: tuple[float, float], people: tuple[str, str], sfreq: float
) -> None:
    """Check that two windows that overlap in time are not of one signal.

    Parameters
    ----------
    where
        What the windows are, for messages.
    windows_CT
        The earlier one and the later one.
    onsets
        Their starts (s).
    people
        Their subjects.

    Raises
    ------
    UserError
        They are of one signal.
    """
    one_CT, other_CT = windows_CT
    samples = one_CT.shape[1]
    shift = round((onsets[1] - onsets[0]) * sfreq)
    first_CT, second_CT = one_CT[:, shift:], other_CT[:, : samples - shift]
    spread = float(np.std(first_CT, axis=1).max())
    if spread > 0 and float(np.std(first_CT - second_CT, axis=1).max()) < MAX_DIFFERENCE * spread:
        raise UserError(
            f"{where} of '{people[0]}' and '{people[1]}' share {(samples - shift) / sfreq:g} s of signal, from "
            f"{onsets[1]:g} s on, so they are of one recording; name one person in both, or join them with groups"
        )


def without_shared(
    blocks: Iterable[NDArray[np.float32]],
    recordings: Sequence[str],
    onsets_N: Floats,
    people: Sequence[str],
    sfreq: float,
) -> Iterator[NDArray[np.float32]]:
    """Yield blocks of windows (n, C, T) as they are given, and compare those that overlap in a recording.

    Parameters
    ----------
    recordings, onsets_N, people
        (N,) recording of each window, its start in it (s), and its subject or the group of subjects that are kept
        together.

    Raises
    ------
    UserError
        Two people share signal.
    """
    done, kept = 0, dict[int, NDArray[np.float32]]()
    pairs: list[tuple[int, int]] | None = None
    for block_NCT in blocks:
        if pairs is None:
            pairs = _pairs_of_recordings(recordings, onsets_N, people, block_NCT.shape[2], sfreq)
        needed = {place for pair in pairs for place in pair}
        kept |= {place: block_NCT[place - done] for place in needed & set(range(done, done + len(block_NCT)))}
        done += len(block_NCT)
        for one, other in pairs:
            if one in kept and other in kept:
                windows = (kept[one].astype(np.float64), kept[other].astype(np.float64))
                where = f"X: windows of recording '{recordings[one]}'"
                times, both = (float(onsets_N[one]), float(onsets_N[other])), (people[one], people[other])
                refuse_shared(where, windows, times, both, sfreq)
        pairs = [pair for pair in pairs if not (pair[0] in kept and pair[1] in kept)]
        kept = {place: kept[place].copy() for pair in pairs for place in pair if place in kept}
        yield block_NCT


def _pairs_of_recordings(
    recordings: Sequence[str], onsets_N: Floats, people: Sequence[str], samples: int, sfreq: float
) -> list[tuple[int, int]]:
    places = defaultdict[str, list[int]](list)
    for place, recording in enumerate(recordings):
        places[recording].append(place)
    found = []
    for own in places.values():
        pairs = overlapping_pairs(onsets_N[own], [people[place] for place in own], samples, sfreq)
        found += [(own[one], own[other]) for one, other in pairs]
    return found
