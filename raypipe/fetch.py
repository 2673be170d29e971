"""Releases of HBN-EEG by name: ``hbn:R5``, downloaded by eegdash where that is installed (extra ``[hbn]``)."""

from __future__ import annotations

from pathlib import Path

from raypipe.errors import UserError, install, nearest
from raypipe.hbn import RELEASES

SCHEME = "hbn:"
BUCKET = "s3://nmdatasets/NeurIPS25"


def bucket_of(release: str, *, mini: bool = False) -> str:
    """Where the challenge's copy of a release lies: 100 Hz, 0.5 to 50 Hz, BDF."""
    return f"{BUCKET}/{release}_{'mini_' if mini else ''}L100_bdf"


def fetch(name: str, cache: Path, *, mini: bool = False) -> list[Path]:
    """Download a release into `cache`; what is there already stays.

    Parameters
    ----------
    name
        ``hbn:R5``.
    mini
        The challenge's small version, 20 subjects.

    Returns
    -------
    list of pathlib.Path
        BIDS folders.

    Raises
    ------
    UserError
        An unknown release, or eegdash is not installed: how to get the data without it.
    """
    release = name.removeprefix(SCHEME)
    if release not in RELEASES:
        raise UserError(f"{name}: no such release; {nearest(release, RELEASES)}")
    try:
        from eegdash import EEGChallengeDataset  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        place = bucket_of(release, mini=mini)
        raise UserError(
            f"{name}: needs eegdash ({install('hbn')}); without it, copy the release with: "
            f"aws s3 cp --recursive --no-sign-request {place} {place.rpartition('/')[2]}, and prepare that folder"
        ) from None
    cache.mkdir(parents=True, exist_ok=True)
    data = EEGChallengeDataset(release=release, mini=mini, cache_dir=str(cache))
    for one in data.datasets:
        _ = one.raw  # reading downloads
    found = sorted({path.parents[1] for path in cache.rglob("sub-*/eeg") if path.is_dir()})
    folders = [folder for folder in found if RELEASES[release] in folder.name or release in folder.name]
    if not folders:
        raise UserError(f"{cache}: eegdash left no recording of {release} there")
    return folders
