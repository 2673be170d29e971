"""Find recordings whose samples are a thousand times those of the others: their unit is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from raypipe.core.errors import UserError
from raypipe.recordings.tables import list_some

MAX_RATIO = 100.0
"""Ratio of two scales from which on they are not of one unit. Units differ by factors of 1,000; people do by less."""
EEG_SCALES = (1e-3, 1e6)
"""Microvolts between which the usual spread of windows must be: a factor of a million is found, 1,000 may not be."""
MAX_NAMED = 5
"""Recordings that a sentence names."""
MAX_FROM_MEDIAN = 300.0
"""Ratio to the median of most scales from which on one is not of their unit, though others lie in between."""
CHECK_UNITS = "check the units in its header and in channels.tsv (--skip-unreadable leaves it out)"

UNITS_HINT = "write the right one in the column 'units' of channels.tsv"


def other_scales(scales: Mapping[str, float]) -> dict[str, str]:
    """Return the recordings whose scale is not that of most, with a description of it.

    Scales are sorted, and split into groups where one is `MAX_RATIO` times the one before it. The largest group is that
    of most recordings; of two that are as large, the first.

    Parameters
    ----------
    scales
        Spread of the samples in microvolts of every recording, by key. Those without any spread (0) are left alone.
    """
    most = _most(scales)
    usual = usual_scale(scales)
    return {
        key: f"its samples spread over {scale:.3g} uV, those of {len(most)} other recordings over {usual:.3g} uV"
        for key, scale in scales.items()
        if scale > 0 and (key not in most or not 1 / MAX_FROM_MEDIAN < scale / usual < MAX_FROM_MEDIAN)
    }


class Measured(Protocol):
    """A recording whose samples were measured."""

    @property
    def scale(self) -> float:
        """Return the spread of its samples (uV); 0 where there are none."""

    @property
    def channel_scales(self) -> tuple[float, ...]:
        """Return the spread by channel; empty where there are no samples."""

    @property
    def has_confirmed_units(self) -> bool:
        """Return whether the file and channels.tsv agree on its units."""


def scale_notes(records: Mapping[str, Measured], channels: Sequence[str]) -> list[str]:
    """Return sentences about recordings that are flat, or have channels of another scale."""
    flat = [key for key, record in records.items() if record.channel_scales and record.scale == 0]
    notes = [f"Flat in most channels: {list_some(flat)}."] if flat else []
    return notes + channels_of_other_scales({key: r.channel_scales for key, r in records.items()}, channels)


def check_usual_scale(records: Iterable[Measured], hint: str = UNITS_HINT, at_most: float = EEG_SCALES[1]) -> None:
    """Check that samples are of the scale of EEG, unless files and channels.tsv agree on their unit.

    Parameters
    ----------
    hint
        Where the right unit is written, for the message.
    at_most
        Microvolts that the usual spread must be below.

    Raises
    ------
    UserError
        They are not.
    """
    unsure = [record.scale for record in records if record.scale > 0 and not record.has_confirmed_units]
    usual = float(np.median(unsure)) if unsure else 0.0
    if unsure and not EEG_SCALES[0] < usual < at_most:
        raise UserError(
            f"the samples of most recordings spread over {usual:.3g} uV, not on the scale of EEG (1 to 1,000 uV), "
            f"so their unit is wrong; {hint}"
        )


def usual_scale(scales: Mapping[str, float]) -> float:
    """Return the median of the scales of most recordings; 0 if there are none."""
    most = _most(scales)
    return float(np.median([scales[key] for key in most])) if most else 0.0


def _most(scales: Mapping[str, float]) -> set[str]:
    """Return the recordings of the largest group of scales."""
    ordered = sorted((scale, key) for key, scale in scales.items() if scale > 0)
    if not ordered:
        return set()
    values = np.array([scale for scale, _ in ordered])
    groups = np.split(np.arange(len(values)), np.flatnonzero(values[1:] >= MAX_RATIO * values[:-1]) + 1)
    return {ordered[place][1] for place in max(groups, key=len)}


def channels_of_other_scales(scales: Mapping[str, Sequence[float]], channels: Sequence[str]) -> list[str]:
    """Return a sentence about the recordings of which some channels, but not most, are of another scale.

    Parameters
    ----------
    scales
        Spread of the samples in microvolts by channel, of every recording, by key.
    """
    odd: dict[str, list[str]] = {}
    for place, channel in enumerate(channels):
        for key in other_scales({key: each[place] for key, each in scales.items() if each}):
            odd.setdefault(key, []).append(channel)
    some = {key: names for key, names in odd.items() if len(names) <= len(channels) / 2}
    if not some:
        return []
    shown = "; ".join(f"{key}: {list_some(names)}" for key, names in list(some.items())[:MAX_NAMED])
    more = f"; and {len(some) - MAX_NAMED} more recordings" if len(some) > MAX_NAMED else ""
    what = f"Channels {MAX_RATIO:g} times larger or smaller than in other recordings, by unit or a bad contact"
    return [f"{what}: {shown}{more}."]
