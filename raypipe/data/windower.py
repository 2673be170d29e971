"""Cut the windows of one recording. The signal is read in pieces, so the memory does not depend on its length."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raypipe.core.errors import UserError, first_line, nearest
from raypipe.data.bids import Recording, UnreadableRecordingError, read_raw
from raypipe.data.challenge import scorer_offsets
from raypipe.data.manifest import Plan
from raypipe.data.task_base import Labels, Segment, Task, WindowTiming

if TYPE_CHECKING:
    import pandas as pd

PIECE_BYTES = 1 << 25
"""Bytes of float64 signal that are read at a time. Filtering and resampling use a few times as much memory."""

OUTSIDE = "windows that reach beyond the recording"
MISSING_SAMPLES = "windows with missing samples"
"""Reasons for leaving windows out."""

ROW_COLUMNS = ("recording", "subject", "session", "task", "run", "onset", "target", "offset")


@dataclass(frozen=True)
class Window:
    """A window that fits in its recording, with its evaluated crop."""

    onset: float
    """Seconds from the recording's start."""
    start: int
    """The onset in samples at the windows' sampling rate."""
    target: float
    offset: int
    """Samples from the window's start to the evaluated crop."""
    mark: str = ""


def place_windows(
    recording: Recording, raw: Any, task: Task, plan: Plan, labels: Labels | None
) -> tuple[list[Window], Counter[str]]:
    """Find the windows that fit in a recording, and choose the evaluated crop of each.

    If the target is the crop's offset, the offset is uniform over whole samples, and drawn from a seed that is made of
    the recording's key and the window's onset. Other crops are in the middle of their windows, or where the challenge's
    scorer draws them.

    Returns
    -------
    windows, left_out
        The windows by ascending onset, and the number of those left out for each reason.
    """
    n_samples = int(raw.n_times * plan.sfreq / raw.info["sfreq"] + 1e-6)
    timing = WindowTiming(plan.window, plan.stride, plan.tmin)
    found = task.segment(recording, n_samples / plan.sfreq, timing, labels)
    windows = [_place(recording, segment, plan) for segment in sorted(found.segments, key=lambda each: each.onset)]
    inside = [window for window in windows if 0 <= window.start <= n_samples - plan.window_samples]
    if plan.crops == "scorer":
        drawn = scorer_offsets(len(inside), plan.window_samples - plan.crop_samples)
        inside = [replace(window, offset=offset) for window, offset in zip(inside, drawn, strict=True)]
    found.left_out[OUTSIDE] += len(windows) - len(inside)
    return inside, +found.left_out


def _place(recording: Recording, segment: Segment, plan: Plan) -> Window:
    """Return the window of a segment, with its target and its evaluated crop."""
    spare = plan.window_samples - plan.crop_samples
    offset = spare // 2
    target = segment.target
    if plan.target_is_offset:
        seed = hashlib.sha256(f"{recording.key}/{segment.onset:.6f}".encode()).digest()
        offset = int.from_bytes(seed[:8], "little") % (spare + 1)
        target = offset / plan.sfreq
    return Window(segment.onset, round(segment.onset * plan.sfreq), target, offset, segment.mark)


def read_windows(
    recording: Recording, raw: Any, windows: list[Window], plan: Plan, piece_bytes: int = PIECE_BYTES
) -> Iterator[tuple[list[Window], NDArray[np.float32]]]:
    """Read windows in microvolts, filtered and resampled as the plan says.

    Neighbouring pieces overlap by the length of the filters. The result is that of filtering the whole recording.

    Parameters
    ----------
    windows
        Windows inside the recording, by ascending start.
    piece_bytes
        Bytes of a piece as float64, without the overlap.

    Yields
    ------
    group, x_NCT
        Consecutive windows, and their (N, C, T) samples.

    Raises
    ------
    UserError
        A channel is missing, the band does not fit the sampling rate, or the recording is shorter than its filter.
    UnreadableRecordingError
        The signal cannot be read.
    """
    picks = _channel_indices(recording, raw, plan)
    reader = _SignalReader(recording, raw, plan)
    max_samples = max(plan.window_samples, int(piece_bytes / (8 * len(picks)) * plan.sfreq / raw.info["sfreq"]))
    for group in _group_neighbours(windows, plan.window_samples, max_samples, reader.margin):
        first = group[0].start
        x_CT = reader.read(picks, first, group[-1].start + plan.window_samples)
        starts = np.array([window.start - first for window in group])
        view = np.lib.stride_tricks.sliding_window_view(x_CT, plan.window_samples, axis=1)
        yield group, view[:, starts].transpose(1, 0, 2)


def _channel_indices(recording: Recording, raw: Any, plan: Plan) -> list[int]:
    index = {name: place for place, name in enumerate(raw.ch_names)}
    for name in plan.channels:
        if name not in index:
            raise UserError(f"{recording.path}: no channel '{name}'; {nearest(name, raw.ch_names)}")
    return [index[name] for name in plan.channels]


def _group_neighbours(windows: list[Window], length: int, max_samples: int, margin: int) -> Iterator[list[Window]]:
    """Split windows into groups that are each read as one piece. A long gap between two windows is not read."""
    group: list[Window] = []
    for window in windows:
        if group:
            gap = window.start - (group[-1].start + length)
            if window.start + length - group[0].start > max_samples or gap > 4 * length + 2 * margin:
                yield group
                group = []
        group.append(window)
    if group:
        yield group


class _SignalReader:
    """Read any part of a recording with the samples that it has in the filtered and resampled whole.

    Attributes
    ----------
    margin
        Output samples on each side of a part that the filters need.
    """

    def __init__(self, recording: Recording, raw: Any, plan: Plan) -> None:
        self._recording, self._raw, self._band = recording, raw, _band_edges(plan)
        rate = float(raw.info["sfreq"])
        ratio = Fraction(plan.sfreq / rate).limit_denominator(10_000)
        self._up, self._down = ratio.numerator, ratio.denominator
        reach = 0
        if self._band:
            reach = _filter_reach(recording, rate, raw.n_times, self._band)
        if self._up != self._down:
            # scipy.signal.resample_poly filters 10 * max(up, down) samples either side, at the interpolated rate.
            reach += -(-10 * max(self._up, self._down) // self._up) + 1
        self._reach = reach
        self.margin = int(reach * self._up / self._down) + 1

    def read(self, picks: list[int], start: int, stop: int) -> NDArray[np.float32]:
        """Return the samples from `start` to `stop` at the windows' rate, (C, stop - start), in microvolts."""
        up, down = self._up, self._down
        # Start at an input sample whose time is that of an output sample.
        block = max(0, (start * down // up - self._reach) // down)
        begin, end = block * down, min(self._raw.n_times, -(-stop * down // up) + 1 + self._reach)
        x_CT = self._read_raw(picks, begin, end)
        if self._band:
            from mne.filter import filter_data

            low, high = self._band
            x_CT = filter_data(x_CT, self._raw.info["sfreq"], low, high, copy=False, verbose="ERROR")
        if up != down:
            from scipy.signal import resample_poly

            # As mne.filter.resample(method="polyphase"), whose ratio depends on the length; here all pieces have one.
            x_CT = resample_poly(x_CT, up, down, axis=1, padtype="reflect")
        skip = start - block * up
        return (x_CT[:, skip : skip + stop - start] * 1e6).astype(np.float32)

    def _read_raw(self, picks: list[int], begin: int, end: int) -> NDArray[np.float64]:
        try:
            x_CT: NDArray[np.float64] = self._raw[picks, begin:end][0]
        except Exception as error:  # MNE's readers raise exceptions of many types
            problem = f"its signal cannot be read ({first_line(error)})"
            raise UnreadableRecordingError(f"{self._recording.path}: {problem}") from None
        return x_CT


def _band_edges(plan: Plan) -> tuple[float | None, float] | None:
    if plan.band is None:
        return None
    low, high = plan.band
    return (low or None, high)


def _filter_reach(recording: Recording, rate: float, n_times: int, band: tuple[float | None, float]) -> int:
    """Return the number of input samples on each side of a sample that the band-pass uses.

    Raises
    ------
    UserError
        The band does not fit the sampling rate, or the recording is shorter than the filter.
    """
    from mne.filter import create_filter

    low, high = band
    if high >= rate / 2:
        raise UserError(
            f"{recording.path}: sampled at {rate:g} Hz, so the band's upper edge must be below {rate / 2:g} Hz "
            f"(given {high:g})"
        )
    length = len(create_filter(None, rate, low, high, verbose="ERROR"))
    if n_times < length:
        raise UnreadableRecordingError(
            f"{recording.path}: {n_times / rate:.1f} s long, shorter than the filter for this band "
            f"({length / rate:.1f} s); raise the band's lower edge"
        )
    return length // 2 + 1


def windows_of(
    recording: Recording, task: Task, plan: Plan, labels: Labels | None = None
) -> tuple[pd.DataFrame, Iterator[NDArray[np.float32]]]:
    """Cut one recording for prediction. Without `labels`, targets are NaN.

    Returns
    -------
    table
        A row per window: `recording`, `subject`, `session`, `task`, `run`, `onset` (s), `target`, `offset` (samples).
    crops
        Iterator over the evaluated crops of consecutive rows, (n, C, crop_samples) in microvolts. It reads the
        recording.

    Raises
    ------
    UserError
        The recording cannot be read, or lacks a channel or what the task needs.
    """
    import pandas as pd

    raw = read_raw(recording)
    windows, _ = place_windows(recording, raw, task, plan, labels)
    table = pd.DataFrame([table_row(recording, window) for window in windows], columns=list(ROW_COLUMNS))
    crops = (
        np.stack([x_CT[:, w.offset : w.offset + plan.crop_samples] for w, x_CT in zip(group, x_NCT, strict=True)])
        for group, x_NCT in read_windows(recording, raw, windows, plan)
    )
    return table, crops


def table_row(recording: Recording, window: Window) -> dict[str, Any]:
    """Return a window's row of the store's table, without the columns for its position in the store."""
    return {
        "recording": recording.key,
        "subject": recording.subject,
        "session": recording.session or "",
        "task": recording.task or "",
        "run": recording.run or "",
        "onset": window.onset,
        "target": window.target,
        "offset": window.offset,
        "release": recording.release or "",
        "mark": window.mark,
        "age": "" if recording.age is None else f"{recording.age:g}",
    }
