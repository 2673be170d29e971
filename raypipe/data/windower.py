"""Cut windows out of one recording: in pieces, so that memory does not grow with the recording."""

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
from raypipe.data.tasks import Labels, Layout, Span, Task
from raypipe.data.window_store import Plan

if TYPE_CHECKING:
    import pandas as pd

PIECE_BYTES = 1 << 25
"""Size of the float64 signal that is read at a time; filtering and resampling take a few times as much."""

OUTSIDE = "windows that reach beyond the recording"
ROW_COLUMNS = ("recording", "subject", "session", "task", "run", "onset", "target", "offset")

MISSING = "windows with missing samples"


@dataclass(frozen=True)
class Row:
    """A window that is going to be read."""

    onset: float
    """Seconds from the recording's start."""
    start: int
    """The same in samples of the windows' rate."""
    target: float
    offset: int
    """Samples from the window's start to the crop with which it is evaluated."""
    mark: str = ""


def place_windows(
    recording: Recording, raw: Any, task: Task, plan: Plan, labels: Labels | None
) -> tuple[list[Row], Counter[str]]:
    """Find the windows of a recording that lie within it, by ascending onset, and count those left out.

    The crop of a window whose target is the crop's offset is drawn from a seed made of the recording's key and the
    window's onset: uniform over whole samples, the same on every machine. Other crops lie in the middle, or
    where the challenge's scorer draws them.
    """
    n_samples = int(raw.n_times * plan.sfreq / raw.info["sfreq"] + 1e-6)
    layout = Layout(plan.window, plan.stride, plan.tmin)
    cut = task.windows(recording, n_samples / plan.sfreq, layout, labels)
    rows = [_place(recording, span, plan) for span in sorted(cut.spans, key=lambda span: span.onset)]
    inside = [row for row in rows if 0 <= row.start <= n_samples - plan.window_samples]
    if plan.crops == "scorer":
        drawn = scorer_offsets(len(inside), plan.window_samples - plan.crop_samples)
        inside = [replace(row, offset=offset) for row, offset in zip(inside, drawn, strict=True)]
    cut.left_out[OUTSIDE] += len(rows) - len(inside)
    return inside, +cut.left_out


def _place(recording: Recording, span: Span, plan: Plan) -> Row:
    spare = plan.window_samples - plan.crop_samples
    offset = spare // 2
    target = span.target
    if plan.target_is_offset:
        seed = hashlib.sha256(f"{recording.key}/{span.onset:.6f}".encode()).digest()
        offset = int.from_bytes(seed[:8], "little") % (spare + 1)
        target = offset / plan.sfreq
    return Row(span.onset, round(span.onset * plan.sfreq), target, offset, span.mark)


def read_windows(
    recording: Recording, raw: Any, rows: list[Row], plan: Plan, piece_bytes: int = PIECE_BYTES
) -> Iterator[tuple[list[Row], NDArray[np.float32]]]:
    """Read windows in microvolts, filtered and resampled as the plan says.

    Pieces overlap by the length of the filters, so that what they give equals the whole recording filtered at once.

    Parameters
    ----------
    rows
        By ascending start, all inside the recording.
    piece_bytes
        Size of a piece (as float64, without its overlap).

    Yields
    ------
    rows, x_NCT
        Consecutive rows and their (N, C, T) samples.

    Raises
    ------
    UserError
        A channel is missing, the band does not fit the rate, or the recording is shorter than its filter.
    UnreadableRecordingError
        The signal cannot be read.
    """
    picks = _picks(recording, raw, plan)
    reader = _Reader(recording, raw, plan)
    samples = max(plan.window_samples, int(piece_bytes / (8 * len(picks)) * plan.sfreq / raw.info["sfreq"]))
    for group in _groups(rows, plan.window_samples, samples, reader.margin):
        first = group[0].start
        x_CT = reader.read(picks, first, group[-1].start + plan.window_samples)
        starts = np.array([row.start - first for row in group])
        view = np.lib.stride_tricks.sliding_window_view(x_CT, plan.window_samples, axis=1)
        yield group, view[:, starts].transpose(1, 0, 2)


def _picks(recording: Recording, raw: Any, plan: Plan) -> list[int]:
    places = {name: place for place, name in enumerate(raw.ch_names)}
    for name in plan.channels:
        if name not in places:
            raise UserError(f"{recording.path}: no channel '{name}'; {nearest(name, raw.ch_names)}")
    return [places[name] for name in plan.channels]


def _groups(rows: list[Row], length: int, most: int, margin: int) -> Iterator[list[Row]]:
    group: list[Row] = []
    for row in rows:
        if group:
            gap = row.start - (group[-1].start + length)
            if row.start + length - group[0].start > most or gap > 4 * length + 2 * margin:
                yield group
                group = []
        group.append(row)
    if group:
        yield group


class _Reader:
    """Reads any stretch of a recording as it would be if all of it were filtered and resampled."""

    def __init__(self, recording: Recording, raw: Any, plan: Plan) -> None:
        self._recording, self._raw, self._band = recording, raw, _edges(plan)
        rate = float(raw.info["sfreq"])
        ratio = Fraction(plan.sfreq / rate).limit_denominator(10_000)
        self._up, self._down = ratio.numerator, ratio.denominator
        reach = 0
        if self._band:
            reach = _filter_reach(recording, rate, raw.n_times, self._band)
        if self._up != self._down:
            # scipy.signal.resample_poly: a filter of 10 * max(up, down) either side at the interpolated rate
            reach += -(-10 * max(self._up, self._down) // self._up) + 1
        self._reach = reach
        self.margin = int(reach * self._up / self._down) + 1

    def read(self, picks: list[int], start: int, stop: int) -> NDArray[np.float32]:
        """Samples `start` to `stop` at the windows' rate, (C, stop - start), in microvolts."""
        up, down = self._up, self._down
        # A piece begins on an input sample that is an output sample too.
        block = max(0, (start * down // up - self._reach) // down)
        begin, end = block * down, min(self._raw.n_times, -(-stop * down // up) + 1 + self._reach)
        try:
            x_CT: NDArray[np.float64] = self._raw[picks, begin:end][0]
        except Exception as error:  # MNE's readers raise whatever their parsers do
            problem = f"its signal cannot be read ({first_line(error)})"
            raise UnreadableRecordingError(f"{self._recording.path}: {problem}") from None
        if self._band:
            from mne.filter import filter_data

            low, high = self._band
            x_CT = filter_data(x_CT, self._raw.info["sfreq"], low, high, copy=False, verbose="ERROR")
        if up != down:
            from scipy.signal import resample_poly

            # mne.filter.resample(method="polyphase"), but with one ratio for all pieces: MNE's follows their lengths
            x_CT = resample_poly(x_CT, up, down, axis=1, padtype="reflect")
        skip = start - block * up
        return (x_CT[:, skip : skip + stop - start] * 1e6).astype(np.float32)


def _edges(plan: Plan) -> tuple[float | None, float] | None:
    if plan.band is None:
        return None
    low, high = plan.band
    return (low or None, high)


def _filter_reach(recording: Recording, rate: float, n_times: int, band: tuple[float | None, float]) -> int:
    from mne.filter import create_filter

    low, high = band
    if high >= rate / 2:
        raise UserError(
            f"{recording.path}: sampled at {rate:g} Hz, so the band's upper edge must lie below {rate / 2:g} Hz "
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
    """Cut one recording for prediction: without `labels`, targets are NaN and need not be known.

    Returns
    -------
    table
        A row a window: `recording`, `subject`, `session`, `task`, `run`, `onset` (s), `target`, `offset` (samples).
    crops
        Those with which the windows are evaluated, in microvolts, (n, C, crop_samples) of some rows after the other:
        the recording is read as they are taken.

    Raises
    ------
    UserError
        The recording cannot be read, or lacks a channel or what the task needs.
    """
    import pandas as pd

    raw = read_raw(recording)
    rows, _ = place_windows(recording, raw, task, plan, labels)
    table = pd.DataFrame([describe_row(recording, row) for row in rows], columns=list(ROW_COLUMNS))
    crops = (
        np.stack([x_CT[:, r.offset : r.offset + plan.crop_samples] for r, x_CT in zip(group, x_NCT, strict=True)])
        for group, x_NCT in read_windows(recording, raw, rows, plan)
    )
    return table, crops


def describe_row(recording: Recording, row: Row) -> dict[str, Any]:
    """The row of a store's table, without its place in the store."""
    return {
        "recording": recording.key,
        "subject": recording.subject,
        "session": recording.session or "",
        "task": recording.task or "",
        "run": recording.run or "",
        "onset": row.onset,
        "target": row.target,
        "offset": row.offset,
        "release": recording.release or "",
        "mark": row.mark,
        "age": "" if recording.age is None else f"{recording.age:g}",
    }
