"""Write simulated releases of HBN-EEG (BIDS, BDF), optionally with the events of real runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from raypipe.core.errors import UserError
from raypipe.core.progress import Progress, no_progress
from raypipe.data.challenge import TRIAL_START, contrast_trials
from raypipe.recordings.tables import is_missing, missing_column, parse_number, read_tsv
from raypipe.simulation.contrast_change import LEAD_SECONDS, Template, simulate
from raypipe.storage.local_path import local_path


def simulate_release(
    out: str | Path,
    *,
    events: str | Path | None = None,
    releases: tuple[str, ...] = ("R1", "R5"),
    subjects: int = 12,
    channels: int = 129,
    trials: int = 24,
    seed: int = 0,
    null: bool = False,
    progress: Progress = no_progress,
) -> Path:
    """Write releases side by side (``R1_mini_L100_bdf`` and so on), with different subjects in each.

    Parameters
    ----------
    out
        Folder of the releases.
    events
        Folder that contains real ``*_task-contrastChangeDetection_*events.tsv`` at any depth. Each simulated run has
        the events of one of them from its first trial start on, with all their irregularities, values and columns.
        Evoked responses follow its response times. None for simulated events.
    releases, subjects
        Names of the releases, and number of subjects in each.
    channels, trials, seed, null, progress
        See `raypipe.simulation.contrast_change.simulate`. A real run is cut to `trials` trials if it has more.

    Raises
    ------
    UserError
        As `simulate`; or `events` contains no run with a usable trial, or a damaged one.
    """
    out = local_path(out, "recordings are written", "name a folder here, and copy it")
    templates = _read_templates(Path(events), trials) if events is not None else []
    for number, release in enumerate(releases):
        folder = out / f"{release}_mini_L100_bdf"
        simulate(
            folder,
            subjects=subjects,
            channels=channels,
            trials=trials,
            seed=1000 * seed + number,
            null=null,
            prefix=release,
            templates=templates[number * subjects :] + templates[: number * subjects],
            release=release,
            progress=progress,
        )
    return out


def _read_templates(folder: Path, max_trials: int) -> list[Template]:
    """Return the runs that have a usable trial, sorted by path."""
    templates = []
    for path in sorted(folder.rglob("*_task-contrastChangeDetection_*events.tsv")):
        table = read_tsv(path)
        for column in ("onset", "value"):
            if column not in table.columns:
                raise UserError(missing_column(path, column, table))
        odd = [cell for cell in table["onset"] if parse_number(cell) is None and not is_missing(cell)]
        if odd:
            raise UserError(f"{path}: column 'onset' is not a number of seconds ('{odd[0]}')")
        table["onset"] = table["onset"].map(parse_number).astype(float)
        template = _make_template(table, max_trials)
        if template is not None:
            templates.append(template)
    if not templates:
        raise UserError(f"{folder}: no contrastChangeDetection events.tsv with a usable trial in it")
    return templates


def _make_template(table: pd.DataFrame, max_trials: int) -> Template | None:
    """Return the events from the first trial start on, or None if no trial that is kept has a response."""
    trials = contrast_trials(table.assign(value=table["value"].astype(str)))
    if not np.isfinite(trials["rt"]).any():
        return None
    starts = np.sort(table.loc[table["value"] == TRIAL_START, "onset"].to_numpy(float))[: max_trials + 1]
    kept = table[(table["onset"] >= starts[0]) & (table["onset"] <= starts[-1])].copy()
    shift = LEAD_SECONDS - starts[0]
    kept["onset"] = (kept["onset"] + shift).round(3)
    # The cut run ends with a trial start, which begins no trial.
    shown = trials[: len(starts) - 1].dropna(subset=["stimulus"])
    if not np.isfinite(shown["rt"]).any():
        return None
    text = kept.fillna("n/a").to_csv(sep="\t", index=False, lineterminator="\n")
    rows = zip(shown["start"] + shift, shown["stimulus"] + shift, shown["rt"], strict=True)
    return Template(text, tuple(rows))
