"""Check that MNE epochs can be read and fit each other, and that no two people share a piece of signal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raypipe.core.errors import UserError, nearest
from raypipe.data.accounting import UNREADABLE, Ledger
from raypipe.data.epochs_files import EpochsSource
from raypipe.data.plan import RATE_TOLERANCE
from raypipe.data.shared_signal import overlapping_pairs, refuse_shared
from raypipe.recordings.signal import UnreadableRecordingError


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


def readable(sources: list[EpochsSource], ledger: Ledger) -> list[EpochsSource]:
    """Return the sources that can be read to their last sample; the others are left out and counted.

    Raises
    ------
    UserError
        None can.
    """
    kept, problem = [], None
    for source in sources:
        try:
            for _ in source.read(np.arange(len(source.facts.onsets)), source.facts.channels[:1]):
                pass
            kept.append(source)
        except UnreadableRecordingError as error:
            problem = error
            ledger.find(source.name, "")
            ledger.leave_out(source.name, UNREADABLE, str(error))
    if problem and not kept:
        raise UserError(f"no file can be read; the last one: {problem}")
    return kept


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
    onsets_N = facts.onsets[rows]
    for one, other in overlapping_pairs(onsets_N, people, facts.samples, facts.sfreq):
        x_NCT = np.concatenate(list(source.read(rows[[one, other]], channels)))
        times, both = (float(onsets_N[one]), float(onsets_N[other])), (people[one], people[other])
        refuse_shared(f"{source.name}: epochs", (x_NCT[0], x_NCT[1]), times, both, facts.sfreq)
