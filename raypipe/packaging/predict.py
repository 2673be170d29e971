"""Predict recordings and given windows with a bundle. Recordings are prepared as the training data were."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raypipe.core.errors import UserError
from raypipe.core.progress import Progress
from raypipe.data.accounting import NO_RECORDING, Ledger
from raypipe.data.alignment_units import SubjectAlignments, lacking_classes
from raypipe.data.given_subjects import subject_label
from raypipe.data.given_target import GivenTarget
from raypipe.data.kept_windows import windows_of
from raypipe.data.selection import find_in_folders
from raypipe.data.target_base import Target
from raypipe.data.targets import parse_target
from raypipe.data.windower import ROW_COLUMNS
from raypipe.packaging.bundle import LoadedEnsemble, load_ensemble
from raypipe.packaging.bundle_info import BundleInfo, Recipe
from raypipe.packaging.predict_people import people_table, require_people
from raypipe.packaging.predict_stores import predict_by_store
from raypipe.packaging.predict_windows import WindowFacts, holds_windows, predict_windows, with_predictions
from raypipe.packaging.roles import UNKNOWN, role_of
from raypipe.packaging.scale_check import check_scale
from raypipe.recordings.layout import recording_from_file
from raypipe.recordings.raw import raw_recordings, raws_in
from raypipe.recordings.recording import Recording
from raypipe.recordings.signal import UnreadableRecordingError
from raypipe.storage.files import write_atomic
from raypipe.storage.local_path import local_file, local_path

PredictionLevel = Literal["window", "recording", "subject"]
"""What a row of the table is of."""


def predict(
    bundle: str | Path | LoadedEnsemble,
    recordings: Any,
    out_csv: str | Path | None = None,
    *,
    level: PredictionLevel = "window",
    subject: Any = None,
    ch_names: Sequence[str] | None = None,
    sfreq: float | None = None,
    unit: str = "V",
    device: str = "cpu",
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Predict recordings, in files or as `mne.io.Raw`, or windows that are given as arrays or as MNE epochs.

    Recordings are prepared as the training data were. Windows are taken as they are: filters and references that the
    bundle's data had must be applied before. Where it had some, a UserWarning names them.

    Parameters
    ----------
    bundle
        A bundle's folder, or a bundle that was read.
    recordings
        A recording file, or a BIDS folder, whose recordings of the bundle's BIDS tasks are predicted. An `mne.io.Raw`,
        or a list of them, is predicted as its file is: give it as it was recorded; tables beside its file apply, and
        ``info["bads"]`` beside them. Windows at events need its file's events.tsv. Also windows
        (N, channels, samples) as an array or an iterator over arrays, in volts; or MNE epochs, files of them
        (``sub-*_epo.fif``), or several. They have the length of the bundle's windows or of what its networks see.
    out_csv
        CSV file that the table is written to.
    level
        `window`: one row per window. `recording`: one row per recording, the mean prediction of its windows. `subject`:
        one row per person, where the target is the person's: the mean over all windows, with probabilities that are
        calibrated for people, or the interval of each value.
    subject
        Of arrays: (N,) subject of each window. Of Raws: a name, or one for each; by default the file's name or
        ``his_id`` says it, unless it is the ``X`` of an anonymous header; several must have one where a bundle aligns
        subjects. Of epochs: as for `from_epochs`; by default
        ``metadata:subject`` or ``filename:sub``, whichever there is.
    ch_names, sfreq, unit
        Of arrays: names of their channels, in any order, other ones included; their rate (Hz); their unit. Default: the
        channels of the bundle in its order, its rate, volts.
    device
        Where a bundle's folder is run, ``cpu`` or ``cuda``; a bundle that was read predicts where it is.
    progress
        Called with recordings done, recordings in all, and the name of the last one.

    Returns
    -------
    pandas.DataFrame
        Columns `recording`, `subject`, `session`, `task`, `run`; per window its `onset` in seconds, per recording the
        number of `windows`, per person `subject` and the numbers of `recordings` and `windows`; `role`; then
        `prediction` in target units, of several values `prediction_NAME` for each; or `probability_CLASS` for each
        class and the predicted class as `prediction`.
        The `role` of the subject in training is `training`, `held out`, `new`, or `unknown` where no subject was named;
        predictions for subjects of the first kind say nothing about new ones. A row depends on its own recording only,
        or where a bundle aligns subjects, on the subject's recordings. Of a person's value, `low` and `high` are an
        interval that is to contain the target of 90 % of new people (docs/ensembles.md), of several values `low_NAME`
        and `high_NAME` for each. They are missing where the run has fewer than nine people, or no nested predictions.
        ``attrs["left_out"]`` says, by recording, what was not predicted and why: windows with missing samples, or a
        file of a folder that cannot be read. Of given windows, ``attrs["not_applied"]`` names the steps of
        preprocessing that the bundle's data had, if there are any.

    Raises
    ------
    UserError
        There are no such recordings, a channel of the bundle is missing, no window fits, windows have another rate,
        length or unit, or torch can use no GPU.
    """
    if level not in ("window", "recording", "subject"):
        raise UserError(f"level '{level}': must be window, recording or subject")
    out = None if out_csv is None else local_file(out_csv, "a table is written", "predictions.csv")
    if isinstance(recordings, str | Path):
        recordings = local_path(recordings, "recordings are predicted", "copy them here")
    ensemble = bundle if isinstance(bundle, LoadedEnsemble) else load_ensemble(bundle, device=device)
    if level == "subject":
        require_people(ensemble)
    table = _predict_any(ensemble, recordings, WindowFacts(subject, ch_names, sfreq, unit), level, progress)
    if "not_applied" in table.attrs:
        warnings.warn(table.attrs["not_applied"], stacklevel=2)
    if level == "subject":
        said = table.attrs
        table = people_table(ensemble, table)
        table.attrs = said
    if out is not None:
        text = table.to_csv(index=False, float_format="%.7g")
        write_atomic(out, lambda file: file.write(text.encode()))
    return table


def _predict_any(
    ensemble: LoadedEnsemble, given: Any, facts: WindowFacts, level: str, progress: Progress | None
) -> pd.DataFrame:
    """Return the table of Raws, windows, a file or a folder; `facts` are checked to fit them."""
    target = parse_target(ensemble.info.prepare)
    if raws := raws_in(given):
        replace(facts, subject=None).check_unused()
        found = raw_recordings(raws, _subjects_of_raws(facts.subject, len(raws)))
        _require_subjects(ensemble, found)
        return _predict_recordings(ensemble, ", ".join(each.key for each in found), found, {}, target, level, progress)
    if holds_windows(given, isinstance(target, GivenTarget)):
        return predict_windows(ensemble, given, facts, level, progress)
    facts.check_unused()
    return _predict_recordings(ensemble, str(given), *_find_recordings(given, target), target, level, progress)


def _subjects_of_raws(subject: Any, n: int) -> list[str] | None:
    """Return the subject of each of `n` Raws, given as one name for all or one for each; None if none is given."""
    if subject is None:
        return None
    names = subject.tolist() if isinstance(subject, np.ndarray) else subject
    is_one = isinstance(names, str) or not isinstance(names, Iterable)
    return [subject_label(name) for name in ([names] * n if is_one else names)]


def _require_subjects(ensemble: LoadedEnsemble, recordings: list[Recording]) -> None:
    """Check that several Raws say whose they are where windows of a subject are aligned together.

    Raises
    ------
    UserError
        One does not. People without a name would be aligned as one person.
    """
    unnamed = next((each for each in recordings if not each.subject), None)
    recipes = ensemble.info.recipes.values() or [ensemble.info]
    is_aligned = any(recipe.prepare.preprocessing.align == "subject" for recipe in recipes)
    if is_aligned and unnamed is not None and len(recordings) > 1:
        raise UserError(
            f"{unnamed.key}: names no subject, and the bundle aligns all windows of a subject together; say whose they "
            "are by subject=[...]"
        )


def _predict_recordings(
    ensemble: LoadedEnsemble,
    where: str,
    found: list[Recording],
    left_out: dict[str, str],
    target: Target,
    level: str,
    progress: Progress | None,
) -> pd.DataFrame:
    """Return the table of recordings.

    Parameters
    ----------
    where
        What they are of, for messages.
    found, left_out
        The recordings, and what else there is with the reason for leaving it out.
    """
    lacking: dict[str, str] = {}
    for recipe in ensemble.info.recipes.values() or [ensemble.info]:
        lacking |= lacking_classes(found, target, recipe.prepare.preprocessing)
    left_out |= {f"subject {who}": f"one of the {reason}" for who, reason in lacking.items()}
    found = [recording for recording in found if recording.subject not in lacking]
    if not found:
        raise UserError(f"{where}: {next(iter(lacking.values()))}; give a BIDS folder that has all of them")
    tables = _predict_each(ensemble, found, target, level, left_out, progress)
    if not tables:
        raise UserError(
            f"{where}: no window of {ensemble.info.prepare.window:g} s for target '{target.spec}' in "
            f"{len(found)} recording(s){''.join(f'; {key}: {why}' for key, why in list(left_out.items())[:1])}"
        )
    table = pd.concat(tables, ignore_index=True)
    table.attrs["left_out"] = left_out
    return table


def _predict_each(
    ensemble: LoadedEnsemble,
    recordings: list[Recording],
    target: Target,
    level: str,
    left_out: dict[str, str],
    progress: Progress | None,
) -> list[pd.DataFrame]:
    """Return the tables of recordings that have windows; what was not predicted is added to `left_out`."""
    recipes: Mapping[str, BundleInfo | Recipe] = ensemble.info.recipes or {"": ensemble.info}
    alignments = {name: SubjectAlignments(recordings, recipe.prepare) for name, recipe in recipes.items()}
    tables: list[pd.DataFrame] = []
    failed: list[UnreadableRecordingError] = []
    for number, recording in enumerate(recordings, start=1):
        try:
            part, lost = _predict_recording(ensemble, recording, target, level, alignments)
            tables += [part] if len(part) else []
            reasons = ", ".join(f"{n} {what}" for what, n in lost.items()) or ("" if len(part) else "no window")
        except UnreadableRecordingError as error:
            failed.append(error)
            if len(failed) == len(recordings):
                raise failed[0] from None
            reasons = str(error)
        if reasons:
            left_out[recording.key] = reasons
        if progress:
            progress(number, len(recordings), recording.key)
    return tables


def _find_recordings(recordings: str | Path, target: Target) -> tuple[list[Recording], dict[str, str]]:
    """Return the recordings to predict, and what else a folder has with the reason for leaving it out."""
    if not Path(recordings).is_dir():
        return [recording_from_file(recordings)], {}
    ledger = Ledger()
    present = find_in_folders([Path(recordings)], ledger)
    found = [r for r in present if not target.bids_tasks or r.task is None or r.task in target.bids_tasks]
    if not found:
        known = ", ".join(sorted({r.task for r in present if r.task}))
        raise UserError(
            f"{recordings}: no recording of BIDS task {' or '.join(target.bids_tasks)}, which the bundle was trained "
            f"on; available: {known}"
        )
    left_out = {each.name: each.reason for each in ledger.left_out.values()}
    others = Counter(r.task for r in present if r not in found)
    left_out |= {
        f"{n} recordings of BIDS task {name}": "not what the bundle was trained on" for name, n in others.items()
    }
    return found, left_out | {
        f"subject {who}": reason for who, reason in ledger.people.items() if reason == NO_RECORDING
    }


def _predict_windows(
    ensemble: LoadedEnsemble, recording: Recording, target: Target, alignments: SubjectAlignments
) -> tuple[pd.DataFrame, NDArray[np.float32], Counter[str]]:
    """Return a row per window of a recording, their predictions (N, outputs), and what was left out by reason."""
    plan = ensemble.info.prepare
    cut, left_out = windows_of(recording, target, plan, None, alignments.of(recording))
    tables = [pd.DataFrame(columns=list(ROW_COLUMNS))]
    parts: list[NDArray[np.float32]] = [np.empty((0, ensemble.info.n_outputs), np.float32)]
    spreads: list[float] = []
    # Windows are cut from one part of the recording at a time, so that memory does not grow with its length.
    for part in cut:
        tables.append(part.table)
        parts.append(ensemble.predict(part.crops))
        spreads += part.spreads.tolist()
    check_scale(ensemble.info.scale, recording, spreads)
    return pd.concat(tables[1:] or tables, ignore_index=True), np.concatenate(parts), left_out


def _predict_recording(
    ensemble: LoadedEnsemble,
    recording: Recording,
    target: Target,
    level: str,
    alignments: Mapping[str, SubjectAlignments],
) -> tuple[pd.DataFrame, Counter[str]]:
    """Return the table of a recording, which may be empty, and what was left out by reason."""
    if ensemble.stores is not None:
        rows, predicted, left_out = predict_by_store(ensemble, ensemble.stores, recording, alignments)
    else:
        rows, predicted, left_out = _predict_windows(ensemble, recording, target, alignments[""])
    predictions = predicted.astype(float)
    table = rows[["recording", "subject", "session", "task", "run"]].copy()
    if level == "recording" and len(rows):
        table = table.iloc[:1].assign(windows=len(rows))
        predictions = predictions.mean(axis=0, keepdims=True)
    elif level != "recording":
        table["onset"] = rows["onset"]
    table["role"] = role_of(ensemble, recording) if recording.subject else UNKNOWN
    return with_predictions(ensemble, table, predictions), +left_out
