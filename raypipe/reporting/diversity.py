"""Two pictures of an ensemble's members: how alike their errors are, and what more of them are worth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from raypipe.ensembles.verdict import spoken
from raypipe.reporting.figures import BLUE, INK, ORANGE, figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def likeness(diversity: dict[str, Any]) -> Figure:
    """The members' correlations of errors: what is near 1 brings nothing new."""
    r_MM, names = np.array(diversity["correlations"]), diversity["members"]
    side = 1.5 + 0.34 * len(names)
    made, (axes,) = figure(max(4.2, side + 1.3), max(3.1, side))
    lowest = float(np.floor(10 * r_MM.min()) / 10) if len(r_MM) > 1 else 0.0
    drawn = axes.imshow(r_MM, cmap="viridis", vmin=lowest, vmax=1.0)
    axes.grid(False)
    ticks = range(len(names))
    axes.set_xticks(ticks, names, rotation=90, fontsize=8)
    axes.set_yticks(ticks, names, fontsize=8)
    if len(names) <= 12:
        for (row, column), r in np.ndenumerate(r_MM):
            axes.text(
                column, row, f"{r:.2f}".lstrip("0"), ha="center", va="center", fontsize=7,
                color=INK if r > (1.0 + lowest) / 2 else "white",
            )  # fmt: skip
    made.colorbar(drawn, ax=axes, label="correlation of errors", shrink=0.8)
    return made


def worth(diversity: dict[str, Any], metric: str) -> Figure:
    """Nested score against the number of members, weighted alike."""
    made, (axes,) = figure(4.2, 3.1)
    looks = {"by rank": (BLUE, "o"), "complementing": (ORANGE, "s")}
    for name, scores in diversity["curve"].items():
        colour, marker = looks[name]
        axes.plot(range(1, len(scores) + 1), scores, color=colour, marker=marker, ms=4.5, lw=1.5, label=name)
    axes.set_xlabel("members, weighted alike")
    axes.set_ylabel(f"nested {spoken(metric)}")
    axes.locator_params(axis="x", integer=True)
    axes.legend(fontsize=8.5, frameon=False)
    return made
