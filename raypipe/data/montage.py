"""Positions of electrodes by their names, from MNE's template montages."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from raypipe.core.errors import nearest

if TYPE_CHECKING:
    import mne

MONTAGES = ("standard_1005", "GSN-HydroCel-129", "biosemi64")

Positions = dict[str, tuple[float, ...]]
"""Positions (x, y, z) in metres, by the electrode's name in lower case."""


def electrode_positions(channels: Sequence[str]) -> NDArray[np.float32]:
    """Return positions (C, 3) in metres from the centre of the head; NaN for unknown names.

    All positions come from one template: the first of `MONTAGES` that knows the most names. Names are compared in lower
    case, without a leading "EEG " and a trailing reference ("-A2"). Cz is E129 in the HydroCel net. Channels that have
    no names at all need no MNE.
    """
    names = [_plain(name) for name in channels]
    if not any(names):
        return np.full((len(names), 3), np.nan, np.float32)
    positions = _centred_positions(_best_montage(names))
    unknown = (np.nan,) * 3
    return np.array([positions.get(name, unknown) for name in names], np.float32)


def project_to_scalp(channels: Sequence[str]) -> tuple[mne.Info | None, list[int]]:
    """Return the channels of known position as an `mne.Info` in head coordinates, and their indices in `channels`.

    Of channels at one position, only the first is returned. Names are read as by `electrode_positions`. If no name is
    known, return None and an empty list.
    """
    import mne

    if not channels:
        return None, []
    names = [_plain(name) for name in channels]
    positions = _head_positions(_best_montage(names))
    first = {positions[name]: index for index, name in reversed(list(enumerate(names))) if name in positions}
    indices = sorted(first.values())
    if not indices:
        return None, []
    info = mne.create_info([channels[index] for index in indices], 1.0, "eeg", verbose="error")
    found = {channels[index]: np.array(positions[names[index]]) for index in indices}
    info.set_montage(mne.channels.make_dig_montage(found, coord_frame="head"), verbose="error")
    return info, indices


def template_names(montage: str, channels: Sequence[str]) -> list[str | None]:
    """Return the name that each channel has in a montage; None where it has none, or is there twice.

    Names are read as by `electrode_positions`.

    Raises
    ------
    ValueError
        MNE has no such montage.
    """
    known = {name.lower(): name for name in template_of(montage).ch_names}
    if "GSN" in montage and "cz" in known:
        known.setdefault("e129", known["cz"])
    found = [known.get(name.lower()) or known.get(_plain(name)) for name in channels]
    return [name if found.index(name) == place else None for place, name in enumerate(found)]


def _plain(name: str) -> str:
    return name.lower().removeprefix("eeg ").strip().split("-")[0].strip(" .")


def _best_montage(names: Sequence[str]) -> str:
    return max(MONTAGES, key=lambda montage: sum(name in _centred_positions(montage) for name in names))


@cache
def _centred_positions(montage: str) -> Positions:
    """Return the positions relative to the mean of all electrodes."""
    found = {name.lower(): np.asarray(place) for name, place in template_of(montage).get_positions()["ch_pos"].items()}
    centre = np.mean(list(found.values()), axis=0)
    return _with_e129(montage, {name: tuple(float(v) for v in place - centre) for name, place in found.items()})


@cache
def _head_positions(montage: str) -> Positions:
    """Return positions in head coordinates, which have their origin between the ears."""
    import mne

    template = template_of(montage)
    info = mne.create_info(template.ch_names, 1.0, "eeg", verbose="error").set_montage(template, verbose="error")
    return _with_e129(
        montage, {each["ch_name"].lower(): tuple(float(v) for v in each["loc"][:3]) for each in info["chs"]}
    )


def _with_e129(montage: str, positions: Positions) -> Positions:
    if "GSN" in montage and "cz" in positions:
        positions.setdefault("e129", positions["cz"])
    return positions


def template_of(montage: str) -> mne.channels.DigMontage:
    """Return one of MNE's template montages.

    Raises
    ------
    ValueError
        MNE has none of this name; names the nearest.
    """
    import mne

    known = mne.channels.get_builtin_montages()
    for old, new in (("standard_", "colin27_"), ("colin27_", "standard_")):  # renamed in MNE 1.13
        if montage not in known and montage.startswith(old):
            montage = montage.replace(old, new)
    if montage not in known:
        names = [*known, *(name.replace("colin27_", "standard_") for name in known)]  # both names are taken
        raise ValueError(f"no montage of MNE; {nearest(montage, sorted(set(names)))}")
    return mne.channels.make_standard_montage(montage)
