"""Section "Timeline": when each trial was trained."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from raypipe.reporting.page import Panel, draw_figure, render_template
from raypipe.reporting.plotting import (
    BLUE,
    DARK,
    GREY,
    LIGHT,
    MANY,
    ORANGE,
    draw_legend_above,
    new_figure,
    shade_pauses,
    time_unit,
)
from raypipe.reporting.trial_spans import TrialSpan, find_pauses

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {"complete": BLUE, "stopped": "#56B4E9", "pruned": GREY, "failed": ORANGE}
_LINES_HEIGHT = 400.0
"""Points that many lines share, so that transparent ones do not overlap."""
_MAX_TICKS = 16
"""Trials whose numbers are written on the axis."""


def timeline_section(spans: Sequence[TrialSpan]) -> Markup:
    """Render the section; empty where no trial has ended."""
    if not spans:
        return Markup()
    failed = sum(span.result.state == "failed" for span in spans)
    interrupted = sum(bool(span.resumed) for span in spans)
    counts = f"{failed} failed; {interrupted} were interrupted and resumed from a checkpoint"
    caption = f"Thin line: queued to ended. Bar: training. {counts}."
    if find_pauses(spans):
        caption += " Shaded: idle."
    figure = draw_figure([Panel(partial(timeline, spans), f"Timeline of {len(spans)} trials: {counts}")], caption)
    return render_template("timeline", figure=figure)


def timeline(spans: Sequence[TrialSpan]) -> Figure:
    """Plot a bar for each interval in which workers trained a trial, over the time since the first request."""
    first, last = min(span.requested for span in spans), max(span.finished for span in spans)
    figure, (axes,) = new_figure(8.4, min(7.0, 1.2 + 0.16 * len(spans)))
    unit, name = time_unit(last - first)
    numbers = [span.result.number for span in spans]
    starts, ends = ([(time - first) / unit for time in times] for times in zip(*map(_whole, spans), strict=True))
    axes.hlines(numbers, starts, ends, zorder=0.5, **_line_style(len(spans)))
    for state, colour in _COLOURS.items():
        _plot_bars(axes, [span for span in spans if span.result.state == state], first, unit, colour, state)
    resumed = [((time - first) / unit, span.result.number) for span in spans for time in span.resumed]
    if resumed:
        axes.plot(*zip(*resumed, strict=True), "D", color=DARK, ms=4, ls="none", label="resumed after an interruption")
    shade_pauses(axes, find_pauses(spans), first, unit)
    axes.autoscale_view()
    axes.set_yticks(numbers[:: -(-len(numbers) // _MAX_TICKS)])
    axes.set_ylim(max(numbers) + 0.6, min(numbers) - 0.6)
    axes.set(xlabel=f"{name} since the first trial was queued", ylabel="trial")
    draw_legend_above(axes)
    return figure


def _whole(span: TrialSpan) -> tuple[float, float]:
    return span.requested, span.finished


def _line_style(n: int) -> dict[str, Any]:
    """Return the style of `n` thin lines: pixels, which keep their colour, have one that suits any page."""
    if n <= MANY:
        return {"color": LIGHT, "lw": 1.5}
    return {"color": GREY, "alpha": 0.45, "lw": _LINES_HEIGHT / n, "rasterized": True}


def _plot_bars(axes: Axes, spans: Sequence[TrialSpan], first: float, unit: float, colour: str, label: str) -> None:
    from matplotlib.collections import PolyCollection

    bars = [(span.result.number, start, end) for span in spans for start, end in span.trained]
    if bars:
        numbers, starts, ends = np.array(bars, dtype=float).T
        left, right = (starts - first) / unit, (ends - first) / unit
        low, high = numbers - 0.35, numbers + 0.35
        corners = [*np.stack([left, low, right, low, right, high, left, high], axis=1).reshape(-1, 4, 2)]
        # One artist, since `barh` makes one for each bar, which takes milliseconds.
        axes.add_collection(
            PolyCollection(corners, facecolor=colour, edgecolor="none", label=label, rasterized=len(bars) > MANY)
        )
