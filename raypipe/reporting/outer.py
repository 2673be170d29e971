"""Show an outer cross-validation: its status as lines, and its report as an HTML page."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raypipe.core.levels import describe_level
from raypipe.core.metrics import get_metric
from raypipe.core.outputs import as_columns
from raypipe.core.text import format_value
from raypipe.ensembles.comparisons import level_of_best
from raypipe.ensembles.fitted import read_ensemble_record
from raypipe.ensembles.labels import describe_target, metric_label, resampled
from raypipe.ensembles.outer import OuterScores, read_scores, write_verdict
from raypipe.ensembles.scores import difference_interval, score_interval
from raypipe.reporting.page import (
    FigureBlock,
    Panel,
    Table,
    draw_figure,
    format_interval,
    format_score,
    render_template,
    save_page,
    use_minus_signs,
)
from raypipe.reporting.plotting import BLUE, DARK, LIGHT, ORANGE, PAPER, draw_legend_above, new_figure
from raypipe.reporting.sections.held_out import value_panels
from raypipe.reporting.status import Status, read_status
from raypipe.storage.outer_run import OuterRun
from raypipe.storage.remote import shell_quoted, without_settings
from raypipe.storage.run_store import RunStore

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def status_lines(outer: OuterRun) -> list[str]:
    """Return the status of an outer cross-validation as lines: each part's trials and driver, and the next step."""
    info, places = outer.info, outer.places
    lines = [f"{outer.where}: {info.target}, outer cross-validation of {len(places)} parts"]
    runs = [RunStore.open(place) if RunStore.exists(place) else None for place in places]
    states = [read_status(run) if run else None for run in runs]
    lines += [
        f"  part-{number}: " + (_part_line(run, state) if run and state else _unbegun_line(part))
        for number, (run, state, part) in enumerate(zip(runs, states, info.parts, strict=True), start=1)
    ]
    name = shell_quoted(outer.where)
    if any(state is None or _trials_left(state) for state in states):
        lines.append(f"  continue with: raypipe resume {name}")
    elif not all(read_ensemble_record(run) for run in runs if run):
        lines.append(f"  next: raypipe ensemble {name}")
    else:
        scores = read_scores(outer)
        lines += [f"  {line}" for line in (write_verdict(outer, scores), *scores.notes)]
    return lines


def _unbegun_line(part: list[str]) -> str:
    return f"not begun; {len(part)} subjects to hold out"


def _part_line(run: RunStore, status: Status) -> str:
    ranked, record = run.ranked(), read_ensemble_record(run)
    best = f", best {ranked[0].score:z.4f} (trial {ranked[0].number})" if ranked else ""
    line = f"{sum(status.states.values())} of {status.planned} trials{best}, {status.driver}"
    return line + (f"; ensemble: {record.method}" if record else "")


def _trials_left(status: Status) -> bool:
    ended = [row for row in status.rows if row.state not in ("running", "interrupted")]
    return len(ended) < status.planned or not ended


def write_outer_report(outer: OuterRun, out: str | Path | None = None) -> str:
    """Write the report of an outer cross-validation, one HTML file, and return its path or URI.

    Parameters
    ----------
    outer
        An outer cross-validation whose parts all have an ensemble.
    out
        HTML file; None for ``report.html`` in its folder.

    Raises
    ------
    UserError
        A part has no ensemble yet, or a record is damaged.
    """
    return save_page(_render(outer, read_scores(outer)), outer.folder, out)


def _render(outer: OuterRun, scores: OuterScores) -> str:
    metric = metric_label(scores.metric)
    return render_template(
        "outer",
        target=describe_target(outer.info.target),
        spec=outer.info.target,
        run=without_settings(outer.where).rpartition("/")[2],
        n_parts=len(outer.info.parts),
        verdict=use_minus_signs(write_verdict(outer, scores)),
        better="lower" if get_metric(scores.metric).sign > 0 else "higher",
        metric=metric,
        level=describe_level(scores.metric, scores.level).replace("fold", "part"),
        resampled=resampled(scores.subjects, len(np.unique(scores.units))),
        scores=_score_table(scores, metric),
        notes=scores.notes,
        parts=_part_table(scores.by_part, metric),
        baselines=_baseline_table(scores, metric),
        choice_level=f"{100 * level_of_best(len(scores.baselines)):.3g}",
        parameters=_parameter_table(scores.parameters),
        figure=_figure(outer, scores, metric),
    )


def _score_table(scores: OuterScores, metric: str) -> Table:
    inner, difference = scores.interval, scores.difference
    gain = f"{format_score(scores.score - scores.constant, sign=True)} "
    rows = [
        [
            "ensemble of each part",
            format_score(scores.score),
            format_interval(inner.low, inner.high),
            gain + f"({format_interval(difference.low, difference.high, sign=True)})",
        ],
        ["without EEG", format_score(scores.constant), "", ""],
    ]
    return Table(
        ["predictor", f"{metric} of {scores.subjects} subjects", "95 % interval", "difference from chance"], rows
    )


def _part_table(by_part: pd.DataFrame, metric: str) -> Table:
    head = ["part", "subjects held out", "method", f"{metric} nested inside", f"{metric} held out", "without EEG"]
    rows = [
        [
            str(part),
            str(row["subjects"]),
            str(row["method"]),
            *(format_score(row[n]) for n in ("nested", "score", "constant")),
        ]
        for part, row in by_part.astype(object).iterrows()
    ]
    means = by_part[["nested", "score", "constant"]].mean()
    rows.append(["mean", "", "", *(format_score(float(value)) for value in means)])
    return Table(head, rows, {0, 2})


def _baseline_table(scores: OuterScores, metric: str) -> Table | None:
    """Return the scores of classical baselines on all subjects, beside that of the ensembles."""
    rows = []
    for name, each in {"ensemble of each part": scores.rows.predictions, **scores.baselines}.items():
        value = scores.evaluation_set.score(scores.metric, each)
        inner = score_interval(scores.metric, scores.evaluation_set, each)
        rows.append([name, format_score(value), format_interval(inner.low, inner.high), _to_ensembles(scores, each)])
    rows[0][-1] = ""
    head = ["predictor", f"{metric} of {scores.subjects} subjects", "95 % interval", "difference from the ensembles"]
    return Table(head, rows) if scores.baselines else None


def _to_ensembles(scores: OuterScores, predictions: NDArray[np.float64]) -> str:
    """Return the paired difference of predictions to those of the ensembles, with its interval."""
    metric, subjects, ours = scores.metric, scores.evaluation_set, scores.rows.predictions
    value = subjects.score(metric, predictions) - subjects.score(metric, ours)
    found = difference_interval(metric, subjects, predictions, ours)
    return f"{format_score(value, sign=True)} ({format_interval(found.low, found.high, sign=True)})"


def _parameter_table(parameters: pd.DataFrame) -> Table | None:
    """Return the parameters of the parts' best trials; those that differ first."""
    if not len(parameters):
        return None
    shown = parameters.astype(object).map(lambda value: "" if _missing(value) else format_value(value))
    order = sorted(shown.index, key=lambda name: (shown.loc[name].nunique() == 1, name))
    rows = [[str(name), *map(str, shown.loc[name])] for name in order]
    return Table(["parameter", *(f"part {part}" for part in shown.columns)], rows)


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


def _figure(outer: OuterRun, scores: OuterScores, metric: str) -> FigureBlock:
    panels = [Panel(partial(scores_by_part, scores, metric), f"{metric} of each part")]
    caption = f"{metric} of each part on the subjects that it held out, and of all subjects."
    if outer.info.kind == "regression":
        rows = scores.rows
        mean_K = scores.constant_predictions.mean(axis=0)
        info, by_subject = outer.runs[0].info, scores.level == "person"
        panels = [*value_panels(info, as_columns(rows.targets), rows.predictions, mean_K, by_subject), *panels]
        caption = f"Left: predicted against true values. Right: {caption}"
    return draw_figure(panels, caption)


def scores_by_part(scores: OuterScores, metric: str) -> Figure:
    """Plot the held-out score of each part beside that of the prediction without EEG, and the score of all subjects."""
    table = scores.by_part
    figure, (axes,) = new_figure(float(np.clip(0.5 * len(table) + 2.0, 4.2, 8.4)), 3.6)
    axes.vlines(table.index, table["constant"], table["score"], color=LIGHT, lw=1.2)
    axes.plot(table.index, table["constant"], "o", mfc=PAPER, mec=ORANGE, ms=6, label="without EEG")
    axes.plot(table.index, table["score"], "o", color=BLUE, ms=6, label="ensemble")
    axes.axhline(scores.score, color=DARK, lw=1, ls="--", label="all subjects")
    axes.set_xticks(table.index)
    axes.set(xlabel="part", ylabel=metric)
    draw_legend_above(axes)
    return figure
