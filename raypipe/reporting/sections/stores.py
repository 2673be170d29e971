"""Section "Stores": trials, best score and ensemble members of each store of a sweep that has several."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from raypipe.data.manifest import Manifest
from raypipe.data.preprocessing import flags
from raypipe.ensembles.fitted import Ensemble
from raypipe.ensembles.labels import metric_label
from raypipe.reporting.available_windows import open_run_windows
from raypipe.reporting.page import Table, format_score, render_template
from raypipe.reporting.sections.provenance import read_data_manifests
from raypipe.storage.records import TrialResult
from raypipe.storage.run_store import RunStore


def stores_section(run: RunStore, results: Sequence[TrialResult], ensemble: Ensemble | None) -> Markup:
    """Render the section; empty for a run of a single store."""
    names = run.space.stores
    if not names:
        return Markup()
    manifests, _ = read_data_manifests(run)
    store_of = {number: run.config(number).data.store for number in run.numbers()}
    ranked, windows = run.ranked(results), open_run_windows(run)
    members = [store_of[trial] for trial in ensemble.trials] if ensemble else []
    rows = []
    for name in names:
        best = next((result for result in ranked if store_of[result.number] == name), None)
        rows.append(
            [
                name,
                _described(manifests.get(name)),
                str(sum(store == name for store in store_of.values())),
                format_score(math.nan if best is None or best.score is None else best.score),
                "" if best is None else str(best.number),
                *([str(members.count(name))] if ensemble else []),
            ]
        )
    head = ["store", "windows", "trials", f"best {metric_label(run.info.metric)} out of fold", "of trial"]
    return render_template(
        "stores",
        rows=Table([*head, *(["trials in the ensemble"] if ensemble else [])], rows, {0, 1}),
        best=(store_of[ranked[0].number], ranked[0].number) if ranked else None,
        first=names[0],
        left_out="" if isinstance(windows, str) else windows.left_out_line(),
    )


def _described(manifest: Manifest | None) -> str:
    """Return channels, rate and preprocessing of a store; an empty text where they are unknown."""
    if manifest is None:
        return ""
    plan = manifest.plan
    size = f"{len(plan.channels)} channels x {plan.crop_samples} samples at {plan.sfreq:g} Hz"
    return " ".join([size, *flags(plan.preprocessing)])
