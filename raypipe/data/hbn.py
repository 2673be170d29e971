"""HBN-EEG: releases, ages of subjects, unavailable recordings, subjects that the challenge excludes, and download.

Sources: Shirazi et al. 2024 (doi:10.1101/2024.10.03.615261); the challenge's start kit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from raypipe.core.errors import UserError, nearest
from raypipe.core.shipped import install_command
from raypipe.recordings.participants import participant_rows
from raypipe.recordings.recording import Recording
from raypipe.recordings.tables import is_missing, parse_number
from raypipe.storage.local_path import local_path

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


def add_releases(recordings: Sequence[Recording]) -> list[Recording]:
    """Add the release and the subject's age (years) to each recording.

    The release comes from the folder's name, or else from ``release_number`` in participants.tsv.
    """
    found = []
    try:
        rows = participant_rows(recordings)
    except UserError:  # the targets that need the table report it
        rows = {}
    for recording in recordings:
        row = rows.get((recording.root, recording.label), {})
        years = parse_number(row.get("age", ""))
        release = release_of(recording.root.name)
        if release is None and not is_missing(row.get("release_number", "")):
            release = row["release_number"]
        age = years if years is not None and np.isfinite(years) else None
        found.append(replace(recording, release=release, age=age))
    return found


def availability(recording: Recording, row: Mapping[str, str]) -> str:
    """Return a recording's availability as marked in participants.tsv, or an empty string if it is not marked.

    Marks are ``available``, ``caution`` and ``unavailable``. Columns are named after the task, or after task and run
    (``surroundSupp``, ``contrastChangeDetection_1``).

    Parameters
    ----------
    row
        Cells of the subject, by name of the column.
    """
    for column in (f"{recording.task}_{recording.run}", str(recording.task)):
        if column in row:
            return "" if is_missing(row[column]) else row[column].lower()
    return ""


def excluded_recordings(
    recordings: Sequence[Recording], *, with_excluded: bool = False, no_caution: bool = False
) -> dict[Recording, str]:
    """Return the recordings that are unavailable, and those of subjects that the start kit excludes, with the reason.

    Parameters
    ----------
    with_excluded
        Keep the excluded subjects, as the scorer does.
    no_caution
        Leave out recordings marked ``caution`` as well.
    """
    rows, left_out = participant_rows(recordings), {}
    for recording in recordings:
        mark = availability(recording, rows.get((recording.root, recording.label), {}))
        if recording.label in EXCLUDED and not with_excluded:
            left_out[recording] = "of a subject that the challenge excludes"
        elif mark == "unavailable" or (mark == "caution" and no_caution):
            left_out[recording] = f"marked {mark} in participants.tsv"
    return left_out


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
    cache = local_path(cache, "releases are downloaded", "name a folder here")
    try:
        from eegdash import EEGChallengeDataset  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        place = bucket_of(release, mini=mini)
        raise UserError(
            f"{name}: needs eegdash ({install_command('hbn')}); without it, copy the release with: "
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
