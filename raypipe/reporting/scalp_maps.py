"""Draw values of channels as maps of the scalp."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raypipe.reporting.plotting import GREY, ON_LIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIN_ELECTRODES = 8
"""Minimum number of electrodes with known positions for a scalp map."""
COLOURS = "RdBu_r"
"""Colour map: blue below zero, red above."""


def plot_map(axes: Axes, info: Any, values: NDArray[Any], limit: float = 0.0) -> None:
    """Plot the values of electrodes; `info` is their `mne.Info`, `limit` where the colours end (0: their largest)."""
    import mne

    limit = limit or float(np.abs(values).max()) or 1.0
    options: dict[str, Any] = {"cmap": COLOURS, "vlim": (-limit, limit), "contours": 4, "sensors": "k.", "show": False}
    mne.viz.plot_topomap(values, info, axes=axes, **options)
    for line in axes.lines:
        is_sensor = line.get_marker() == "."
        line.set(**{"markersize": 1.6, "color": ON_LIGHT} if is_sensor else {"color": GREY})


def map_note(known: int, channels: int) -> str:
    """Return a note if there are no scalp maps or electrodes are missing from them, else an empty text."""
    if known >= MIN_ELECTRODES:
        return f"The maps show the {known} of {channels} channels with known positions." if known < channels else ""
    few = f"the positions of {known} are" if known else "no position is"
    return f"No scalp maps: of {channels} channels, {few} known by name ({MIN_ELECTRODES} are needed)."
