"""A simulated release of HBN-EEG: BDF, BIDS, 129 channels, its events those of real runs where they are given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from raypipe.core.errors import UserError
from raypipe.core.progress import Progress
from raypipe.data.bids import read_tsv
from raypipe.data.challenge import contrast_trials
from raypipe.simulation import contrast_change as plain
from raypipe.simulation.contrast_change import simulate


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
    progress: Progress | None = None,
) -> Path:
    """Write releases side by side, as ``R1_mini_L100_bdf`` and so on, with other people in each.

    Parameters
    ----------
    out
        Folder of the releases.
    events
        Folder that holds real ``*_task-contrastChangeDetection_*events.tsv`` anywhere in it. Each simulated run takes
        the events of one of them, quirks, stray values and columns included, from its first trial start on; evoked
        responses follow its response times. None: simulated events.
    releases, subjects
        Which, and how many people in each.
    channels, trials, seed, null, progress
        See `raypipe.simulation.contrast_change.simulate`; `trials` is the most that are taken of a real run.

    Raises
    ------
    UserError
        See `simulate`; also when `events` holds no run with a usable trial.
    """
    templates = _templates(Path(events), trials) if events is not None else []
    for number, release in enumerate(releases):
        folder = Path(out) / f"{release}_mini_L100_bdf"
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
    return Path(out)


def _templates(folder: Path, most: int) -> list[plain.Template]:
    """Runs with a usable trial, by path."""
    out = []
    for path in sorted(folder.rglob("*_task-contrastChangeDetection_*events.tsv")):
        table = read_tsv(path, text=("value", "event_code", "feedback", "duration"))
        table["onset"] = pd.to_numeric(table["onset"])
        template = _template(table, most)
        if template is not None:
            out.append(template)
    if not out:
        raise UserError(f"{folder}: no contrastChangeDetection events.tsv with a usable trial in it")
    return out


def _template(table: pd.DataFrame, most: int) -> plain.Template | None:
    trials = contrast_trials(table.assign(value=table["value"].astype(str)))
    if not np.isfinite(trials["rt"]).any():
        return None
    starts = np.sort(table.loc[table["value"] == "contrastTrial_start", "onset"].to_numpy(float))[: most + 1]
    kept = table[(table["onset"] >= starts[0]) & (table["onset"] <= starts[-1])].copy()
    shift = plain.LEAD - starts[0]
    kept["onset"] = (kept["onset"] + shift).round(3)
    # The last trial start of a run opens no trial, so the cut run ends on one.
    shown = trials[: len(starts) - 1].dropna(subset=["stimulus"])
    if not np.isfinite(shown["rt"]).any():
        return None
    text = kept.fillna("n/a").to_csv(sep="\t", index=False, lineterminator="\n")
    return plain.Template(
        text,
        tuple(
            (a + shift, b + shift, rt) for a, b, rt in zip(shown["start"], shown["stimulus"], shown["rt"], strict=True)
        ),
    )
