"""Write a run's report, one HTML file that needs no other and begins with the result."""

from __future__ import annotations

import time
from pathlib import Path

from raypipe.ensembles.fitted import Ensemble
from raypipe.ensembles.labels import describe_target
from raypipe.reporting.advice import advise
from raypipe.reporting.page import encode_page, render_template, report_file
from raypipe.reporting.plotting import to_svg
from raypipe.reporting.sections.data import data_section
from raypipe.reporting.sections.ensemble import (
    MIN_CORRELATED,
    MIN_CURVE,
    ensemble_section,
    error_correlations,
    score_by_size,
)
from raypipe.reporting.sections.filters import filters_section
from raypipe.reporting.sections.held_out import held_out_section
from raypipe.reporting.sections.importance import importance_section
from raypipe.reporting.sections.outcomes import halving_section, outcomes_section
from raypipe.reporting.sections.provenance import provenance_section
from raypipe.reporting.sections.reliability import reliability_section
from raypipe.reporting.sections.result import result_section
from raypipe.reporting.sections.search import search_section
from raypipe.reporting.sections.stores import stores_section
from raypipe.reporting.sections.time_use import time_section
from raypipe.reporting.sections.timeline import timeline_section
from raypipe.reporting.trial_spans import trial_spans
from raypipe.reporting.trial_table import trials_table
from raypipe.storage.files import write_atomic
from raypipe.storage.read_once import ReadOnce
from raypipe.storage.remote import without_settings
from raypipe.storage.run_store import RunStore

FILE = "report.html"


def write_report(run: RunStore, out: str | Path | None = None) -> Path | str:
    """Write a run's report. It says so if the run is unfinished or has no ensemble.

    Parameters
    ----------
    run
        The run.
    out
        HTML file; None for ``report.html`` in the run.

    Returns
    -------
    where
        Path of the file, or its URI where the run is behind one.
    """
    path = None if out is None else report_file(out)
    html = encode_page(render_report(run))
    if path is not None:
        write_atomic(path, lambda file: file.write(html))
        return path
    run.folder.write(FILE, html)
    return run.local / FILE if run.local else f"{without_settings(run.where)}/{FILE}"


def render_report(run: RunStore) -> str:
    """Return the report as HTML."""
    run = ReadOnce(run)
    ensemble = Ensemble.load(run) if Ensemble.exists(run) else None
    results = run.results()
    # A report is passed on: of a local folder it shows the last two parts only, since the others name its author.
    name = "/".join(run.local.parts[-2:]) if run.local else without_settings(run.where)
    spans, table = trial_spans(run, results), trials_table(run)
    sections = [
        result_section(run, ensemble),
        data_section(run),
        search_section(run, results, spans),
        stores_section(run, results, ensemble),
        *([held_out_section(run, ensemble)] if ensemble else []),
        *([reliability_section(ensemble), ensemble_section(ensemble)] if ensemble else []),
        filters_section(run, ensemble),
        importance_section(run, table),
        halving_section(run, results),
        timeline_section(spans),
        outcomes_section(run, results),
        time_section(run, results, spans),
        render_template("next_steps", advice=advise(run, name)),
        provenance_section(run, results, table, name),
    ]
    return render_template(
        "report",
        target=describe_target(run.info.target),
        spec=run.info.target,
        run=name,
        ended=len(results),
        trials=len(run.numbers()),
        written=time.strftime("%Y-%m-%d %H:%M", time.localtime()),
        sections=sections,
    )


def write_plots(run: RunStore, ensemble: Ensemble) -> None:
    """Write plots of an ensemble's members, if there are enough: ``ensemble/curve.svg`` and ``ensemble/errors.svg``."""
    names = ensemble.diversity.get("members", [])
    if len(names) >= MIN_CURVE:
        curve = score_by_size(ensemble.diversity, run.info.metric)
        run.folder.write("ensemble/curve.svg", to_svg(curve))
    if len(names) >= MIN_CORRELATED:
        errors = error_correlations(names, ensemble.diversity["correlations"])
        run.folder.write("ensemble/errors.svg", to_svg(errors))
