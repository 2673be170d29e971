"""Cut the windows of one recording. The signal is read in pieces, so the memory does not depend on its length."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypipe.core.errors import nearest
from raypipe.data.challenge import scorer_offsets
from raypipe.data.manifest import Plan
from raypipe.data.piece_reader import PieceReader, filter_length
from raypipe.data.target_base import Labels, Segment, Segments, Target, Value, WindowTiming
from raypipe.recordings.channels import EegChannels, eeg_channels
from raypipe.recordings.recording import Recording
from raypipe.recordings.signal import Signal, Span, UnreadableRecordingError

PIECE_BYTES = 1 << 25
"""Bytes of float64 signal that are read at a time. Filtering and resampling use a few times as much memory."""

OUTSIDE = "windows that reach beyond the recording"
ACROSS_A_GAP = "windows that reach into a gap of the recording"
SHORT_PART = "windows in a part of the recording that is shorter than the filter"
MISSING_SAMPLES = "windows with missing samples"
"""Reasons for leaving windows out."""

ROW_COLUMNS = ("recording", "subject", "session", "task", "run", "onset", "target", "offset")
_ROUNDING = 1e-6
"""Samples by which a window may reach beyond its span: times are rounded."""


@dataclass(frozen=True)
class Window:
    """A window that fits in a span of its recording, with its evaluated crop."""

    onset: float
    """Seconds from the recording's start."""
    span: int
    """Place of the span in `Signal.spans`."""
    start: int
    """Samples from the span's start at the windows' sampling rate."""
    target: Value
    offset: int
    """Samples from the window's start to the evaluated crop."""
    mark: str = ""


class OpenRecording:
    """A recording whose file is open, with its EEG channels.

    Raises
    ------
    UnreadableRecordingError
        The file or its channels.tsv cannot be read.
    """

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.signal: Signal = recording.open_signal()
        self.channels: EegChannels = eeg_channels(recording, self.signal)

    def places(self, names: tuple[str, ...]) -> list[int]:
        """Return the places of channels in `EegChannels`.

        Raises
        ------
        UnreadableRecordingError
            The recording lacks one of them.
        """
        places = [self.channels.place(name) for name in names]
        if None in places:
            lost = names[places.index(None)]
            raise UnreadableRecordingError(
                f"{self.recording.path}: no EEG channel '{lost}'; {nearest(lost, self.channels.names)}"
            )
        return [place for place in places if place is not None]

    def sources(self, plan: Plan) -> list[int]:
        """Return the places in `EegChannels` of the channels that a plan reads.

        Raises
        ------
        UnreadableRecordingError
            The recording lacks one of them, or its channels.tsv marks one as bad and bad channels are dropped.
        """
        places = self.places(plan.sources)
        bad = [name for name in (self.channels.names[place] for place in places) if name in self.channels.bads]
        if bad and plan.preprocessing.bads == "drop":
            raise UnreadableRecordingError(
                f"{self.recording.path}: channel '{bad[0]}' is marked bad in channels.tsv, and bad channels are dropped"
            )
        return places


def place_windows(
    opened: OpenRecording, target: Target, plan: Plan, labels: Labels | None
) -> tuple[list[Window], Counter[str]]:
    """Find the windows that fit in a recording, and choose the evaluated crop of each.

    No window reaches into a gap. Consecutive windows are placed in each span from its start on.

    If the target is the crop's offset, the offset is uniform over whole samples, and drawn from a seed that is made of
    the recording's key and the window's onset. Other crops are in the middle of their windows, or where the challenge's
    scorer draws them.

    Returns
    -------
    windows, left_out
        The windows by ascending onset, and the number of those left out for each reason.
    """
    found = _segments(opened, target, plan, labels)
    left_out = found.left_out
    segments = sorted(found.segments, key=lambda each: each.onset)
    placed = [_place(opened, segment, plan, left_out) for segment in segments]
    inside = [window for window in placed if window is not None]
    if plan.crops == "scorer":
        drawn = scorer_offsets(len(inside), plan.window_samples - plan.crop_samples)
        inside = [replace(window, offset=offset) for window, offset in zip(inside, drawn, strict=True)]
    return _without_short_parts(opened, inside, plan, left_out), +left_out


def _segments(opened: OpenRecording, target: Target, plan: Plan, labels: Labels | None) -> Segments:
    """Return the segments that a target places, with onsets in seconds from the recording's start."""
    timing, spans = WindowTiming(plan.window, plan.stride, plan.tmin), opened.signal.spans
    if target.event_locked or len(spans) == 1:
        end = spans[-1].onset + spans[-1].duration
        return target.segment(opened.recording, end, timing, labels)
    parts = [(span.onset, target.segment(opened.recording, span.duration, timing, labels)) for span in spans]
    moved = [replace(each, onset=each.onset + onset) for onset, part in parts for each in part.segments]
    left_out = sum((part.left_out for _, part in parts), Counter[str]())
    return Segments(
        moved, Counter({reason.replace("recordings ", "parts of recordings "): n for reason, n in left_out.items()})
    )


def _place(opened: OpenRecording, segment: Segment, plan: Plan, left_out: Counter[str]) -> Window | None:
    """Return the window of a segment, with its target and its evaluated crop; count it and return None if none fits."""
    place = _find_span(opened.signal.spans, segment.onset, plan)
    if place is None:
        last = opened.signal.spans[-1]
        within = segment.onset >= 0 and segment.onset + plan.window <= last.onset + last.duration + _ROUNDING
        left_out[ACROSS_A_GAP if within else OUTSIDE] += 1
        return None
    spare = plan.window_samples - plan.crop_samples
    offset, target = spare // 2, segment.target
    if plan.target_is_offset:
        seed = hashlib.sha256(f"{opened.recording.key}/{segment.onset:.6f}".encode()).digest()
        offset = int.from_bytes(seed[:8], "little") % (spare + 1)
        target = offset / plan.sfreq
    return Window(segment.onset, *place, target, offset, segment.mark)


def _find_span(spans: Sequence[Span], onset: float, plan: Plan) -> tuple[int, int] | None:
    """Return the span that a window fits in, and its start in samples from there; None if it fits in none."""
    for number, span in enumerate(spans):
        start = round((onset - span.onset) * plan.sfreq) if np.isfinite(onset) else -1
        if 0 <= start <= int(span.duration * plan.sfreq + _ROUNDING) - plan.window_samples:
            return number, start
    return None


def _without_short_parts(
    opened: OpenRecording, windows: list[Window], plan: Plan, left_out: Counter[str]
) -> list[Window]:
    """Leave out the windows of spans that are shorter than the filter.

    Raises
    ------
    UnreadableRecordingError
        All spans are, or a filter does not fit the sampling rate.
    """
    places = opened.sources(plan)
    length = max(filter_length(opened.recording, opened.channels.rates[place], plan.preprocessing) for place in places)
    spans = opened.signal.spans
    longest = max(span.duration for span in spans)
    if longest < length:
        cure = "leave out notch" if plan.preprocessing.notch else "raise the band's lower edge"
        raise UnreadableRecordingError(
            f"{opened.recording.path}: {longest:.1f} s long, shorter than its filter ({length:.1f} s); {cure}"
        )
    kept = [window for window in windows if spans[window.span].duration >= length]
    left_out[SHORT_PART] += len(windows) - len(kept)
    return kept


def read_windows(
    opened: OpenRecording, windows: list[Window], plan: Plan, piece_bytes: int = PIECE_BYTES
) -> Iterator[tuple[list[Window], NDArray[np.float32]]]:
    """Read windows in microvolts, preprocessed as the plan says up to the baseline.

    Neighbouring pieces overlap by the length of the filters. The result is that of filtering a whole span. A window
    begins within a sample of its onset, whatever the sampling rate.

    Parameters
    ----------
    windows
        Windows inside the recording, by ascending start.
    piece_bytes
        Bytes of a piece as float64, without the overlap.

    Yields
    ------
    group, x_NCT
        Consecutive windows, and their (N, C, T) samples; NaN for missing samples and those that a filter spreads them
        to.

    Raises
    ------
    UserError
        A channel is missing, or a filter does not fit the sampling rate.
    UnreadableRecordingError
        The signal cannot be read.
    """
    places = opened.sources(plan)
    reader = PieceReader(opened.recording, opened.signal, opened.channels, places, plan)
    fastest = max(opened.channels.rates[place] for place in places)
    max_samples = max(plan.window_samples, int(piece_bytes / (8 * len(places)) * plan.sfreq / fastest))
    for group in _group_neighbours(windows, plan.window_samples, max_samples, reader):
        span, first = group[0].span, group[0].start
        shifts = reader.shifts(span, first, plan.window_samples)
        x_CT = reader.read(span, first, group[-1].start + plan.window_samples, shifts)
        yield group, cut_windows(x_CT, [window.start - first for window in group], plan)


def cut_windows(x_CT: NDArray[np.float64], starts: list[int], plan: Plan) -> NDArray[np.float32]:
    """Return windows (N, C, T) of a piece, by their first samples, with the mean of their baselines subtracted."""
    baseline = plan.preprocessing.baseline
    if baseline is None:  # in single precision before windows that overlap multiply the piece
        return _views(x_CT.astype(np.float32), plan)[:, starts].transpose(1, 0, 2)
    from mne.baseline import rescale

    windows_CNT = rescale(_views(x_CT, plan)[:, starts], plan.times, baseline, copy=False, verbose=False)
    return np.asarray(windows_CNT.transpose(1, 0, 2), np.float32)


def _views(x_CT: NDArray[Any], plan: Plan) -> NDArray[Any]:
    """Return views of all windows (C, starts, T) of a piece."""
    return np.lib.stride_tricks.sliding_window_view(x_CT, plan.window_samples, axis=1)


def _group_neighbours(
    windows: list[Window], length: int, max_samples: int, reader: PieceReader
) -> Iterator[list[Window]]:
    """Split windows into groups that are each read as one piece. A long gap between two windows is not read."""
    group: list[Window] = []
    shifts: tuple[int, ...] = ()
    for window in windows:
        last_shifts, shifts = shifts, reader.shifts(window.span, window.start, length)
        if group:
            gap = window.start - (group[-1].start + length)
            is_far = window.start + length - group[0].start > max_samples or gap > 4 * length + 2 * reader.margin
            if is_far or window.span != group[-1].span or shifts != last_shifts:
                yield group
                group = []
        group.append(window)
    if group:
        yield group


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
