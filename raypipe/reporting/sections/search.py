"""Section "Search": scores of all trials, learning curves of the best, and scores on new seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from raypipe.core.metrics import get_metric
from raypipe.ensembles.labels import metric_label
from raypipe.reporting.page import FigureBlock, Panel, Table, draw_figure, format_score, render_template
from raypipe.reporting.plotting import (
    BLUE,
    CHANCE,
    DARK,
    GREY,
    MANY,
    MUTED,
    PAPER,
    draw_chance,
    draw_legend_above,
    new_figure,
    shade_pauses,
    time_unit,
    widen_score_axis,
)
from raypipe.reporting.trial_spans import TrialSpan, find_pauses
from raypipe.search.reruns import spreads
from raypipe.storage.records import Epoch, TrialResult
from raypipe.storage.run_store import RunStore

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_CURVES = 4
"""Trials whose learning curves are shown."""
_MARKERS = {"complete": ("o", BLUE, BLUE), "stopped": ("s", PAPER, BLUE), "pruned": ("v", PAPER, GREY)}
"""Marker, face colour and edge colour of a trial by its state."""


def search_section(run: RunStore, results: Sequence[TrialResult], spans: Sequence[TrialSpan]) -> Markup:
    """Render the section; `spans` are the times of the trials that have ended."""
    if not any(result.score is not None for result in results):
        return render_template("search", scores=None, curves=None, reruns=None)
    return render_template(
        "search",
        scores=_score_figure(run, results, spans),
        curves=_curve_figure(run, results),
        reruns=_rerun_table(run),
    )


def _score_figure(run: RunStore, results: Sequence[TrialResult], spans: Sequence[TrialSpan]) -> FigureBlock:
    metric, scored = metric_label(run.info.metric), run.scored
    panels = [Panel(partial(scores_by_number, run, results), f"Out-of-fold {metric} of each trial")]
    if len(spans) < 2:
        return draw_figure(panels, f"Score of each trial ({scored}), by start order.")
    by_time = partial(scores_by_time, run, results, spans)
    panels.append(Panel(by_time, f"Out-of-fold {metric} of each trial by end time"))
    return draw_figure(panels, f"Score of each trial ({scored}), by start order (first) and by end time (second).")


def _curve_figure(run: RunStore, results: Sequence[TrialResult]) -> FigureBlock | None:
    # What is fitted in closed form, in one epoch, has no curve.
    numbers = [result.number for result in run.ranked(results) if result.epochs > 1][:MAX_CURVES]
    curves = {number: history for number in numbers if (history := run.history(number))}
    if not curves:
        return None
    width = 2.75 if len(curves) == 3 else 4.2
    limits = shared_limits(list(curves.values()), run.info.metric)
    panels = [
        Panel(
            partial(learning_curve, number, history, run.info.metric, limits, width),
            f"Learning curve of trial {number}",
        )
        for number, history in curves.items()
    ]
    return draw_figure(
        panels,
        f"Learning curves of the best trials with several epochs: {run.scored}; the band is the range over folds.",
    )


def _rerun_table(run: RunStore) -> Table | None:
    """Return scores of trials that were trained again on new seeds; None where there are none."""
    rows = [
        [str(s.trial), *map(format_score, (s.found, s.mean, s.sd)), str(len(s.scores))]
        for s in spreads(run)
        if s.scores
    ]
    return Table(["trial", "in the search", "mean on new seeds", "SD", "seeds"], rows) if rows else None


def scores_by_number(run: RunStore, results: Sequence[TrialResult]) -> Figure:
    """Plot the score of each trial by its number, the best score so far, and the score without EEG."""
    figure, (axes,) = new_figure(4.2, 3.3)
    # The line of the best score is drawn up to the last trial, also where that has no score.
    _plot_scores(axes, run, _scored(results), lambda r: float(r.number), max(r.number for r in results))
    axes.set_xlabel("trial")
    axes.set_xlim(-0.5, max(r.number for r in results) + 0.5)
    axes.locator_params(axis="x", integer=True)
    draw_legend_above(axes)
    return figure


def scores_by_time(run: RunStore, results: Sequence[TrialResult], spans: Sequence[TrialSpan]) -> Figure:
    """Plot the score of each trial by the time when it ended, with the pauses of the run shaded."""
    figure, (axes,) = new_figure(4.2, 3.3)
    finished = {span.result.number: span.finished for span in spans}
    first, last = min(span.requested for span in spans), max(finished.values())
    unit, name = time_unit(last - first)
    scored = sorted((r for r in _scored(results) if r.number in finished), key=lambda r: finished[r.number])
    _plot_scores(axes, run, scored, lambda r: (finished[r.number] - first) / unit, (last - first) / unit)
    shade_pauses(axes, find_pauses(spans), first, unit)
    axes.set_xlim(0.0, 1.04 * (last - first) / unit)  # the last marker is drawn whole
    axes.set_xlabel(f"{name} since the first trial was queued")
    draw_legend_above(axes)
    return figure


def _scored(results: Sequence[TrialResult]) -> list[TrialResult]:
    return [r for r in results if r.score is not None and r.state != "failed"]


def _plot_scores(
    axes: Axes, run: RunStore, scored: Sequence[TrialResult], x_of: Callable[[TrialResult], float], end: float
) -> None:
    """Plot a marker for each trial and the best score so far, which is drawn up to x = `end`."""
    sign = get_metric(run.info.metric).sign
    for state, (marker, face, edge) in _MARKERS.items():
        points = [(x_of(r), r.score or 0.0) for r in scored if r.state == state]
        if points:
            pixels = len(points) > MANY  # which keep their colours on any page
            style: dict[str, Any] = {
                "mfc": "none" if pixels and face == PAPER else face,
                "mec": edge,
                "ms": 5.5,
                "ls": "none",
                "zorder": 3,
                "rasterized": pixels,
            }
            axes.plot(*zip(*points, strict=True), marker, label=state, **style)
    draw_chance(axes, run.info.metric)
    axes.set_ylabel(f"out-of-fold {metric_label(run.info.metric)}")
    _limit_scores(axes, run.info.metric, np.array([r.score for r in scored], dtype=float))
    done = [r for r in scored if r.state in ("complete", "stopped")]
    if len(done) > 1:
        best = (sign * np.minimum.accumulate([sign * (r.score or 0.0) for r in done])).tolist()
        x = [*map(x_of, done), end]
        axes.step(x, [*best, best[-1]], where="post", color=DARK, lw=1.2, label="best so far")


def _limit_scores(axes: Axes, metric: str, values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> None:
    """Fit the axis to the best 90 % of the scores, so that a diverged trial does not flatten the others."""
    if len(values) < 5:
        widen_score_axis(axes, metric)
        return
    sign = get_metric(metric).sign
    low, high = np.quantile(sign * values, [0.0, 0.9])
    bottom, top = np.sort(sign * np.array([low, high + 0.5 * (high - low) + 1e-6])).tolist()
    reference = CHANCE.get(metric, (values[0], ""))[0]
    margin = 0.06 * max(max(top, reference) - min(bottom, reference), 1e-6)
    axes.set_ylim(min(bottom, reference) - margin, max(top, reference) + margin)
    widen_score_axis(axes, metric)
    outside = int(np.sum((values < axes.get_ylim()[0]) | (values > axes.get_ylim()[1])))
    if outside:
        text = f"{outside} trial(s) outside the axis"
        axes.text(0.99, 0.98, text, fontsize=8, color=MUTED, ha="right", va="top", transform=axes.transAxes)


def learning_curve(
    number: int, history: Sequence[Epoch], metric: str, limits: tuple[float, float], width: float = 4.2
) -> Figure:
    """Plot the score over all folds after each epoch, and the range from the worst to the best fold.

    Parameters
    ----------
    number
        Of the trial.
    history
        Its epochs.
    metric
        Of the run.
    limits
        Of the score's axis, from `shared_limits`.
    width
        Inches.
    """
    figure, (axes,) = new_figure(width, 2.3)
    epochs = [e.epoch for e in history]
    folds = np.array([[np.nan if s is None else s for s in e.fold_scores] for e in history], dtype=float)
    known = ~np.isnan(folds).all(axis=1)
    if known.any():
        low, high = np.nanmin(folds[known], axis=1), np.nanmax(folds[known], axis=1)
        axes.fill_between(np.array(epochs)[known], low, high, color=BLUE, alpha=0.15, lw=0)
    axes.plot(
        epochs,
        np.array([e.score for e in history], dtype=float),
        color=BLUE,
        lw=1.6,
        marker="o" if len(epochs) < 3 else None,
        ms=4,
    )
    draw_chance(axes, metric)
    axes.set_title(f"trial {number}", fontsize=9.5)
    axes.set(xlabel="epoch", ylabel=metric_label(metric))
    axes.locator_params(axis="x", integer=True)
    axes.set_ylim(*limits)
    return figure


def shared_limits(histories: Sequence[Sequence[Epoch]], metric: str) -> tuple[float, float]:
    """Return axis limits that fit all these learning curves."""
    values = [s for history in histories for e in history for s in (e.score, *e.fold_scores) if s is not None]
    values += [CHANCE[metric][0]] if metric in CHANCE else []
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.05
    return low - margin, high + margin
