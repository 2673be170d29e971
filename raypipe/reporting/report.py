"""A run's report: one HTML file that opens anywhere, the answer first, then what it rests on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypipe.core.metrics import score
from raypipe.ensembles.fit import LOOKS, Ensemble
from raypipe.ensembles.verdict import ENSEMBLE, finding, oof_note, predicted, spoken, unit
from raypipe.reporting import diversity, figures
from raypipe.reporting import html as page
from raypipe.reporting.advice import advise
from raypipe.reporting.baselines import read_baselines
from raypipe.reporting.filter_patterns import filters
from raypipe.reporting.provenance import provenance_section
from raypipe.reporting.timeline import Span, breaks, course_section, effort, ends, spans
from raypipe.search.reruns import spreads
from raypipe.storage.files import read_json, write_atomic
from raypipe.storage.remote import without_settings
from raypipe.storage.run_store import RunStore, TrialResult

NAME = "report.html"
CURVES = 4
"""Trials whose learning curves are shown."""
TONES = {"carries": "good", "worse": "bad"}
"""The colour of the answer, by `verdict.finding`; all others are neutral."""


def write_report(run: RunStore, out: str | Path | None = None) -> Path | str:
    """Write a run's report; it may be unfinished or without an ensemble, and says so.

    Parameters
    ----------
    run
        The run.
    out
        HTML file; None for ``report.html`` in the run.

    Returns
    -------
    where
        Path of the file; its URI for a run that lies behind one.
    """
    text = render(run).encode()
    if out is not None:
        write_atomic(Path(out), lambda file: file.write(text))
        return Path(out)
    run.folder.write(NAME, text)
    return run.local / NAME if run.local else f"{without_settings(run.where)}/{NAME}"


def write_plots(run: RunStore, ensemble: Ensemble) -> None:
    """Write the pictures of an ensemble's members beside its table: ``ensemble/curve.svg``, ``ensemble/errors.svg``."""
    if ensemble.diversity:
        curve = diversity.worth(ensemble.diversity, run.info.metric)
        run.folder.write("ensemble/curve.svg", figures.svg(curve))
        run.folder.write("ensemble/errors.svg", figures.svg(diversity.likeness(ensemble.diversity)))


def render(run: RunStore) -> str:
    """The report as HTML."""
    ensemble = Ensemble.load(run) if Ensemble.exists(run) else None
    results = run.results()
    # Of a folder of this machine its end alone: a report is passed on, and who made it lives in its beginning.
    name = "/".join(run.local.parts[-2:]) if run.local else without_settings(run.where)
    found = spans(run, results)
    ended = f"{len(results)} of {len(run.numbers())} trials ended"
    parts = [
        _answer(run, ensemble),
        _search(run, results, found),
        _held_out(run, ensemble) if ensemble else "",
        _baselines(run, ensemble) if ensemble else "",
        _members(ensemble) if ensemble else "",
        filters(run),
        *course_section(run, results, found),
        ends(run, results),
        effort(run, results, found),
        _next(run, name),
        provenance_section(run, results, name),
    ]
    written = time.strftime("%Y-%m-%d %H:%M", time.localtime())
    return page.PAGE.substitute(
        title=page.text(f"{predicted(run.info.task)}: run {name}"),
        heading=page.text(f"Predicting {predicted(run.info.task)} from EEG"),
        about=page.text(f"Run {name} · task {run.info.task} · {ended} · written {written}"),
        body="\n".join(part for part in parts if part),
    )


def _next(run: RunStore, name: str) -> str:
    """A word at the end: whether more trials would help, what to widen, and the command for it."""
    found = advise(run, name)
    items = "".join(f"<li>{page.text(line[0].upper() + line[1:])}</li>" for line in found.lines)
    return page.section("What next", f"<ul>{items}</ul>")


def _answer(run: RunStore, ensemble: Ensemble | None) -> str:
    if ensemble is None:
        best = run.ranked()
        so_far = (
            f" The best trial so far, number {best[0].number}, reaches {best[0].score:.4f} out of fold, which is "
            "optimistic: it was chosen for that score."
            if best
            else ""
        )
        looks = len(read_json(run.folder, LOOKS)) if run.folder.exists(LOOKS) else 0
        seen = "No ensemble has been fitted yet, so the held-out subjects have not been looked at: there is no answer."
        if looks:
            seen = f"The held-out subjects were looked at {looks} time(s), but no ensemble was saved."
        return page.section(
            "The answer",
            f'<div class="verdict open"><p>{page.text(seen + so_far)}</p>',
            "<p>Fit one with: <code>raypipe ensemble RUN</code></p></div>",
        )
    metric = spoken(run.info.metric)
    tables = [_scores(ensemble, metric, "")]
    if "subject_held_out" in ensemble.table:
        tables = [
            "<h3>One mean prediction a subject: what counts here</h3>",
            _scores(ensemble, metric, "subject_"),
            "<h3>Every window by itself</h3>",
            *tables,
        ]
    better = "lower" if run.info.direction == "minimize" else "higher"
    first = ensemble.table.iloc[0]
    notes = [
        f"{metric}: {better} is better. Held out: {int(first['subjects'])} subjects, {int(first['windows'])} windows; "
        "intervals by bootstrap over subjects.",
        "Out-of-fold scores are optimistic: the trials and their epochs were chosen on them. Only the held-out columns "
        "say what to expect of new people.",
    ]
    notes += oof_note(run.info.metric, float(ensemble.table["oof"].iloc[-1]))
    named = (ensemble.diversity or {}).get("members") or [str(member) for member in ensemble.members]
    considered = [name for name in named if " at " not in name]  # snapshots go with their trials
    current = [f"trial {result.number}" for result in run.ranked()[: len(considered)]]
    stale = (
        "<p class='note'>The run has gone on since this ensemble was fitted: its best trials are others now.</p>"
        if current != considered
        else ""
    )
    tone = TONES.get(finding(ensemble.table, run.info.metric), "open")
    return page.section(
        "The answer",
        f'<div class="verdict {tone}">{_paragraphs(ensemble.verdict)}</div>',
        stale,
        *tables,
        *(f'<p class="note">{page.text(note)}</p>' for note in notes),
    )


def _paragraphs(verdict: str) -> str:
    """The verdict as HTML, its plain last sentence by itself."""
    told, mark, short = page.text(page.signs(verdict)).partition("In short: ")
    return f"<p>{told.strip()}</p>" + (f"<p><strong>{mark}{short}</strong></p>" if mark else "")


def _scores(ensemble: Ensemble, metric: str, level: str) -> str:
    head = ["predictor", f"{metric} out of fold", f"{metric} held out", "95 % interval", "difference to no EEG"]
    rows = []
    for predictor, row in ensemble.table.iterrows():
        value, low, high = (row[f"{level}difference{end}"] for end in ("", "_low", "_high"))
        apart = f"{page.number(value, sign=True)} ({page.span(low, high, sign=True)})"
        rows.append(
            [
                str(predictor) + (f" ({ensemble.method})" if predictor == ENSEMBLE else ""),
                page.number(row[f"{level}oof"]),
                page.number(row[f"{level}held_out"]),
                page.span(row[f"{level}low"], row[f"{level}high"]),
                "" if predictor == ensemble.table.index[-1] else apart,
            ]
        )
    return page.table(head, rows)


def _baselines(run: RunStore, ensemble: Ensemble) -> str:
    found = read_baselines(run)
    if not found:
        return ""
    rows = [["for comparison: the ensemble", page.number(float(ensemble.table["held_out"][ENSEMBLE]))]]
    rows += [
        [
            row["name"] + ("" if row["usable"] else " (not usable at inference: no scorer gives it)"),
            page.number(float("nan") if row["score"] is None else row["score"]),
        ]
        for row in found
    ]
    note = "Classic baselines, fitted on all subjects that are not held out, the penalty chosen by subject folds."
    head = ["baseline", f"{spoken(run.info.metric)} held out"]
    return page.section("Without a network", page.table(head, rows), f'<p class="note">{note}</p>')


def _search(run: RunStore, results: Sequence[TrialResult], found: Sequence[Span]) -> str:
    if not any(result.score is not None for result in results):
        return page.section("The search", "<p>No trial has ended with a score yet.</p>")
    numbers = [result.number for result in run.ranked(results)[:CURVES]]
    metric = spoken(run.info.metric)
    panels: list[page.Panel] = [(lambda: figures.trials_in_order(run, results), f"Out-of-fold {metric} of every trial")]
    words = "Every trial's score over all folds: by trial, in the order they were begun"
    if found:
        finished = {span.result.number: span.finished for span in found}
        begun = min(span.asked for span in found)
        over = partial(figures.trials_in_time, run, results, begun, finished, breaks(found))
        panels.append((over, f"Out-of-fold {metric} over the time since the search began"))
        words += "; and by the clock, where each trial ended"
    blocks = [page.pictures(panels, f"{words}.")]
    curves = {number: history for number in numbers if (history := run.history(number))}
    if curves:
        width = 2.75 if len(curves) == 3 else 4.2
        axis = figures.span_of(list(curves.values()), run.info.metric)
        blocks.append(
            page.pictures(
                [
                    (
                        partial(figures.learning_curve, number, history, run.info.metric, axis, width),
                        f"Learning curve of trial {number}",
                    )
                    for number, history in curves.items()
                ],
                "The best trials, epoch by epoch: the score over all folds; the band spans the folds.",
            )
        )
    return page.section("The search", *blocks, *_seeds(run))


def _seeds(run: RunStore) -> list[str]:
    """Scores of trials that were trained again on new seeds; nothing where none was."""
    rows = [
        [str(s.trial), *map(page.number, (s.found, s.mean, s.sd)), str(len(s.again))] for s in spreads(run) if s.again
    ]
    if not rows:
        return []
    note = "As found, a score is the best of many, and so optimistic; on new seeds, only the epoch was chosen by it."
    head = ["trial", "as found", "mean on new seeds", "SD", "seeds"]
    return [page.table(head, rows), f'<p class="note">{page.text(note)}</p>']


def _held_out(run: RunStore, ensemble: Ensemble) -> str:
    held, side = ensemble.held_out, ensemble.held_out.side
    own = "subject_held_out" in ensemble.table
    if run.info.kind == "regression":
        one = side.per_subject()
        y, p = (one.targets, side.mean(held.predictions)[:, 0]) if own else (held.targets, held.predictions[:, 0])
        draw = partial(figures.truth, y, p, float(held.constant[0]), own, unit(run.info.task))
        panels: list[page.Panel] = [(draw, "Predicted against true values")]
        words = "Predicted against true values"
    else:
        given = held.targets, held.predictions, run.info.classes
        panels = [(partial(figures.roc, *given), "ROC curve")]
        if len(run.info.classes) == 2:
            panels.append((partial(figures.calibration, *given), "Calibration"))
        panels.append((partial(figures.confusion, *given), "Confusion matrix"))
        words = "Windows of all subjects pooled; in the confusion matrix each counts for its most probable class"
    names, values, without, label = per_subject(run, ensemble)
    panels.append((partial(figures.subjects_in_a_row, names, values, without, label), label))
    return page.section("Held-out subjects", page.pictures(panels, f"{words}. Each subject: {label}."))


def per_subject(run: RunStore, ensemble: Ensemble) -> tuple[list[str], NDArray[Any], NDArray[Any], str]:
    """One score a held-out subject, of the ensemble and of the answer without EEG.

    Regression: root mean square error in target units. Classes: AUC where every subject has all classes, else the mean
    probability given to the true class.
    """
    held = ensemble.held_out
    names = sorted(set(held.subjects.tolist()))
    inside = [held.subjects == name for name in names]
    n_classes = len(run.info.classes)
    if not n_classes:
        errors = [np.sqrt(np.mean((held.predictions[i, 0] - held.targets[i]) ** 2)) for i in inside]
        without = [np.sqrt(np.mean((held.constant[0] - held.targets[i]) ** 2)) for i in inside]
        return names, np.array(errors), np.array(without), f"root mean square error ({unit(run.info.task)})"
    if run.info.metric == "auc" and all(len(np.unique(held.targets[i])) == n_classes for i in inside):
        scores = [score("auc", held.targets[i], held.predictions[i]) for i in inside]
        return names, np.array(scores), np.full(len(names), 0.5), "AUC within the subject"
    given = held.predictions[np.arange(len(held.targets)), held.targets]
    constant = held.constant[held.targets]
    label = "mean probability of the true class"
    return names, np.array([given[i].mean() for i in inside]), np.array([constant[i].mean() for i in inside]), label


def _members(ensemble: Ensemble) -> str:
    if ensemble.soup is not None and ensemble.soup.student:
        words = (
            f"The ensemble that was distilled, by '{ensemble.method}'. What is shipped is one network that was trained "
            "to answer as it does."
        )
    elif ensemble.soup is not None:
        words = "Each fold's network is the mean of these members' weights; the answers of the folds are averaged."
    else:
        words = (
            f"Weights by '{ensemble.method}', from out-of-fold predictions only. Each member stands for the mean of "
            f"its {ensemble.run.folds.n_folds} fold models."
        )
    draw = partial(figures.weights_in_a_row, [str(member) for member in ensemble.members], ensemble.weights)
    blocks = [page.picture(draw, "Weight of each member", words), *_nested(ensemble)]
    return page.section("The ensemble", *blocks)


def _nested(ensemble: Ensemble) -> list[str]:
    """Nested scores and the members' diversity; none for ensembles of raypipe 0.1."""
    if "nested" not in ensemble.table or not ensemble.diversity:
        return []
    metric = ensemble.run.info.metric
    rows = []
    for name, row in ensemble.table.iterrows():
        apart, low, high = (row[f"nested_to_best{end}"] for end in ("", "_low", "_high"))
        rows.append(
            [
                str(name),
                page.number(row["nested"]),
                page.span(row["nested_low"], row["nested_high"]),
                page.number(row["optimism"], sign=True),
                f"{page.number(apart, sign=True)} ({page.span(low, high, sign=True)})",
            ]
        )
    head = ["predictor", f"nested {spoken(metric)}", "95 % interval", "nested minus naive", "difference to best trial"]
    note = (
        "Nested: weights, the choice of trial and of method were made on other subjects than those scored. Naive: on "
        "the same ones. Windows by themselves; intervals by bootstrap over subjects."
    )
    if len(ensemble.members) == 1 and ensemble.soup is None:
        note += (
            " The first row is of the choice among methods, made anew on other subjects each time; what it chose in "
            "the end, with all of them, is one trial by itself."
        )
    alike = partial(diversity.likeness, ensemble.diversity)
    more = partial(diversity.worth, ensemble.diversity, metric)
    order = "The order of members is found on other subjects than those scored."
    panels = [
        (more, "Nested score against the number of members"),
        (alike, "Correlation of the members' errors"),
    ]
    caption = f"What more members are worth. {order} And how alike the members' errors are."
    return [
        page.table(head, rows),
        f'<p class="note">{page.text(note)}</p>',
        page.pictures(panels, caption),
    ]
