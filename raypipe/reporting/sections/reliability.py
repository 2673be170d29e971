"""Section "Reliability": predicted probabilities, or intervals of values, beside what happened."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from raypipe.ensembles.fitted import Ensemble
from raypipe.ensembles.labels import target_unit
from raypipe.ensembles.reliability import MIN_PER_BIN, Bin, Estimate, Reliability
from raypipe.reporting.page import (
    FigureBlock,
    Panel,
    Table,
    draw_figure,
    format_interval,
    format_score,
    render_template,
)
from raypipe.reporting.plotting import BLUE, GREY, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MIN_CALIBRATED = 3 * MIN_PER_BIN
"""Windows or people from which a reliability curve is drawn, of search and of held-out subjects alike."""


def reliability_section(ensemble: Ensemble) -> Markup:
    """Render the section; empty for an ensemble without nested predictions."""
    if ensemble.outputs:
        return _of_values(ensemble)
    found = ensemble.reliability
    if found is None:
        return Markup()
    info = ensemble.run.info
    if found.coverage:
        draw = partial(coverage_plot, found)
        unit, person = target_unit(info.target), info.level == "person"
        caption = (
            f"Observed coverage: share of search {'people' if person else 'windows'} whose target is in the interval "
            "around its nested prediction, by the interval's nominal coverage. Bars: 95 % intervals over people, or "
            "over the groups that they share."
        )
        figure, table = draw_figure([Panel(draw, "Coverage of intervals")], caption), _coverage_table(found, unit)
    else:
        figure, table = _curve(ensemble, found), _error_table(found)
    few = "" if found.coverage else _too_few(ensemble, found)
    effect = describe_calibration(found)
    return render_template(
        "reliability", figure=figure, table=table, values=bool(found.coverage), few=few, effect=effect
    )


def _curve(ensemble: Ensemble, found: Reliability) -> FigureBlock:
    """Draw the reliability curve of the search subjects; nothing where there are too few."""
    info = ensemble.run.info
    draw = partial(reliability_plot, found, event_name(info.classes))
    what = "people" if info.level == "person" else "windows"
    caption = (
        f"Search {what}, nested predictions: observed frequency by predicted probability, in groups of equally many "
        f"{what}. Bars: 95 % intervals over people, or over the groups that they share."
    )
    few = len(found.bins) < 2 or _too_few(ensemble, found)
    return draw_figure([] if few else [Panel(draw, "Reliability curve")], caption)


def _too_few(ensemble: Ensemble, found: Reliability) -> str:
    """Return why the search subjects have no curve; empty if they have. A row is counted once for all repeats."""
    n = sum(each.rows for each in found.bins) // ensemble.run.folds.repeats
    what = "people" if ensemble.run.info.level == "person" else "windows"
    return f"No reliability curve of the search {what}: {n} are too few." if n < MIN_CALIBRATED else ""


def describe_calibration(found: Reliability) -> str:
    """Return a sentence where the expected calibration error is larger with calibration than without; else empty."""
    after, before = found.calibration_error, found.error_before
    if after is None or before is None or after.value is None or before.value is None:
        return ""
    if round(after.value, 3) <= round(before.value, 3):
        return ""
    numbers = f"expected calibration error is {format_score(after.value)} with it, {format_score(before.value)} without"
    text = f"Calibration did not help here: the {numbers}."
    if after.low is None or before.high is None:
        return text
    if after.low > before.high:
        return f"{text} Their intervals do not overlap: it made the probabilities less reliable."
    return f"{text} Their intervals overlap, so the difference may be chance."


def _of_values(ensemble: Ensemble) -> Markup:
    """Render the section of a target with several values: the intervals of each; empty without nested predictions."""
    known = [each for each in ensemble.outputs if each.coverage]
    if not known:
        return Markup()
    panels = [
        Panel(partial(coverage_plot, Reliability(coverage=each.coverage)), f"Coverage of intervals of {each.name}")
        for each in known
    ]
    names = ", ".join(each.name for each in known)
    caption = (
        f"Observed coverage by nominal coverage, of intervals around nested predictions of {names}, in this order."
    )
    unit = target_unit(ensemble.run.info.target)
    tables = [(each.name, _coverage_table(Reliability(coverage=each.coverage), unit)) for each in known]
    rows = [[name, *row] for name, of_value in tables for row in of_value.rows]
    table = Table(["value", "nominal coverage", "observed coverage", "95 % interval", "width"], rows)
    return render_template(
        "reliability", figure=draw_figure(panels, caption), table=table, values=True, few="", effect=""
    )


def _shown(estimate: Estimate) -> tuple[str, str]:
    """Return a number and its interval as texts."""
    value, low, high = (np.nan if each is None else each for each in (estimate.value, estimate.low, estimate.high))
    return format_score(value), format_interval(low, high)


def _coverage_table(found: Reliability, unit: str) -> Table:
    rows = [[f"{each.level:.0%}", *_shown(each.observed), f"{each.width:.3g} {unit}"] for each in found.coverage]
    return Table(["nominal coverage", "observed coverage", "95 % interval", "width"], rows)


def _error_table(found: Reliability) -> Table:
    error = found.calibration_error or Estimate(value=None, low=None, high=None)
    before = found.error_before or Estimate(value=None, low=None, high=None)
    rows = [["calibrated", *_shown(error)], ["as the networks gave them", *_shown(before)]]
    return Table(["probabilities", "expected calibration error", "95 % interval"], rows)


def event_name(classes: Sequence[str]) -> str:
    """Return what a probability is of: the second of two classes, or the most probable of more."""
    return f"P({classes[1]})" if len(classes) == 2 else "probability of the predicted class"


def reliability_plot(found: Reliability, event: str) -> Figure:
    """Plot observed frequencies by predicted probability."""
    figure, (axes,) = new_figure(3.4, 3.3)
    plot_frequencies(axes, found.bins, event)
    return figure


def plot_frequencies(axes: Axes, bins: Sequence[Bin], event: str) -> None:
    """Plot observed frequencies and their intervals by predicted probability."""
    axes.plot([0, 1], [0, 1], color=GREY, lw=1, label="perfect")
    _points(axes, [each.predicted for each in bins], [each.observed for each in bins])
    axes.set(xlabel=f"predicted {event}", ylabel="observed frequency", aspect="equal")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))


def coverage_plot(found: Reliability) -> Figure:
    """Plot the observed coverage of intervals by the nominal one."""
    figure, (axes,) = new_figure(3.4, 3.3)
    axes.plot([0.4, 1], [0.4, 1], color=GREY, lw=1, label="observed = nominal")
    _points(axes, [each.level for each in found.coverage], [each.observed for each in found.coverage])
    axes.set(xlabel="nominal coverage", ylabel="observed coverage", xlim=(0.45, 1.0), ylim=(None, 1.03))
    axes.legend(loc="upper left", fontsize=8.5, frameon=False)
    return figure


def _points(axes: Axes, x: list[float], estimates: list[Estimate]) -> None:
    """Plot estimates with bars for their intervals, as far as they have any."""
    known = [(at, each) for at, each in zip(x, estimates, strict=True) if each.value is not None]
    values = np.array([each.value for _, each in known], dtype=float)
    low = np.array([each.low for _, each in known], dtype=float)  # None is NaN
    high = np.array([each.high for _, each in known], dtype=float)
    reach = np.maximum(np.stack([values - low, high - values]), 0.0)
    axes.errorbar(
        [at for at, _ in known], values, yerr=reach, fmt="o-", color=BLUE, lw=1.4, ms=4.5, elinewidth=1, capsize=2
    )
