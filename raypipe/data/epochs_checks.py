"""Check that MNE epochs fit each other, and that no two people share a piece of signal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from raypipe.core.errors import UserError, nearest
from raypipe.data.epochs_files import EpochsSource
from raypipe.data.plan import RATE_TOLERANCE

MAX_PAIRS = 200
"""Pairs of epochs of one file that are compared."""
MIN_SHARED = 8
"""Samples that two epochs must share to be compared."""
MAX_DIFFERENCE = 1e-3
"""Spread of the difference of two pieces, in spreads of the signal, below which they are one."""


def common_channels(sources: list[EpochsSource], asked: Sequence[str] | None) -> list[str]:
    """Return the channels of the store, and check that all sources have them.

    Raises
    ------
    UserError
        One lacks a channel; or none were asked for, and one has others.
    """
    first = sources[0]
    if asked is not None and (not asked or len(set(asked)) < len(asked)):
        raise UserError("channels: the list is empty, or names one twice")
    wanted = list(first.facts.channels if asked is None else asked)
    for source in sources:
        present = source.facts.channels
        for name in wanted:
            if name not in present:
                kind = source.facts.others.get(name)
                what = f"is of type {kind}, not EEG" if kind else "is not there"
                raise UserError(f"{source.name}: channel '{name}' {what}; {nearest(name, present)}{_hint(asked)}")
        others = [name for name in present if name not in wanted]
        if others and asked is None:
            raise UserError(f"{source.name}: has channel '{others[0]}', which {first.name} has not{_hint(asked)}")
    return wanted


def _hint(asked: Sequence[str] | None) -> str:
    return "" if asked is not None else "; name those to use with channels"


def check_same(sources: list[EpochsSource]) -> None:
    """Check that all epochs have one sampling rate, length and start.

    Raises
    ------
    UserError
        They differ.
    """
    first = sources[0]
    for source in sources[1:]:
        one, other = first.facts, source.facts
        for what, a, b, unit, tolerance in (
            ("sampling rate", one.sfreq, other.sfreq, "Hz", RATE_TOLERANCE * one.sfreq),
            ("length", one.samples, other.samples, "samples", 0),
            ("start after the event", one.tmin, other.tmin, "s", 0.5 / one.sfreq),
        ):
            if abs(a - b) > tolerance:
                raise UserError(
                    f"epochs differ in {what}: {a:.12g} {unit} ({first.name}) and {b:.12g} {unit} ({source.name}); "
                    "make them equal in MNE"
                )


def check_overlaps(
    source: EpochsSource, rows: NDArray[np.int64], people: Sequence[str], channels: Sequence[str]
) -> None:
    """Check that no two people of one file share a piece of signal, which folds over people would not keep together.

    Epochs that overlap in time are compared sample by sample, but for a constant, which a baseline may have removed.
    Times alone prove nothing: joined recordings may both begin at 0.

    Parameters
    ----------
    rows
        (N,) places of epochs.
    people
        (N,) subject of each, or the group of subjects that are kept together.

    Raises
    ------
    UserError
        Two people share one.
    """
    if len(set(people)) < 2:
        return
    facts = source.facts
    order = np.argsort(facts.onsets[rows], kind="stable")
    longest = (facts.samples - MIN_SHARED) / facts.sfreq
    pairs = [
        (one, other)
        for one, other in pairwise(order)
        if people[one] != people[other] and facts.onsets[rows[other]] - facts.onsets[rows[one]] <= longest
    ]
    for one, other in pairs[:: 1 + len(pairs) // MAX_PAIRS]:
        shift = round((facts.onsets[rows[other]] - facts.onsets[rows[one]]) * facts.sfreq)
        x_NCT = np.concatenate(list(source.read(rows[[one, other]], channels)))
        shared, start = (facts.samples - shift) / facts.sfreq, facts.onsets[rows[other]]
        if _is_one_signal(x_NCT[0][:, shift:], x_NCT[1][:, : facts.samples - shift]):
            raise UserError(
                f"{source.name}: epochs of '{people[one]}' and '{people[other]}' share {shared:g} s of signal, "
                f"from {start:g} s on, so they are of one recording; name one person in both, or join them with "
                "groups"
            )


def _is_one_signal(one_CT: NDArray[np.float64], other_CT: NDArray[np.float64]) -> bool:
    spread = float(np.std(one_CT, axis=1).max())
    return spread > 0 and float(np.std(one_CT - other_CT, axis=1).max()) < MAX_DIFFERENCE * spread
