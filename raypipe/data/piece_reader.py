"""Read pieces of a recording in microvolts, filtered, resampled, with bad channels interpolated, and re-referenced."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from raypipe.core.errors import first_line
from raypipe.data.fir_filters import Floats, apply_filter, design_band, design_notch
from raypipe.data.manifest import Plan
from raypipe.data.preprocessing import Preprocessing, misfit
from raypipe.data.spatial import mix, mixing_matrix
from raypipe.recordings.channels import EegChannels
from raypipe.recordings.recording import Recording
from raypipe.recordings.signal import Signal, UnreadableRecordingError

MAX_SAMPLE = 1e30
"""Values from here on are no samples, such as fill values; they are missing, as NaN is."""

MAX_RATIO_TERM = 10_000
"""Largest denominator of a ratio of sampling rates. Where it meets a rate only nearly, see `PieceReader.shifts`."""


class PieceReader:
    """Read any piece of a span with the samples that it has in the filtered and resampled whole.

    Channels of different rates are read one rate after another.

    Parameters
    ----------
    places
        Places of the plan's sources in `channels`.

    Attributes
    ----------
    margin
        Output samples on each side of a piece that the filters need.
    parts
        Readers of the channels of each rate.

    Raises
    ------
    UnreadableRecordingError
        A filter does not fit a sampling rate, or bad channels cannot be interpolated.
    """

    def __init__(
        self, recording: Recording, signal: Signal, channels: EegChannels, places: list[int], plan: Plan
    ) -> None:
        self.parts = [
            RateReader(recording, signal, channels, places, rate, plan)
            for rate in dict.fromkeys(channels.rates[place] for place in places)
        ]
        self._n_sources = len(places)
        bads = {
            name for name, place in zip(plan.sources, places, strict=True) if channels.names[place] in channels.bads
        }
        self._picks = [plan.sources.index(name) for name in plan.channels]
        try:
            self._matrix = mixing_matrix(plan.preprocessing, plan.sources, plan.channels, frozenset(bads))
        except UnreadableRecordingError as error:
            raise UnreadableRecordingError(f"{recording.path}: {error}") from None
        self.margin = max(part.margin for part in self.parts)

    def read(self, span: int, start: int, stop: int, shifts: tuple[int, ...] = ()) -> Floats:
        """Return the samples of a span from `start` to `stop` at the windows' rate, (C, stop - start), in microvolts.

        Missing samples, and those that the filters and other channels spread them to, are NaN.

        Parameters
        ----------
        shifts
            As `shifts` returns them for the windows of the piece; empty for none.
        """
        return self.combine(self._read_sources(span, start, stop, shifts or (0,) * len(self.parts)))

    def shifts(self, span: int, start: int, length: int) -> tuple[int, ...]:
        """Return how many samples later each of the `parts` has a window than its start at the windows' rate says.

        A ratio of whole numbers below `MAX_RATIO_TERM` meets that rate only nearly where a sampling rate is odd, such
        as 512.0328 Hz. Then samples would be later and later than their times, by 0.1 s in an hour.
        """
        return tuple(part.shift(span, start, length) for part in self.parts)

    def combine(self, x_ST: Floats) -> Floats:
        """Return the store's channels (C, T) of those that are read (S, T)."""
        if self._matrix is not None:
            return mix(self._matrix, x_ST)
        return x_ST if self._n_sources == len(self._picks) else x_ST[self._picks]

    def needed(self, start: int, stop: int) -> tuple[float, float]:
        """Return the stretch of a span, in seconds, from which the samples from `start` to `stop` are computed.

        Beyond the span's ends there is nothing to wait for: it is continued by reflection.
        """
        firsts, lasts = zip(*(part.needed(start, stop) for part in self.parts), strict=True)
        return min(firsts), max(lasts)

    def _read_sources(self, span: int, start: int, stop: int, shifts: tuple[int, ...]) -> Floats:
        if len(self.parts) == 1:
            return self.parts[0].read(span, start + shifts[0], stop + shifts[0])
        x_ST = np.empty((self._n_sources, stop - start))
        for part, shift in zip(self.parts, shifts, strict=True):
            x_ST[part.rows] = part.read(span, start + shift, stop + shift)
        return x_ST


class RateReader:
    """Read the channels of one sampling rate.

    Attributes
    ----------
    rows
        Their places among the plan's channels.
    picks, scale_C1
        Their places in the signal, and the factors to microvolts.
    filters
        Taps, in the order in which they are applied.
    up, down
        Ratio of the windows' rate to theirs, or nearly.
    """

    def __init__(
        self, recording: Recording, signal: Signal, channels: EegChannels, places: list[int], rate: float, plan: Plan
    ) -> None:
        self._recording, self._signal, self._rate = recording, signal, rate
        self.rows = [row for row, place in enumerate(places) if channels.rates[place] == rate]
        self.picks = [channels.picks[places[row]] for row in self.rows]
        self.scale_C1 = np.array([[channels.volts[places[row]] * 1e6] for row in self.rows])
        ratio = Fraction(plan.sfreq / rate).limit_denominator(MAX_RATIO_TERM)
        self.up, self.down = ratio.numerator, ratio.denominator
        self._pace = rate * self.up / self.down / plan.sfreq
        self.filters = _filters(recording, rate, plan.preprocessing)
        self._reach = sum(len(taps) // 2 for taps in self.filters)
        if self.up != self.down:
            # scipy.signal.resample_poly filters 10 * max(up, down) samples either side, at the interpolated rate.
            self._reach += -(-10 * max(self.up, self.down) // self.up)
        self._overlap = self._reach + 2 if self._reach else 0
        self.margin = int(self._overlap * self.up / self.down) + 1

    def read(self, span: int, start: int, stop: int) -> Floats:
        """Return samples as `PieceReader.read` does."""
        n_times = self._n_times(span)
        block, end = self._needed(start, stop)
        x_CT = self._read_samples(span, block * self.down, min(n_times, end))
        missing_CT = ~(np.abs(x_CT) < MAX_SAMPLE)
        has_missing = bool(missing_CT.any())
        if has_missing:
            x_CT = np.where(missing_CT, 0.0, x_CT)
        skip = start - block * self.up
        out_CT: Floats = self._filter(x_CT)[:, skip : skip + stop - start] * self.scale_C1
        if has_missing:
            self._spread(missing_CT, out_CT, skip)
        return out_CT

    def shift(self, span: int, start: int, length: int) -> int:
        """Return by how many samples a window is shifted, as `PieceReader.shifts` does."""
        n_resampled = -(-self._n_times(span) * self.up // self.down)
        return max(0, min(round(start * self._pace), n_resampled - length)) - start

    def _n_times(self, span: int) -> int:
        return round(self._signal.spans[span].duration * self._rate)

    def needed(self, start: int, stop: int) -> tuple[float, float]:
        """Return a stretch in seconds as `PieceReader.needed` does."""
        block, end = self._needed(start, stop)
        return block * self.down / self._rate, end / self._rate

    def _needed(self, start: int, stop: int) -> tuple[int, int]:
        """Return the first input sample, in multiples of `down`, and the end of those that are needed.

        Input starts at a sample whose time is that of an output sample.
        """
        block = max(0, (start * self.down // self.up - self._overlap) // self.down)
        return block, -(-stop * self.down // self.up) + (1 + self._overlap if self._overlap else 0)

    def _read_samples(self, span: int, begin: int, end: int) -> NDArray[np.float64]:
        try:
            return self._signal.read(self.picks, span, begin, end)
        except (OSError, ValueError, IndexError) as error:
            problem = f"its signal cannot be read ({first_line(error)})"
            raise UnreadableRecordingError(f"{self._recording.path}: {problem}") from None

    def _filter(self, x_CT: NDArray[np.float64]) -> NDArray[np.float64]:
        for taps in self.filters:
            x_CT = apply_filter(x_CT, taps)
        if self.up != self.down:
            from scipy.signal import resample_poly

            # As mne.filter.resample(method="polyphase"), whose ratio depends on the length; here all pieces have one.
            x_CT = resample_poly(x_CT, self.up, self.down, axis=1, padtype="reflect")
        return x_CT

    def _spread(self, missing_CT: NDArray[np.bool_], out_CT: Floats, skip: int) -> None:
        """Set the output samples to NaN that depend on missing input samples, and no others."""
        channels, places = np.nonzero(missing_CT)
        n_samples = out_CT.shape[1]
        first = -(-(places - self._reach) * self.up // self.down) - skip
        last = (places + self._reach) * self.up // self.down - skip
        edges = np.zeros((len(out_CT), n_samples + 1), np.int64)
        np.add.at(edges, (channels, np.clip(first, 0, n_samples)), 1)
        np.add.at(edges, (channels, np.clip(last + 1, 0, n_samples)), -1)
        out_CT[edges[:, :-1].cumsum(axis=1) > 0] = np.nan


def filter_length(recording: Recording, rate: float, steps: Preprocessing) -> float:
    """Return the length in seconds of the longest filter for a sampling rate; 0 where there is none.

    Raises
    ------
    UnreadableRecordingError
        A filter does not fit the sampling rate.
    """
    return max((len(taps) / rate for taps in _filters(recording, rate, steps)), default=0.0)


def _filters(recording: Recording, rate: float, steps: Preprocessing) -> list[Floats]:
    """Return the taps of the filters, in the order in which they are applied."""
    if problem := misfit(steps, rate):
        raise UnreadableRecordingError(f"{recording.path}: sampled at {rate:g} Hz, so {problem}")
    filters = [design_notch(rate, *steps.notch)] if steps.notch else []
    return [*filters, design_band(rate, *steps.band)] if steps.band else filters
