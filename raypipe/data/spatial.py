"""Interpolation of bad channels and re-referencing, as one matrix: both combine channels sample by sample.

The matrix is what MNE's own functions make of the identity matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from raypipe.core.errors import UserError, first_line
from raypipe.data.montage import template_names, template_of
from raypipe.data.preprocessing import Preprocessing
from raypipe.recordings.channels import find_name
from raypipe.recordings.signal import UnreadableRecordingError
from raypipe.recordings.tables import list_some

Floats = NDArray[np.float64]

MIN_GOOD = 4
"""Good channels that an interpolation needs: fewer do not determine a sphere."""


@lru_cache(maxsize=64)
def mixing_matrix(
    steps: Preprocessing, sources: tuple[str, ...], channels: tuple[str, ...], bads: frozenset[str]
) -> Floats | None:
    """Return the matrix (C, S) that makes channels of the store from those that are read; None if it only picks.

    Bad channels are interpolated with spherical splines by `mne.io.Raw.interpolate_bads` (Perrin et al. 1989,
    doi:10.1016/0013-4694(89)90180-6). The reference is then subtracted by `mne.io.Raw.set_eeg_reference`; interpolated
    channels count in an average.

    Parameters
    ----------
    sources
        Channels that are read (S).
    channels
        Channels of the store (C), which are some of `sources`.
    bads
        Those of `sources` that channels.tsv marks as bad.

    Raises
    ------
    UnreadableRecordingError
        Bad channels cannot be interpolated.
    """
    interpolates = steps.bads == "interpolate" and bool(bads)
    places = [sources.index(name) for name in channels]
    if steps.reference is None and not interpolates:
        return None
    mixed_SS = np.eye(len(sources))
    if interpolates:
        mixed_SS = _interpolated(mixed_SS, steps.montage or "", sources, bads)
    if steps.reference is not None:
        mixed_SS = _referenced(mixed_SS, sources, steps.reference)
    return mixed_SS[places]


def _interpolated(x_SS: Floats, montage: str, sources: Sequence[str], bads: frozenset[str]) -> Floats:
    import mne

    names = template_names(montage, sources)
    lost = [name for name, known in zip(sources, names, strict=True) if known is None and name in bads]
    if lost:
        raise UnreadableRecordingError(f"{list_some(lost)}: marked bad, and without a position in montage {montage}")
    # Channels have unique names of their own, so that those without a position cannot be taken for others.
    own = [known or f"no position {place}" for place, known in enumerate(names)]
    unplaced = [name for name, known in zip(own, names, strict=True) if known is None]
    bad = [name for name, source in zip(own, sources, strict=True) if source in bads]
    if len(sources) - len(unplaced) - len(bad) < MIN_GOOD:
        raise UnreadableRecordingError(f"{len(bad)} of {len(sources)} channels are marked bad; {MIN_GOOD} must be good")
    raw = mne.io.RawArray(x_SS, mne.create_info(own, 1.0, "eeg"), verbose="ERROR")
    raw.set_montage(template_of(montage), on_missing="ignore", verbose="ERROR")
    raw.info["bads"] = bad
    try:
        raw.interpolate_bads(exclude=unplaced, verbose="ERROR")
    except (ValueError, RuntimeError) as error:
        raise UnreadableRecordingError(f"bad channels cannot be interpolated ({first_line(error)})") from None
    return np.asarray(raw.get_data())


def _referenced(x_SS: Floats, sources: Sequence[str], reference: str | Sequence[str]) -> Floats:
    import mne

    raw = mne.io.RawArray(x_SS, mne.create_info(list(sources), 1.0, "eeg"), verbose="ERROR")
    names = reference
    if not isinstance(reference, str):
        names = [sources[place] for name in reference if (place := find_name(name, sources)) is not None]
    raw.set_eeg_reference(names, projection=False, verbose="ERROR")
    return np.asarray(raw.get_data())


def mix(matrix_CS: Floats, x_ST: Floats) -> Floats:
    """Combine channels (S, T); samples that depend on a missing one are NaN, and no others."""
    missing_ST = np.isnan(x_ST)
    if not missing_ST.any():
        return matrix_CS @ x_ST
    y_CT = matrix_CS @ np.where(missing_ST, 0.0, x_ST)
    y_CT[(matrix_CS != 0).astype(float) @ missing_ST > 0] = np.nan
    return y_CT


def check_montage(name: str) -> None:
    """Check that MNE has a montage of this name.

    Raises
    ------
    UserError
        It has none; names the nearest.
    """
    try:
        template_of(name)
    except ValueError as error:
        raise UserError(f"montage {name}: {error}") from None
