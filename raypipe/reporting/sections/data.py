"""Section "The data": people, windows, what was left out and why, what is known without EEG, and power spectra."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from raypipe.core.bootstrap import MIN_SUBJECTS
from raypipe.core.errors import first_line
from raypipe.core.outputs import as_columns, one_value
from raypipe.data.accounting import Accounting
from raypipe.data.association import PERMUTATIONS
from raypipe.data.confounds import MAX_P, WithoutEeg
from raypipe.data.manifest import Manifest
from raypipe.data.preprocessing import flags
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.labels import target_unit
from raypipe.reporting.available_windows import open_run_windows
from raypipe.reporting.page import FigureBlock, Panel, Table, draw_figure, render_template
from raypipe.reporting.plotting import COLOUR_CYCLE, new_figure
from raypipe.reporting.sections.provenance import read_data_manifest
from raypipe.reporting.spectra import Spectra, Spectrum, group_spectra
from raypipe.storage.run_store import RunStore

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_GROUPS = 4
"""Classes whose spectra are drawn: those with the most windows."""
THIRDS = ("lowest", "middle", "highest")


class Group(NamedTuple):
    """Windows of one class, or of one third of a numeric target."""

    name: str
    windows: NDArray[np.int64]


def data_section(run: RunStore) -> Markup:
    """Render the section; of several stores, the first is described."""
    manifest, unknown = read_data_manifest(run)
    if manifest is None:
        return render_template("data_unknown", unknown=unknown)
    windows = open_run_windows(run)
    found = manifest.without_eeg
    opened = None if isinstance(windows, str) else windows.of("")
    return render_template(
        "data",
        facts=_facts(run, manifest),
        recipe=" ".join(flags(manifest.plan.preprocessing)),
        known=dict(found.known) if found else {},
        windows=_windows(found) if found else None,
        targets=_targets(run, opened) if opened is not None and not manifest.classes else None,
        predictors=_predictors(found) if found and found.predictors else None,
        confounds=[each.label for each in found.predictors if each.is_confound] if found else [],
        max_p=f"{MAX_P:g}",
        permutations=PERMUTATIONS,
        spectra=None if opened is None else _spectra_figure(run, opened, manifest),
        account=manifest.accounting.lines(),
        left_out=_left_out(manifest.accounting),
    )


def _facts(run: RunStore, manifest: Manifest) -> str:
    summary, plan = manifest.summary, manifest.plan
    size = f"{len(plan.channels)} channels x {plan.crop_samples / plan.sfreq:g} s at {plan.sfreq:g} Hz"
    held = len(run.folds.held_out)
    return (
        f"{summary.windows} windows ({size}) from {summary.recordings} recordings of {summary.subjects} people, of "
        f"whom {held} are held out."
    )


def _windows(found: WithoutEeg) -> Table:
    rows = [
        [each.name or "all", f"{each.people}", f"{each.windows}", f"{each.least}", f"{each.median:g}", f"{each.most}"]
        for each in found.classes
    ]
    title = "class" if found.classes[0].name else ""
    return Table([title, "people", "windows", "fewest per person", "median", "most"], rows)


def _targets(run: RunStore, windows: WindowStore) -> Table:
    """Return the distribution of a numeric target, over people where it is a person's."""
    y, what = as_columns(np.asarray(windows.targets, dtype=float)), "windows"
    if run.info.level == "person":
        y, what = y[np.unique(windows.subjects, return_index=True)[1]], "people"
    unit = target_unit(run.info.target)
    rows = []
    for name, y_N in zip(run.info.outputs or [""], y.T, strict=True):
        found = (*np.quantile(y_N, [0, 0.25, 0.5, 0.75, 1]), y_N.mean(), y_N.std(ddof=1))
        rows.append([f"{name}: {len(y)} {what}" if name else f"{len(y)} {what}", *(f"{value:.4g}" for value in found)])
    head = [f"target ({unit})", "lowest", "quartile", "median", "quartile", "highest", "mean", "SD"]
    return Table(head, rows)


def _predictors(found: WithoutEeg) -> Table:
    values = all(each.auc is None for each in found.predictors)
    rows = [
        [
            each.label,
            f"{each.people}",
            f"{each.correlation if values else each.auc:z.3f}".replace("-", "−"),
            f"{each.p_value:.3f}",
            "; ".join(f"{name}: {text}" for name, text in each.by_class.items()),
        ]
        for each in found.predictors
    ]
    head = ["correlation", "p", "target"] if values else ["AUC", "p", "by class"]
    return Table(["predictor", "people", *head], rows, {0, 4})


def _left_out(accounting: Accounting) -> Table:
    """Return the table of every recording and person that is not in the windows."""
    rows = [[each.name, each.reason, each.detail] for each in accounting.recordings_left_out]
    people = [[person, reason, ""] for reason, names in accounting.people_left_out.items() for person in names]
    return Table(["recording or person", "reason", "details"], rows + people, {0, 1, 2})


def _spectra_figure(run: RunStore, windows: WindowStore, manifest: Manifest) -> FigureBlock:
    """Draw the spectra of training windows; a line where they cannot be computed."""
    groups = split_windows(run, windows, manifest)
    try:
        found = group_spectra(windows, [each.windows for each in groups])
    except Exception as error:  # the report is written without this figure
        reason = f"{type(error).__name__}: {first_line(error)}"
        return FigureBlock([], "", [f"Power spectra could not be computed ({reason})."])
    names = [f"{each.name} ({n} people)" for each, n in zip(groups, found.people, strict=True)]
    unit = "dB" if manifest.unit == "1" else "dB re 1 µV²/Hz"
    draw = partial(spectrum_plot, found.all_channels, names, unit, "mean over channels")
    panels = [Panel(draw, "Power spectra, mean over channels")]
    if found.channel:
        draw = partial(spectrum_plot, found.one_channel, names, unit, f"{found.channel}, which differs most")
        panels.append(Panel(draw, f"Power spectra of {found.channel}"))
    return draw_figure(panels, _spectra_caption(found, [each.name for each in groups]))


def _spectra_caption(found: Spectra, names: list[str]) -> str:
    caption = (
        f"Power spectra of {found.windows} training windows (Welch), averaged within each person, then over people. "
        f"Bands: 95 % intervals of the mean over people, from {MIN_SUBJECTS} on."
    )
    if found.channel:
        frequency, size, most, least = found.peak
        caption += (
            f" {found.channel} differs most between groups, by up to {size:.1f} dB at {frequency:g} Hz (more for "
            f"{names[most]} than for {names[least]}); the bands do not know that it was chosen."
        )
    return caption


def split_windows(run: RunStore, windows: WindowStore, manifest: Manifest) -> list[Group]:
    """Return the training windows of each class, or of each third of a numeric target; held-out ones are left out."""
    search_N = np.flatnonzero(~np.isin(windows.subjects, list(run.folds.held_out)))
    y_N = one_value(windows.targets)[search_N]
    if manifest.classes:
        groups = [Group(name, search_N[y_N == k]) for k, name in enumerate(manifest.classes)]
        groups = [each for each in groups if len(each.windows)]
        groups = sorted(groups, key=lambda each: -len(each.windows))[:MAX_GROUPS]
        return sorted(groups, key=lambda each: manifest.classes.index(each.name))
    person = run.info.level == "person"
    counted_N = np.unique(windows.subjects[search_N], return_index=True)[1] if person else np.arange(len(search_N))
    edges = np.quantile(y_N[counted_N], [1 / 3, 2 / 3])
    third_N = np.searchsorted(edges, y_N, side="left")
    thirds = [(name, search_N[third_N == k], y_N[third_N == k]) for k, name in enumerate(THIRDS)]
    return [Group(f"{name} third, {_range(y)}", index) for name, index, y in thirds if len(index)]


def _range(y: NDArray[Any]) -> str:
    low, high = (f"{value:.3g}".replace("-", "−") for value in (y.min(), y.max()))
    return low if low == high else f"{low} to {high}"


def spectrum_plot(spectrum: Spectrum, names: list[str], unit: str, title: str) -> Figure:
    """Plot the mean spectrum of each group and its interval over people."""
    figure, (axes,) = new_figure(4.2, 3.2)
    for k, name in enumerate(names):
        colour = COLOUR_CYCLE[k % len(COLOUR_CYCLE)]
        axes.fill_between(spectrum.frequencies, spectrum.low[k], spectrum.high[k], color=colour, alpha=0.15, lw=0)
        axes.plot(spectrum.frequencies, spectrum.mean[k], color=colour, lw=1.4, label=name)
    axes.set(xlabel="frequency (Hz)", ylabel=f"power ({unit})", xlim=(0, float(spectrum.frequencies[-1])))
    axes.set_title(title, fontsize=9.5)
    axes.legend(loc="upper right", fontsize=8.5, frameon=False)
    return figure
