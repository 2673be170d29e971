"""Predict recordings with a bundle. They are prepared as the training data were, without labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from raypipe.core.errors import UserError
from raypipe.core.folds import HELD_OUT
from raypipe.core.progress import Progress
from raypipe.data.bids import Recording, find_recordings, recording_from_file
from raypipe.data.task_base import Task
from raypipe.data.tasks import parse_task
from raypipe.data.windower import windows_of
from raypipe.packaging.bundle import LoadedEnsemble, load_ensemble
from raypipe.storage.files import write_atomic

BATCH_SIZE = 64


def predict(
    bundle: str | Path | LoadedEnsemble,
    recordings: str | Path,
    out_csv: str | Path | None = None,
    *,
    per: Literal["window", "recording"] = "window",
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Predict one recording, or all of a BIDS folder.

    Parameters
    ----------
    bundle
        A bundle's folder, or a bundle that was read.
    recordings
        A recording file, or a BIDS folder, whose recordings of the bundle's BIDS tasks are predicted.
    out_csv
        CSV file that the table is written to.
    per
        `window`: one row per window. `recording`: one row per recording, the mean prediction of its windows.
    progress
        Called with recordings done, recordings in all, and the name of the last one.

    Returns
    -------
    pandas.DataFrame
        Columns `recording`, `subject`, `session`, `task`, `run`; per window its `onset` in seconds, per recording the
        number of `windows`; `role`; then `prediction` in target units, or `probability_CLASS` for each class and the
        most probable class as `prediction`. The `role` of the subject in training is `learned from`, `held out` or
        `new`; predictions for subjects of the first kind say nothing about new ones. A row depends on its own recording
        only.

    Raises
    ------
    UserError
        There are no such recordings, a channel of the bundle is missing, or no window fits.
    """
    if per not in ("window", "recording"):
        raise UserError(f"per '{per}': must be window or recording")
    ensemble = bundle if isinstance(bundle, LoadedEnsemble) else load_ensemble(bundle)
    task = parse_task(ensemble.info.prepare.task)
    found = _find_recordings(recordings, task)
    tables = []
    for number, recording in enumerate(found, start=1):
        tables += list(_predict_recording(ensemble, recording, task, per))
        if progress:
            progress(number, len(found), recording.key)
    if not tables:
        raise UserError(
            f"{recordings}: no window of {ensemble.info.prepare.window:g} s for task '{task.spec}' in "
            f"{len(found)} recording(s)"
        )
    table = pd.concat(tables, ignore_index=True)
    if out_csv is not None:
        text = table.to_csv(index=False, float_format="%.7g")
        write_atomic(Path(out_csv), lambda file: file.write(text.encode()))
    return table


def _find_recordings(recordings: str | Path, task: Task) -> list[Recording]:
    if not Path(recordings).is_dir():
        return [recording_from_file(recordings)]
    present = find_recordings(recordings)
    found = [r for r in present if not task.bids_tasks or r.task is None or r.task in task.bids_tasks]
    if not found:
        known = ", ".join(sorted({r.task for r in present if r.task}))
        raise UserError(
            f"{recordings}: no recording of BIDS task {' or '.join(task.bids_tasks)}, which the bundle was trained on; "
            f"available: {known}"
        )
    return found


def _predict_recording(ensemble: LoadedEnsemble, recording: Recording, task: Task, per: str) -> Iterator[pd.DataFrame]:
    """Yield the table of a recording, unless no window fits."""
    rows, crops = windows_of(recording, task, ensemble.info.prepare)
    if len(rows) == 0:
        return
    # Windows are cut from one part of the recording at a time, so that memory does not grow with its length.
    parts = [ensemble.predict(x_NCT, batch_size=BATCH_SIZE) for x_NCT in crops]
    predictions = np.concatenate(parts).astype(float)
    fold = ensemble.info.fold_map.fold_of.get(recording.subject)
    role = "new" if fold is None else "held out" if fold == HELD_OUT else "learned from"
    names = [f"probability_{name}" for name in ensemble.classes] or ["prediction"]
    table = rows[["recording", "subject", "session", "task", "run"]].copy()
    if per == "recording":
        table = table.iloc[:1].assign(windows=len(rows))
        predictions = predictions.mean(axis=0, keepdims=True)
    else:
        table["onset"] = rows["onset"]
    table["role"] = role
    table[names] = predictions
    if ensemble.classes:
        table["prediction"] = [ensemble.classes[k] for k in predictions.argmax(axis=1)]
    yield table
