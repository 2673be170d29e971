"""Where electrodes sit, by their names: the template montages that MNE brings along."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

MONTAGES = ("standard_1005", "GSN-HydroCel-129", "biosemi64")


def electrode_positions(channels: Sequence[str]) -> NDArray[np.float32]:
    """Positions (C, 3) in metres, from the middle of the head; NaN where a name is not known.

    The first template of `MONTAGES` that knows the most of the names places them all. Names are compared in lower
    case, without an "EEG " before and a reference ("-A2") behind; Cz is E129 in the HydroCel net.
    """
    if not channels:
        return np.empty((0, 3), np.float32)
    names = [_plain(name) for name in channels]
    best = _template(_best(names))
    unknown = (np.nan,) * 3
    return np.array([best.get(name, unknown) for name in names], np.float32)


def _plain(name: str) -> str:
    return name.lower().removeprefix("eeg ").strip().split("-")[0].strip(" .")


def project_to_scalp(channels: Sequence[str]) -> tuple[Any, list[int]]:
    """Channels whose places are known, no two at one place, as `mne.Info` in head coordinates, and which they are.

    Names are read as in `positions`.
    """
    import mne

    if not channels:
        return None, []
    names = [_plain(name) for name in channels]
    places = _head(_best(names))
    known = {places[name]: place for place, name in reversed(list(enumerate(names))) if name in places}
    which = sorted(known.values())
    if not which:
        return None, []
    made = mne.create_info([channels[place] for place in which], 1.0, "eeg", verbose="error")
    found = {channels[place]: np.array(places[names[place]]) for place in which}
    made.set_montage(mne.channels.make_dig_montage(found, coord_frame="head"), verbose="error")
    return made, which


def _best(names: Sequence[str]) -> str:
    return max(MONTAGES, key=lambda montage: sum(name in _template(montage) for name in names))


@cache
def _head(montage: str) -> dict[str, tuple[float, ...]]:
    """Places in head coordinates, which have their origin between the ears."""
    import mne

    made = _montage(montage)
    info = mne.create_info(made.ch_names, 1.0, "eeg", verbose="error").set_montage(made, verbose="error")
    places = {each["ch_name"].lower(): tuple(float(v) for v in each["loc"][:3]) for each in info["chs"]}
    return _with_e129(montage, places)


def _with_e129(montage: str, places: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
    if "GSN" in montage and "cz" in places:
        places.setdefault("e129", places["cz"])
    return places


def _montage(montage: str) -> Any:
    import mne

    if montage == "standard_1005" and "colin27_1005" in mne.channels.get_builtin_montages():
        montage = "colin27_1005"  # its name from MNE 1.13 on
    return mne.channels.make_standard_montage(montage)


@cache
def _template(montage: str) -> dict[str, tuple[float, ...]]:
    found = {name.lower(): np.asarray(place) for name, place in _montage(montage).get_positions()["ch_pos"].items()}
    centre = np.mean(list(found.values()), axis=0)
    return _with_e129(montage, {name: tuple(float(v) for v in place - centre) for name, place in found.items()})
