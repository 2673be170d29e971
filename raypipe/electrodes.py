"""Where electrodes sit, by their names: the template montages that MNE brings along."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raypipe.models.vit import ViT

MONTAGES = ("standard_1005", "GSN-HydroCel-129", "biosemi64")


def positions(channels: Sequence[str]) -> NDArray[np.float32]:
    """Positions (C, 3) in metres, from the middle of the head; NaN where a name is not known.

    The first template of `MONTAGES` that knows the most of the names places them all. Names are compared in lower
    case, without an "EEG " before and a reference ("-A2") behind; Cz is E129 in the HydroCel net.
    """
    if not channels:
        return np.empty((0, 3), np.float32)
    names = [_plain(name) for name in channels]
    best = max(MONTAGES, key=lambda montage: sum(name in _template(montage) for name in names))
    unknown = (np.nan,) * 3
    return np.array([_template(best).get(name, unknown) for name in names], np.float32)


def place_electrodes(model: ViT, windows: Any) -> None:
    """Give a network the positions of a store's channels."""
    found = torch.from_numpy(positions(windows.channels))
    model.places.positions.copy_(found.to(model.places.positions.device))


def _plain(name: str) -> str:
    return name.lower().removeprefix("eeg ").strip().split("-")[0].strip(" .")


@cache
def _template(montage: str) -> dict[str, tuple[float, ...]]:
    import mne

    if montage == "standard_1005" and "colin27_1005" in mne.channels.get_builtin_montages():
        montage = "colin27_1005"  # its name from MNE 1.13 on
    made = mne.channels.make_standard_montage(montage)
    found = {name.lower(): np.asarray(place) for name, place in made.get_positions()["ch_pos"].items()}
    centre = np.mean(list(found.values()), axis=0)
    places = {name: tuple(float(v) for v in place - centre) for name, place in found.items()}
    if "GSN" in montage and "cz" in places:
        places.setdefault("e129", places["cz"])
    return places
