"""Predict recordings with a bundle: its own preparation is redone, recording by recording, without any label."""

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

BATCH = 64


def predict(
    bundle: str | Path | LoadedEnsemble,
    recordings: str | Path,
    out_csv: str | Path | None = None,
    *,
    per: Literal["window", "recording"] = "window",
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Predict one recording or all of a BIDS folder.

    Parameters
    ----------
    bundle
        A bundle's folder, or one that is loaded.
    recordings
        A recording file, or a BIDS folder (of which the recordings are taken that the bundle's task is about).
    out_csv
        Where to write the table, whole or not at all.
    per
        `window`: a row a window. `recording`: a row a recording, predictions averaged over its windows.
    progress
        Called with recordings done, recordings in all, and the last one's name.

    Returns
    -------
    pandas.DataFrame
        `recording`, `subject`, `session`, `task`, `run`; `onset` of the window in seconds (`windows`, their number,
        per recording); `role` of a subject of that name in the bundle's making (`learned from`, `held out`, `new`: a
        score on subjects learned from means nothing); then `prediction` in target units, or a `probability_CLASS`
        column for each class and the likeliest as `prediction`. A row depends on nothing but its own recording.

    Raises
    ------
    UserError
        No such recordings, a channel that the bundle needs is missing, or no window fits.
    """
    if per not in ("window", "recording"):
        raise UserError(f"per '{per}': must be window or recording")
    ensemble = bundle if isinstance(bundle, LoadedEnsemble) else load_ensemble(bundle)
    task = parse_task(ensemble.info.prepare.task)
    found = _find(recordings, task)
    tables = []
    for number, recording in enumerate(found, start=1):
        tables += list(_predict_one(ensemble, recording, task, per))
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


def _find(recordings: str | Path, task: Task) -> list[Recording]:
    if not Path(recordings).is_dir():
        return [recording_from_file(recordings)]
    everything = find_recordings(recordings)
    found = [r for r in everything if not task.bids_tasks or r.task is None or r.task in task.bids_tasks]
    if not found:
        there = ", ".join(sorted({r.task for r in everything if r.task}))
        raise UserError(
            f"{recordings}: no recording of BIDS task {' or '.join(task.bids_tasks)}, which the bundle is about; there "
            f"is: {there}"
        )
    return found


def _predict_one(ensemble: LoadedEnsemble, recording: Recording, task: Task, per: str) -> Iterator[pd.DataFrame]:
    rows, crops = windows_of(recording, task, ensemble.info.prepare)
    if len(rows) == 0:
        return
    # Windows are cut a stretch of the recording at a time: memory does not grow with its length.
    answers = np.concatenate([ensemble.predict(x_NCT, batch_size=BATCH) for x_NCT in crops]).astype(float)
    fold = ensemble.info.fold_map.fold_of.get(recording.subject)
    role = "new" if fold is None else "held out" if fold == HELD_OUT else "learned from"
    names = [f"probability_{name}" for name in ensemble.classes] or ["prediction"]
    table = rows[["recording", "subject", "session", "task", "run"]].copy()
    if per == "recording":
        table = table.iloc[:1].assign(windows=len(rows))
        answers = answers.mean(axis=0, keepdims=True)
    else:
        table["onset"] = rows["onset"]
    table["role"] = role
    table[names] = answers
    if ensemble.classes:
        table["prediction"] = [ensemble.classes[k] for k in answers.argmax(axis=1)]
    yield table
