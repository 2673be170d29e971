"""Make a store of windows from arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raypipe.core.errors import UserError, first_line
from raypipe.core.metrics import Kind, metric_for
from raypipe.core.progress import Progress, no_progress
from raypipe.core.text import check_one_line
from raypipe.data.accounting import Ledger
from raypipe.data.given_column import check_no_mask, column
from raypipe.data.given_labels import read_labels
from raypipe.data.given_subjects import read_groups, read_onsets, read_subjects, recording_keys
from raypipe.data.given_windows import (
    MAX_SCALE,
    GivenRows,
    GivenWindows,
    check_channel_names,
    given_settings,
    given_spec,
    make_given_plan,
)
from raypipe.data.piece_reader import MAX_SAMPLE
from raypipe.data.scales import check_usual_scale
from raypipe.data.selection import check_subjects
from raypipe.data.shared_signal import without_shared
from raypipe.data.window_store import WindowStore
from raypipe.recordings.units import volts_per

BLOCK_BYTES = 1 << 25
"""Bytes of windows, as float64, that are in memory at a time."""
SOURCE = "arrays"
"""Name of the target of stores that are made from arrays."""
UNIT_HINT = "say the unit of X, such as unit='uV', also of numbers that have none"
"""How the right unit is said, for messages."""


def from_arrays(
    X_NCT: ArrayLike | Iterable[ArrayLike],
    y: ArrayLike,
    subject: ArrayLike,
    *,
    sfreq: float,
    ch_names: Sequence[str],
    out: str | Path,
    groups: Mapping[Any, Any] | ArrayLike | None = None,
    recording: ArrayLike | None = None,
    onset: ArrayLike | None = None,
    kind: Kind | None = None,
    name: str | None = None,
    target_names: Sequence[str] | None = None,
    unit: str = "V",
    crop: float | None = None,
    dtype: str = "float32",
    metric: str | None = None,
    max_windows: int | None = None,
    min_windows: int | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> WindowStore:
    """Write a store of windows that are given as arrays, with their targets.

    The store is, byte for byte, the one that `prepare` makes of the same signals in a BIDS folder, but for fields that
    say where the windows came from: in the manifest ``settings``, ``plan.target`` and the fingerprints of the shards.
    Windows are in the order of their recordings, and in a recording as they are given. A later call with the same
    folder and settings replaces the windows.

    Parameters
    ----------
    X_NCT
        Windows (N, channels, samples) in volts, as in MNE: an array, also a memory-mapped one; or an iterator over
        arrays (n, channels, samples) or (channels, samples), of which one is in memory at a time. Nothing is filtered.
    y
        (N,) target of each window. Strings, booleans and integers are classes, in sorted order; other numbers are
        values to regress on, unless they are the codes 0 and 1, 1 and 2, or -1 and 1. Where each subject has one target
        for all windows, scores are of people. (N, K): several numbers, a regression of several values.
    subject
        (N,) subject of each window, text or a whole number. Folds are drawn over subjects.
    sfreq
        Sampling rate (Hz).
    ch_names
        Names of the channels.
    out
        Folder for the store: new, empty, or a store made with the same settings.
    groups
        (N,) group of each window's subject, such as a family or a site, or groups by subject. Subjects of one group are
        kept on one side of every split.
    recording
        (N,) name of the recording that each window is of. Default: one recording per subject.
    onset
        (N,) start of each window in its recording (s). Default: windows of a recording are one after the other.
    kind
        ``classification`` or ``regression``. Default: as said for `y`.
    name
        What `y` is, for reports. Default: the classes, or ``y``.
    target_names
        Names of the columns of `y` (N, K). Default: those of a `pandas.DataFrame`, else ``y1`` to ``yK``.
    unit
        Unit of the samples, such as ``uV``.
    crop
        Seconds of a window that a model sees at a time: a random part in training, the middle in evaluation. Default:
        the whole window.
    dtype
        Type of the stored samples. ``float16`` halves the size of the store and has 11 bits of precision,
        which is refused where an offset leaves the signal too few of them.
    metric
        Metric of sweeps over the windows that name none (see `prepare`). Default: auc or nrmse.
    max_windows, min_windows, seed
        Windows of a person, as for `prepare`: of more than `max_windows`, so many are drawn by `seed`; people with
        fewer than `min_windows` are left out.
    progress
        Called with the windows done, their total and a short text.

    Returns
    -------
    WindowStore
        The windows with their targets. Its ``where`` is the folder.

    Raises
    ------
    UserError
        Shapes or lengths do not fit, a sample or target is missing, there is one subject only, two subjects share
        signal of one `recording`, samples are not on the scale of EEG, or the folder has other content.
    DiskFullError
        The disk is full.

    Examples
    --------
    >>> from_arrays(X, y, subject, sfreq=100, ch_names=["Cz", "Pz"], out="store")  # doctest: +SKIP
    """
    labelled: dict[str, Any] = {"groups": groups, "recording": recording, "onset": onset, "kind": kind, "name": name}
    labelled["target_names"] = target_names
    stored: dict[str, Any] = {"crop": crop, "dtype": dtype, "metric": metric, "progress": progress}
    limits: dict[str, Any] = {"max_windows": max_windows, "min_windows": min_windows, "seed": seed}
    return store_of_arrays(
        SOURCE, X_NCT, y, subject, sfreq=sfreq, ch_names=ch_names, out=out, unit=unit, **labelled, **stored, **limits
    )


def store_of_arrays(
    source: str,
    x_NCT: Any,
    y: ArrayLike,
    subject: ArrayLike,
    *,
    sfreq: float,
    ch_names: Sequence[str],
    out: str | Path,
    groups: Any,
    recording: Any,
    onset: Any,
    kind: Kind | None,
    name: str | None,
    unit: str,
    crop: float | None,
    dtype: str,
    metric: str | None,
    progress: Progress,
    target_names: Sequence[str] | None = None,
    **limits: int | None,
) -> WindowStore:
    """Write a store as `from_arrays` does, which documents the arguments; `source` names its target."""
    channels = _channels(ch_names)
    rate, volts = _rate(sfreq), unit_in_volts(unit)
    subjects = read_subjects(subject)
    labels, targets = read_labels(y, subjects, kind, names=target_names)
    check_subjects(set(subjects), "subject")
    if name is not None:
        check_one_line(str(name), "name")
    recordings = None if recording is None else _recordings(recording, len(subjects))
    keys = recording_keys(subjects, recordings)
    group_of = None if groups is None else read_groups(groups, subjects)
    spec, grouped = given_spec(source, name, labels), None if groups is None else "groups"
    asked = given_settings(spec, crop=crop, dtype=dtype, metric=metric, groups=grouped, **limits)
    metric_for(labels.kind, metric, asked.target)  # fails before anything is written
    blocks = in_microvolts(array_blocks(x_NCT, len(subjects)), channels, volts)
    first = next(blocks, None)
    if first is None:
        raise UserError("X holds no window")
    _check_first(first)
    plan = make_given_plan(asked, channels, rate, first.shape[2])
    rows = GivenRows(keys, subjects, read_onsets(onset, keys, plan.window), targets)
    whole: Iterator[NDArray[np.float32]] = chain([first], blocks)
    if recordings is not None and onset is not None:
        people = [(group_of or {}).get(who, who) for who in subjects]
        whole = without_shared(whole, recordings, rows.onsets, people, rate)
    given = GivenWindows(asked, plan, labels, rows, whole, Ledger(), UNIT_HINT, group_of)
    return given.write(out, progress)


def _recordings(recording: ArrayLike, n: int) -> list[str]:
    names = [str(each) for each in column(recording, "recording")]
    if len(names) != n:
        raise UserError(f"recording has {len(names)} values, subject has {n}: both need one per window")
    for name in set(names):
        check_one_line(name, "recording")
    return names


def _channels(ch_names: Sequence[str]) -> list[str]:
    names = [ch_names] if isinstance(ch_names, str) else list(ch_names)
    check_channel_names(names)
    return [name.strip() for name in names]


def _rate(sfreq: float) -> float:
    if not isinstance(sfreq, int | float | np.number) or not 0 < sfreq < math.inf:
        raise UserError(f"sfreq {sfreq}: must be the sampling rate of X in Hz, greater than 0")
    return float(sfreq)


def unit_in_volts(unit: str) -> float:
    """Return the factor from a unit to volts.

    Raises
    ------
    UserError
        It is no known voltage.
    """
    volts = volts_per(unit) if isinstance(unit, str) else None
    if volts is None:
        raise UserError(f"unit '{unit}': not a unit of voltage; use V, mV, uV or nV")
    return volts


def array_blocks(x: Any, total: int | None) -> Iterator[NDArray[Any]]:
    """Yield consecutive windows of an array or of an iterator over arrays, (n, C, T), as they are given.

    Parameters
    ----------
    total
        Number of windows that an array must have; None for any.

    Raises
    ------
    UserError
        The array has no three axes, or another number of windows than `total`.
    """
    if not hasattr(x, "shape"):
        if not isinstance(x, Iterable):
            raise UserError(f"X is a {type(x).__name__}: it needs an array (windows, channels, samples)")
        yield from map(_three_axes, x)
        return
    if len(x.shape) != 3:
        raise UserError(f"X has the shape {tuple(x.shape)}: it needs three axes (windows, channels, samples)")
    if total is not None and x.shape[0] != total:
        raise UserError(f"X holds {x.shape[0]} windows, subject has {total} values: both need one per window")
    step = max(1, BLOCK_BYTES // (8 * max(1, x.shape[1] * x.shape[2])))
    yield from (_unmasked(x[start : start + step]) for start in range(0, x.shape[0], step))


def _unmasked(block: Any) -> NDArray[Any]:
    check_no_mask(block, "X")
    return np.asarray(block)


def _three_axes(given: Any) -> NDArray[Any]:
    """Return windows, or one window, with three axes."""
    try:
        block = _unmasked(given)
    except ValueError as error:
        raise UserError(f"X yields a {type(given).__name__} that is no array ({first_line(error)})") from None
    if block.ndim == 2:
        return block[None]
    if block.ndim != 3:
        raise UserError(f"X yields an array of the shape {block.shape}: it needs (windows, channels, samples)")
    return block


def in_microvolts(
    blocks: Iterable[NDArray[Any]], channels: Sequence[str], volts: float
) -> Iterator[NDArray[np.float32]]:
    """Yield the windows in microvolts, at most `BLOCK_BYTES` of them at a time.

    Raises
    ------
    UserError
        An array has no numbers, or another shape than the first; or a sample is missing.
    """
    done, shape = 0, (len(channels), 0)
    for block in blocks:
        if block.dtype.kind not in "fiu":
            raise UserError(f"X holds values of the type {block.dtype}: it needs real numbers")
        shape = (shape[0], shape[1] or block.shape[2])
        if block.shape[1:] != shape:
            raise UserError(_other_shape(block, done, shape))
        step = max(1, BLOCK_BYTES // (8 * shape[0] * max(1, shape[1])))
        for start in range(0, len(block), step):
            x_NCT = block[start : start + step].astype(np.float64)
            _check_finite(x_NCT, done)
            done += len(x_NCT)
            yield (x_NCT * (volts * 1e6)).astype(np.float32)


def _other_shape(block: NDArray[Any], done: int, shape: tuple[int, int]) -> str:
    found = f"X: windows from {done} on have {block.shape[1]} channels and {block.shape[2]} samples"
    if block.shape[1] != shape[0]:
        return f"{found}, ch_names has {shape[0]} names; its axes are (windows, channels, samples)"
    return f"{found}, those before {shape[1]} samples; all need one length"


def _check_finite(x_NCT: NDArray[np.float64], done: int) -> None:
    is_odd_N = ~(np.abs(x_NCT) < MAX_SAMPLE).all(axis=(1, 2))
    if is_odd_N.any():
        place = int(np.argmax(is_odd_N))
        count = int((~(np.abs(x_NCT[place]) < MAX_SAMPLE)).sum())
        raise UserError(
            f"X: window {done + place} has {count} samples that are NaN or infinite; leave out such windows, and what "
            "is said of them"
        )


def _check_first(x_NCT: NDArray[np.float32]) -> None:
    """Check the scale of the first windows, so that a wrong unit is found before gigabytes are written."""
    scale = float(np.median(x_NCT.std(axis=2)))
    check_usual_scale([_Scale(scale)], UNIT_HINT, MAX_SCALE)


class _Scale(NamedTuple):
    """The spread of some windows (uV)."""

    scale: float
    channel_scales: tuple[float, ...] = ()
    has_confirmed_units: bool = False
