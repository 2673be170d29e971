"""Windows of a recording that are kept, because they are whole and of an amplitude within the limits; then aligned."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raypipe.data.alignment import Floats, MeanCovariance, align, inverse_root
from raypipe.data.manifest import Plan
from raypipe.data.preprocessing import Preprocessing
from raypipe.data.target_base import Labels, Target
from raypipe.data.targets import parse_target
from raypipe.data.windower import (
    MISSING_SAMPLES,
    ROW_COLUMNS,
    OpenRecording,
    Window,
    place_windows,
    read_windows,
    table_row,
)
from raypipe.recordings.recording import Recording

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Losses:
    """What was left out of a recording."""

    counts: Counter[str]
    """Number of windows for each reason."""
    channels: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """For each limit of amplitude the channels that were outside, and in how many windows."""


class KeptWindows(NamedTuple):
    """Consecutive windows of a recording."""

    windows: list[Window]
    samples: NDArray[np.float32]
    """What a model is shown (N, C, T): microvolts, or without a unit where they are aligned."""
    microvolts: NDArray[np.float32]
    """The same before alignment."""


def keep_windows(
    opened: OpenRecording,
    windows: list[Window],
    target: Target,
    plan: Plan,
    losses: Losses,
    matrix_CC: Floats | None = None,
) -> Iterator[KeptWindows]:
    """Read windows, leave out and count those that are not whole or not within the limits, and align the others.

    A window is left out if the peak-to-peak amplitude of a channel of the store is above `reject` or below `flat`, as
    `mne.Epochs.drop_bad` does. To align a recording by itself, it is read twice.

    Parameters
    ----------
    windows
        Windows inside the recording, by ascending start.
    losses
        Is added to while windows are read.
    matrix_CC
        Aligns the recording with others (`alignment_of`); None where a plan with alignment aligns it by itself.

    Raises
    ------
    UserError
        As `windower.read_windows`.
    """
    if windows and matrix_CC is None and plan.preprocessing.align:
        mean = MeanCovariance(len(plan.channels))
        _add_windows(mean, opened, target, plan)
        matrix_CC = inverse_root(mean.value())
    for group, x_NCT in read_windows(opened, windows, plan):
        kept_N = kept_of(x_NCT, plan, losses)
        if kept_N.any():
            group = [window for window, is_kept in zip(group, kept_N, strict=True) if is_kept]
            x_NCT = x_NCT if kept_N.all() else x_NCT[kept_N]
            yield KeptWindows(group, x_NCT if matrix_CC is None else align(matrix_CC, x_NCT), x_NCT)


def alignment_of(recordings: Sequence[Recording], plan: Plan) -> Floats:
    """Return the matrix (C, C) that aligns several recordings together; each is fetched while it is read.

    Raises
    ------
    UserError
        As `windower.read_windows`.
    """
    mean, target = MeanCovariance(len(plan.channels)), parse_target(plan)
    for recording in sorted(recordings, key=lambda each: each.key):
        with recording.fetched():
            _add_windows(mean, OpenRecording(recording), target, plan)
    return inverse_root(mean.value())


def _add_windows(mean: MeanCovariance, opened: OpenRecording, target: Target, plan: Plan) -> None:
    """Add the windows that a prediction cuts, which needs no labels, so that `prepare` and `predict` agree."""
    losses = Losses(Counter())
    for _, x_NCT in read_windows(opened, place_windows(opened, target, plan, None)[0], plan):
        mean.add(x_NCT[kept_of(x_NCT, plan, losses)])


def kept_of(x_NCT: NDArray[np.float32], plan: Plan, losses: Losses) -> NDArray[np.bool_]:
    """Return which windows (N,) are kept, and count the others by the first reason."""
    kept_N = np.asarray(np.isfinite(x_NCT).all(axis=(1, 2)))
    losses.counts[MISSING_SAMPLES] += int((~kept_N).sum())
    steps = plan.preprocessing
    if steps.reject is None and steps.flat is None:
        return kept_N
    range_NC = np.where(kept_N[:, None], x_NCT.max(axis=2) - x_NCT.min(axis=2), np.nan)
    for reason, outside_NC in _outside(range_NC, steps).items():
        is_lost_N = outside_NC.any(axis=1) & kept_N
        losses.counts[reason] += int(is_lost_N.sum())
        for name, n in zip(plan.channels, outside_NC[is_lost_N].sum(axis=0).tolist(), strict=True):
            if n:
                losses.channels[reason][name] += n
        kept_N[is_lost_N] = False
    return kept_N


def _outside(range_NC: NDArray[np.float32], steps: Preprocessing) -> dict[str, NDArray[np.bool_]]:
    """Return which channels of which windows are outside of each limit; NaN is outside of none."""
    found: dict[str, NDArray[np.bool_]] = {}
    if steps.reject is not None:
        found[f"windows of more than {steps.reject:g} uV peak to peak"] = range_NC > steps.reject
    if steps.flat is not None:
        found[f"windows of less than {steps.flat:g} uV peak to peak"] = range_NC < steps.flat
    return found


class CutWindows(NamedTuple):
    """Consecutive windows of a recording, as a model predicts them."""

    table: pd.DataFrame
    """A row per window: `recording`, `subject`, `session`, `task`, `run`, `onset` (s), `target`, `offset` (samples)."""
    crops: NDArray[np.float32]
    """Their evaluated crops (N, C, crop_samples)."""
    spreads: NDArray[np.float32]
    """(N,) median over channels of the standard deviation of each crop (uV), before alignment."""


def windows_of(
    recording: Recording,
    target: Target,
    plan: Plan,
    labels: Labels | None = None,
    matrix_CC: Floats | None = None,
) -> tuple[Iterator[CutWindows], Counter[str]]:
    """Cut one recording for prediction. Without `labels`, targets are NaN; `matrix_CC` as for `keep_windows`.

    Returns
    -------
    parts
        Iterator that reads the recording, one part at a time.
    left_out
        The number of windows left out for each reason; complete once the iterator has ended.

    Raises
    ------
    UserError
        The recording cannot be read, or lacks a channel or what the target needs.
    """
    opened = OpenRecording(recording)
    windows, left_out = place_windows(opened, target, plan, labels)
    kept = keep_windows(opened, windows, target, plan, Losses(left_out), matrix_CC)
    return (_cut(recording, each, plan.crop_samples) for each in kept), left_out


def _cut(recording: Recording, kept: KeptWindows, length: int) -> CutWindows:
    import pandas as pd

    rows = [table_row(recording, window) for window in kept.windows]
    spread_NC = _crops(kept.microvolts, kept.windows, length).std(axis=2)
    return CutWindows(
        pd.DataFrame(rows, columns=list(ROW_COLUMNS)),
        _crops(kept.samples, kept.windows, length),
        np.median(spread_NC, axis=1),
    )


def _crops(x_NCT: NDArray[np.float32], windows: list[Window], length: int) -> NDArray[np.float32]:
    return np.stack([x_CT[:, w.offset : w.offset + length] for w, x_CT in zip(windows, x_NCT, strict=True)])
