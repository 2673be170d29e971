"""Section "Result": the verdict and its scores; section "Baselines"."""

from __future__ import annotations

import math

from markupsafe import Markup

from raypipe.core.metrics import get_metric
from raypipe.ensembles.candidates import best_trials
from raypipe.ensembles.evaluation_log import read_evaluations
from raypipe.ensembles.fitted import Ensemble
from raypipe.ensembles.labels import class_frequency_note, metric_label, resampled
from raypipe.ensembles.scores import ENSEMBLE
from raypipe.ensembles.verdict import held_out_evidence
from raypipe.reporting.baselines import read_baselines
from raypipe.reporting.page import Table, format_interval, format_score, render_template, use_minus_signs
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
    by_subject = "subject_held_out" in ensemble.table
    last_oof = float(ensemble.table["oof"].iloc[-1])
    return render_template(
        "result",
        tone=_TONES.get(held_out_evidence(ensemble.table, run.info.metric), "neutral"),
        verdict=use_minus_signs(ensemble.verdict),
        outdated=_outdated(run, ensemble),
        subject_scores=_score_table(ensemble, "subject_") if by_subject else None,
        window_scores=_score_table(ensemble, ""),
        metric=metric_label(run.info.metric),
        better="lower" if get_metric(run.info.metric).sign > 0 else "higher",
        subjects=int(ensemble.table["subjects"].iloc[0]),
        windows=int(ensemble.table["windows"].iloc[0]),
        resampled=resampled(*map(int, ensemble.table[["subjects", "units"]].iloc[0])),
        scored=run.scored,
        notes=[*ensemble.notes, *class_frequency_note(run.info.metric, last_oof)],
    )


def _outdated(run: RunStore, ensemble: Ensemble) -> bool:
    """Return whether the run's best trials differ from those that the ensemble was fitted on."""
    trials = [name for name in ensemble.diversity["members"] if " at " not in name]  # snapshots belong to their trials
    return trials != [f"trial {result.number}" for result in best_trials(run, run.results(), ensemble.top)]


def _score_table(ensemble: Ensemble, level: str) -> Table:
    """Return scores of all predictors, by window (`level` is empty) or by subject (``subject_``)."""
    metric = metric_label(ensemble.run.info.metric)
    rows = []
    for name, row in ensemble.table.iterrows():
        value, low, high = (row[f"{level}difference{end}"] for end in ("", "_low", "_high"))
        difference = f"{format_score(value, sign=True)} ({format_interval(low, high, sign=True)})"
        rows.append(
            [
                f"{name} ({ensemble.method})" if name == ENSEMBLE else str(name),
                format_score(row[f"{level}oof"]),
                format_score(row[f"{level}held_out"]),
                format_interval(row[f"{level}low"], row[f"{level}high"]),
                "" if name == ensemble.table.index[-1] else difference,
            ]
        )
    head = ["predictor", f"{metric} out of fold", f"{metric} held out", "95 % interval", "difference from chance"]
    return Table(head, rows)


def baselines_section(run: RunStore, ensemble: Ensemble) -> Markup:
    """Render the section "Baselines"; empty where none were scored."""
    baselines = read_baselines(run)
    if not baselines:
        return Markup()
    level = "subject_" if run.info.level == "person" and "subject_held_out" in ensemble.table else ""
    own = (float(ensemble.table[f"{level}{column}"][ENSEMBLE]) for column in ("oof", "held_out"))
    rows = [["for comparison: the ensemble", *map(format_score, own)]]
    for row in baselines:
        name = row.name + ("" if row.usable else " (not usable at inference: a scorer gives no age)")
        rows.append([name, *(format_score(math.nan if value is None else value) for value in (row.oof, row.score))])
    metric = metric_label(run.info.metric)
    table = Table(["baseline", f"{metric} out of fold", f"{metric} held out"], rows)
    return render_template("baselines", table=table, scored=run.scored)
