"""Set the style of all plots, legible on any page and with colour vision deficiency, and export them as SVG."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape

from raypipe.core.metrics import NO_SKILL, get_metric
from raypipe.core.text import format_duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#8a8f98"
DARK, MUTED, LIGHT = "#1f2430", "#4a505c", "#c4c9d2"
"""Colours of text, of secondary text and of guide lines."""
PAPER, EDGE, GRID, PAUSE = "#ffffff", "#9aa0aa", "#e8eaee", "#f0e6d2"
"""Colours of the page, of axes, of their grid and of pauses."""
ON_LIGHT, ON_DARK = "#1f2431", "#fefefe"
"""Colours of text on a coloured cell, the same on every page."""
PAGE_COLOURS = {
    DARK: "text", MUTED: "muted", LIGHT: "guide", PAPER: "background", EDGE: "head-border", GRID: "row-border",
    PAUSE: "pause", BLUE.lower(): "blue",
}  # fmt: skip
"""Colours that follow the page, by their variable in ``style.css``; others are the same on every page."""
COLOUR_CYCLE = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00")
CHANCE = {
    name: (value, f"{'chance' if name in ('auc', 'kappa') else 'constant'} ({value:g})")
    for name, value in NO_SKILL.items()
}
"""Score of a prediction without EEG and its label, by metric."""
MANY = 1000
"""Marks of a plot beyond which they are drawn as pixels; as shapes they would take most of a page."""
CORRELATIONS: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -1.0, "vmax": 1.0}
"""Colours of correlations, the same in every plot."""
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": EDGE,
    "axes.labelcolor": DARK,
    "text.color": DARK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "axes.axisbelow": True,
    "svg.hashsalt": "raypipe",
    "svg.fonttype": "path",
}


def new_figure(
    width: float, height: float, columns: int = 1, *, rows: int = 1, **options: Any
) -> tuple[Figure, list[Axes]]:
    """Return a figure of `width` x `height` inches in the report's style, and its axes row by row."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = np.atleast_1d(figure.subplots(rows, columns, **options)).ravel().tolist()
    return figure, axes


def to_svg(figure: Figure, paper: str = PAPER) -> bytes:
    """Return a figure as SVG on `paper`, its colour; equal figures give equal bytes."""
    import matplotlib
    from matplotlib.text import Text

    formulas = _labels_of_log_axes(figure)
    for text in figure.findobj(Text):
        text.set_parse_math(text in formulas)  # names of users may have a $
        if text.get_color() == "black":  # drawn after `new_figure`, whose style no longer holds
            text.set_color(DARK)
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", dpi=150, facecolor=paper, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _labels_of_log_axes(figure: Figure) -> set[Text]:
    """Return the labels of ticks that matplotlib writes as formulas, such as powers of ten."""
    from matplotlib.ticker import LogFormatter

    axes = [axis for each in figure.axes for axis in (each.xaxis, each.yaxis)]
    shown = [axis for axis in axes if isinstance(axis.get_major_formatter(), LogFormatter)]
    return {label for axis in shown for label in axis.get_ticklabels(which="both")}


def inline_svg(figure: Figure, alt: str) -> Markup:
    """Return a figure as an SVG element of a page: transparent, in the page's colours, with an alternative text.

    Its identifiers differ from those of other figures on the page.
    """
    text = to_svg(figure, paper="none").decode()
    prefix = f"f{hashlib.sha256(text.encode()).hexdigest()[:8]}-"
    body = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    body = re.sub(r'(?<= id=")|(?<=href="#)|(?<=url\(#)', prefix, body[body.index("<svg") :])
    body = re.sub(r"#[0-9a-f]{6}\b", _page_colour, body)
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    box = re.search(r'viewBox="[^"]*"', body)
    assert box is not None
    head = f'<svg {box[0]} width="{width}" height="{height}" role="img" aria-label="{escape(alt)}">'
    return Markup(head + body[body.index(">") + 1 :].strip())


def _page_colour(found: re.Match[str]) -> str:
    name = PAGE_COLOURS.get(found[0])
    return f"var(--{name}, {found[0]})" if name else found[0]


def draw_chance(axes: Axes, metric: str) -> None:
    """Draw the score of a prediction without EEG, for metrics where it is known."""
    if metric in CHANCE:
        value, label = CHANCE[metric]
        axes.axhline(value, color=ORANGE, lw=1.2, ls="--", label=label)


def widen_score_axis(axes: Axes, metric: str) -> None:
    """Widen an axis of scores to what lies between no skill and perfect, where both are known.

    So small differences, which are noise, look small where no interval is drawn.
    """
    found = get_metric(metric)
    perfect = found.limits[0] if found.sign > 0 else found.limits[1]
    if metric not in NO_SKILL or not np.isfinite(perfect):
        return
    ends = [*axes.get_ylim(), NO_SKILL[metric], perfect]
    axes.set_ylim(min(ends), max(ends))


def draw_legend_above(axes: Axes) -> None:
    """Draw a legend above the left end of the axes, where it is visible before a wide plot is scrolled."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        wide = axes.get_figure().get_size_inches()[0] > 5  # type: ignore[union-attr]
        axes.legend(
            handles, labels, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=5 if wide else 2, fontsize=8.5,
            frameon=False, borderaxespad=0.2, columnspacing=1.2, handletextpad=0.5,
        )  # fmt: skip


def time_unit(seconds: float) -> tuple[float, str]:
    """Return the unit to plot a time in: its length in seconds and its name."""
    if seconds <= 120:
        return 1.0, "seconds"
    return (3600.0, "hours") if seconds > 2 * 3600 else (60.0, "minutes")


def shade_pauses(axes: Axes, pauses: Sequence[tuple[float, float]], first: float, unit: float) -> None:
    """Shade the pauses of a run and label the longest.

    Parameters
    ----------
    axes
        Axes whose x axis is the time since `first`, in units of `unit` seconds.
    pauses
        Start and end of each, Unix times.
    first
        Unix time of x = 0.
    unit
        From `time_unit`.
    """
    for start, end in pauses:
        axes.axvspan((start - first) / unit, (end - first) / unit, color=PAUSE, lw=0, zorder=0)
    if pauses:
        start, end = max(pauses, key=lambda pause: pause[1] - pause[0])
        axes.text(
            ((start + end) / 2 - first) / unit, 0.5, f"idle for {format_duration(end - start)}", rotation=90,
            fontsize=7.5, color=MUTED, ha="center", va="center", transform=axes.get_xaxis_transform(),
        )  # fmt: skip
