"""Section "Without EEG": windows by class, and what else would tell classes apart."""

from __future__ import annotations

from markupsafe import Markup

from raypipe.data.confounds import MAX_P, PERMUTATIONS, WithoutEeg
from raypipe.reporting.page import Table, render_template
from raypipe.reporting.sections.provenance import read_data_manifest
from raypipe.storage.run_store import RunStore


def people_section(run: RunStore) -> Markup:
    """Render the section; empty where the windows cannot be read here."""
    manifest, _ = read_data_manifest(run)
    if manifest is None or manifest.without_eeg is None:
        return Markup()
    found = manifest.without_eeg
    return render_template(
        "people",
        windows=_windows(found),
        predictors=_predictors(found) if found.predictors else None,
        confounds=[each.name for each in found.predictors if each.is_confound],
        max_p=f"{MAX_P:g}",
        permutations=PERMUTATIONS,
    )


def _windows(found: WithoutEeg) -> Table:
    rows = [
        [each.name or "all", f"{each.people}", f"{each.windows}", f"{each.least}", f"{each.median:g}", f"{each.most}"]
        for each in found.classes
    ]
    return Table(["class", "people", "windows", "fewest per person", "median", "most"], rows)


def _predictors(found: WithoutEeg) -> Table:
    rows = [
        [
            each.name,
            f"{each.people}",
            f"{each.auc:.3f}",
            f"{each.p_value:.3f}",
            "; ".join(f"{name}: {text}" for name, text in each.by_class.items()),
        ]
        for each in found.predictors
    ]
    return Table(["known without EEG", "people", "AUC", "p", "by class"], rows, {0, 4})
