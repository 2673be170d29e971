"""HBN-EEG: releases, ages of subjects, unavailable recordings, subjects that the challenge excludes, and download.

Sources: Shirazi et al. 2024 (doi:10.1101/2024.10.03.615261); the challenge's start kit.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from raypipe.core.errors import UserError, missing_package, nearest
from raypipe.data.bids import Recording
from raypipe.data.bids_tables import read_participants

RELEASES: dict[str, str] = {
    **{f"R{number}": f"ds{5504 + number:06d}" for number in range(1, 9)},
    **{f"R{number}": f"ds{5505 + number:06d}" for number in range(9, 12)},
}
"""OpenNeuro data set of each release: R1 to R8 are ds005505 to ds005512, R9 to R11 ds005514 to ds005516."""

WARM_UP = "R5"
"""The release that the challenge's warm-up phase was scored on. A sweep holds it out by default."""

EXCLUDED = frozenset(
    {
        "NDARWV769JM7",
        "NDARME789TD2",
        "NDARUA442ZVF",
        "NDARJP304NK1",
        "NDARTY128YLU",
        "NDARDW550GU6",
        "NDARLD243KRE",
        "NDARUJ292JXV",
        "NDARBA381JGH",
    }
)
"""Subjects, without ``sub-``, that the start kit excludes from training. The scorer does not exclude them."""

SCHEME = "hbn:"
BUCKET = "s3://nmdatasets/NeurIPS25"

_FOLDER = re.compile(r"(?:^|[^A-Za-z0-9])R(\d{1,2})(?![0-9A-Za-z])")
_DATASET = {dataset: release for release, dataset in RELEASES.items()}


def release_of(name: str) -> str | None:
    """Return the release that a folder's name contains; None for other names.

    ``R5``, ``R5_mini_L100_bdf``, ``ds005509`` and ``ds005509-bdf-mini`` are R5.
    """
    for dataset, release in _DATASET.items():
        if dataset in name:
            return release
    for number in _FOLDER.findall(name):
        if f"R{number}" in RELEASES:
            return f"R{number}"
    return None


def release_folders(root: Path) -> list[Path]:
    """Return the BIDS folders at `root`: itself if it holds subjects, else the folders in it that do, sorted."""
    if not root.is_dir() or next(root.glob("sub-*"), None) is not None:
        return [root]
    inside = sorted(folder for folder in root.iterdir() if folder.is_dir() and next(folder.glob("sub-*"), None))
    return inside or [root]


def participants(root: Path) -> pd.DataFrame | None:
    """Return the table in a BIDS folder's participants.tsv, from a cache if the file has not changed.

    Return None if there is no such file.
    """
    path = root / "participants.tsv"
    if not path.is_file():
        return None
    stat = path.stat()
    return _cached_participants(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _cached_participants(path: Path, size: int, changed: int) -> pd.DataFrame:
    return read_participants(path.parent)


def _participant_value(recording: Recording, column: str) -> Any:
    """Return a value of the recording's subject in participants.tsv; NaN where there is none."""
    table = participants(recording.root)
    if table is None or column not in table.columns or recording.subject not in table.index:
        return float("nan")
    return table.at[recording.subject, column]


def add_releases(recordings: Iterable[Recording]) -> list[Recording]:
    """Add the release and the subject's age (years) to each recording.

    The release comes from the folder's name, or else from ``release_number`` in participants.tsv.
    """
    found = []
    for recording in recordings:
        years = pd.to_numeric(pd.Series([_participant_value(recording, "age")]), errors="coerce").iloc[0]
        age = float(years) if np.isfinite(years) else None
        release = release_of(recording.root.name)
        if release is None:
            value = _participant_value(recording, "release_number")
            release = None if pd.isna(value) else str(value)
        found.append(replace(recording, release=release, age=age))
    return found


def availability(recording: Recording) -> str:
    """Return a recording's availability as marked in participants.tsv, or an empty string if it is not marked.

    Marks are ``available``, ``caution`` and ``unavailable``. Columns are named after the task, or after task and run
    (``surroundSupp``, ``contrastChangeDetection_1``).
    """
    table = participants(recording.root)
    if table is None or recording.subject not in table.index:
        return ""
    for column in (f"{recording.task}_{recording.run}", str(recording.task)):
        if column in table.columns:
            value: Any = table.at[recording.subject, column]
            return "" if pd.isna(value) else str(value).strip().lower()
    return ""


def exclude_recordings(
    recordings: Sequence[Recording], *, with_excluded: bool = False, no_caution: bool = False
) -> tuple[list[Recording], Counter[str]]:
    """Leave out recordings that are unavailable, and those of subjects that the start kit excludes.

    Parameters
    ----------
    with_excluded
        Keep the excluded subjects, as the scorer does.
    no_caution
        Leave out recordings marked ``caution`` as well.

    Returns
    -------
    kept, left_out
        The kept recordings, and the number of those left out for each reason.
    """
    kept, left_out = [], Counter[str]()
    for recording in recordings:
        mark = availability(recording)
        if recording.subject in EXCLUDED and not with_excluded:
            left_out["recordings of subjects that the challenge excludes"] += 1
        elif mark == "unavailable" or (mark == "caution" and no_caution):
            left_out[f"recordings marked {mark} in participants.tsv"] += 1
        else:
            kept.append(recording)
    return kept, left_out


def bucket_of(release: str, *, mini: bool = False) -> str:
    """Return the URI of the challenge's copy of a release (100 Hz, 0.5 to 50 Hz, BDF)."""
    return f"{BUCKET}/{release}_{'mini_' if mini else ''}L100_bdf"


def fetch(name: str, cache: Path, *, mini: bool = False) -> list[Path]:
    """Download a release into `cache` with eegdash, which skips files that are there already.

    Parameters
    ----------
    name
        ``hbn:R5``.
    mini
        Take the challenge's small version, 20 subjects.

    Returns
    -------
    list of pathlib.Path
        BIDS folders.

    Raises
    ------
    UserError
        The release is unknown, or eegdash is not installed (says how to get the data without it).
    """
    release = name.removeprefix(SCHEME)
    if release not in RELEASES:
        raise UserError(f"{name}: no such release; {nearest(release, RELEASES)}")
    try:
        from eegdash import EEGChallengeDataset  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        place = bucket_of(release, mini=mini)
        raise UserError(
            f"{name}: needs eegdash ({missing_package('hbn')}); without it, copy the release with: "
            f"aws s3 cp --recursive --no-sign-request {place} {place.rpartition('/')[2]}, and prepare that folder"
        ) from None
    cache.mkdir(parents=True, exist_ok=True)
    data = EEGChallengeDataset(release=release, mini=mini, cache_dir=str(cache))
    for dataset in data.datasets:
        _ = dataset.raw  # the property downloads the recording
    found = sorted({path.parents[1] for path in cache.rglob("sub-*/eeg") if path.is_dir()})
    folders = [folder for folder in found if release_of(folder.name) == release]
    if not folders:
        raise UserError(f"{cache}: eegdash downloaded no recording of {release}")
    return folders
