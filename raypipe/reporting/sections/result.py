"""Section "Result": the verdict, and scores at the primary level beside those of classical baselines."""

from __future__ import annotations

import math

from markupsafe import Markup

from raypipe.core.metrics import get_metric
from raypipe.ensembles.candidates import best_trials
from raypipe.ensembles.comparisons import level_of_best
from raypipe.ensembles.evaluation_log import read_evaluations
from raypipe.ensembles.fitted import Ensemble
from raypipe.ensembles.labels import calibration_note, class_frequency_note, metric_label, resampled
from raypipe.ensembles.scores import DISTILLED, ENSEMBLE, WINDOW
from raypipe.ensembles.verdict import held_out_evidence
from raypipe.reporting.page import Table, format_score, render_template, score_with_interval, use_minus_signs
from raypipe.storage.run_store import RunStore

_TONES = {"better": "positive", "worse": "negative"}
"""Colour of the verdict by `verdict.held_out_evidence`; all others are neutral."""


def result_section(run: RunStore, ensemble: Ensemble | None) -> Markup:
    """Render the section; without an ensemble it says that the held-out subjects have no scores yet."""
    return _unfitted_section(run) if ensemble is None else _fitted_section(run, ensemble)


def _unfitted_section(run: RunStore) -> Markup:
    best = run.ranked()
    return render_template("result_unfitted", best=best[0] if best else None, evaluations=len(read_evaluations(run)))


def _fitted_section(run: RunStore, ensemble: Ensemble) -> Markup:
    choices = sum(one.usable for one in ensemble.baselines)
    last_oof = float(ensemble.table["oof"].iloc[-1])
    return render_template(
        "result",
        tone=_TONES.get(held_out_evidence(ensemble.table, run.info.metric), "neutral"),
        verdict=use_minus_signs(ensemble.verdict),
        outdated=_outdated(run, ensemble),
        answer=_answer_table(ensemble),
        values=_value_table(ensemble) if ensemble.outputs else None,
        by_subject=ensemble.by_subject,
        window_scores=_window_table(ensemble) if ensemble.by_subject else None,
        metric=metric_label(run.info.metric),
        better="lower" if get_metric(run.info.metric).sign > 0 else "higher",
        subjects=int(ensemble.table["subjects"].iloc[0]),
        windows=int(ensemble.table["windows"].iloc[0]),
        resampled=resampled(*map(int, ensemble.table[["subjects", "units"]].iloc[0])),
        scored=run.scored,
        baselines=bool(ensemble.baselines),
        choice_level=f"{100 * level_of_best(choices):.3g}" if choices > 1 else "",
        notes=[
            *ensemble.notes,
            *calibration_note(run.info.metric, run.info.kind),
            *class_frequency_note(run.info.metric, last_oof),
        ],
    )


def _outdated(run: RunStore, ensemble: Ensemble) -> bool:
    """Return whether the run's best trials differ from those that the ensemble was fitted on."""
    trials = [name for name in ensemble.diversity["members"] if " at " not in name]  # snapshots belong to their trials
    return trials != [f"trial {result.number}" for result in best_trials(run, run.results(), ensemble.top)]


def _answer_table(ensemble: Ensemble) -> Table:
    """Return nested and held-out scores of all predictors at the primary level, and differences to what is shipped."""
    metric = metric_label(ensemble.run.info.metric)
    shipped = DISTILLED if ensemble.distilled else ENSEMBLE
    notes = {one.name: " (no EEG)" for one in ensemble.baselines if not one.usable}
    notes |= {ENSEMBLE: f" ({ensemble.method})", str(ensemble.table.index[-1]): " (no EEG)"}
    rows = []
    for name, row in ensemble.table.iterrows():
        values = {str(column): float(value) for column, value in row.items()}
        own = name == shipped
        rows.append(
            [
                f"{name}{notes.get(str(name), '')}",
                _with_interval(values, "nested", "nested_low", "nested_high"),
                _with_interval(values, "held_out", "low", "high"),
                "" if own else _signed(values, "nested_to_shipped"),
                "" if own else _signed(values, "to_shipped"),
            ]
        )
    to = f"difference from {'the distilled network' if ensemble.distilled else 'the ensemble'}"
    head = ["predictor", f"nested {metric}", f"held-out {metric}", f"nested {to}", f"held-out {to}"]
    return Table(head, rows, as_cards=True)


def _value_table(ensemble: Ensemble) -> Table:
    """Return the scores of each value of a target with several, whose means the answer has."""
    metric, last = metric_label(ensemble.run.info.metric), str(ensemble.table.index[-1])
    shipped = DISTILLED if ensemble.distilled else ENSEMBLE
    rows = []
    for each in ensemble.outputs:
        for name in (shipped, *(one.name for one in ensemble.baselines), last):
            cells = {column: each.cell(name, column) for column in each.table[name]}
            scores = ("nested", "nested_low", "nested_high"), ("held_out", "low", "high")
            rows.append([each.name, name, *(_with_interval(cells, *columns) for columns in scores)])
    return Table(["value", "predictor", f"nested {metric}", f"held-out {metric}"], rows, as_cards=True)


def _with_interval(row: dict[str, float], value: str, low: str, high: str, *, sign: bool = False) -> str:
    """Return a score, and its interval in a second line that no narrow screen breaks; empty where there is no score."""
    if math.isnan(row[value]):
        return "" if value.startswith("nested") else "undefined"
    return score_with_interval(row[value], row[low], row[high], sign)


def _signed(row: dict[str, float], name: str) -> str:
    return _with_interval(row, name, f"{name}_low", f"{name}_high", sign=True)


def _window_table(ensemble: Ensemble) -> Table:
    """Return scores of windows, which stand below those of subjects."""
    metric = metric_label(ensemble.run.info.metric)
    rows = []
    for name, row in ensemble.table.iterrows():
        values = {str(column).removeprefix(WINDOW): float(row[column]) for column in row.index if WINDOW in str(column)}
        difference = "" if name == ensemble.table.index[-1] else _signed(values, "difference")
        score = _with_interval(values, "held_out", "low", "high")
        rows.append([str(name), format_score(values["oof"]), score, difference])
    head = ["predictor", f"{metric} out of fold", f"{metric} held out", "held-out difference from chance"]
    return Table(head, rows, as_cards=True)
