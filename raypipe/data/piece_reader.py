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

    Raises
    ------
    UnreadableRecordingError
        A filter does not fit a sampling rate, or bad channels cannot be interpolated.
    """

    def __init__(
        self, recording: Recording, signal: Signal, channels: EegChannels, places: list[int], plan: Plan
    ) -> None:
        self._parts = [
            _RateReader(recording, signal, channels, places, rate, plan)
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
        self.margin = max(part.margin for part in self._parts)

    def read(self, span: int, start: int, stop: int) -> Floats:
        """Return the samples of a span from `start` to `stop` at the windows' rate, (C, stop - start), in microvolts.

        Missing samples, and those that the filters and other channels spread them to, are NaN.
        """
        x_ST = self._read_sources(span, start, stop)
        if self._matrix is not None:
            return mix(self._matrix, x_ST)
        return x_ST if self._n_sources == len(self._picks) else x_ST[self._picks]

    def _read_sources(self, span: int, start: int, stop: int) -> Floats:
        if len(self._parts) == 1:
            return self._parts[0].read(span, start, stop)
        x_ST = np.empty((self._n_sources, stop - start))
        for part in self._parts:
            x_ST[part.rows] = part.read(span, start, stop)
        return x_ST


class _RateReader:
    """Read the channels of one sampling rate.

    Attributes
    ----------
    rows
        Their places among the plan's channels.
    """

    def __init__(
        self, recording: Recording, signal: Signal, channels: EegChannels, places: list[int], rate: float, plan: Plan
    ) -> None:
        self._recording, self._signal, self._rate = recording, signal, rate
        self.rows = [row for row, place in enumerate(places) if channels.rates[place] == rate]
        self._picks = [channels.picks[places[row]] for row in self.rows]
        self._scale_C1 = np.array([[channels.volts[places[row]] * 1e6] for row in self.rows])
        ratio = Fraction(plan.sfreq / rate).limit_denominator(10_000)
        self._up, self._down = ratio.numerator, ratio.denominator
        self._filters = _filters(recording, rate, plan.preprocessing)
        self._reach = sum(len(taps) // 2 for taps in self._filters)
        if self._up != self._down:
            # scipy.signal.resample_poly filters 10 * max(up, down) samples either side, at the interpolated rate.
            self._reach += -(-10 * max(self._up, self._down) // self._up)
        self._overlap = self._reach + 2 if self._reach else 0
        self.margin = int(self._overlap * self._up / self._down) + 1

    def read(self, span: int, start: int, stop: int) -> Floats:
        """Return samples as `PieceReader.read` does."""
        up, down = self._up, self._down
        n_times = round(self._signal.spans[span].duration * self._rate)
        # Start at an input sample whose time is that of an output sample.
        block = max(0, (start * down // up - self._overlap) // down)
        begin, end = block * down, min(n_times, -(-stop * down // up) + 1 + self._overlap)
        x_CT = self._read_samples(span, begin, end)
        missing_CT = ~(np.abs(x_CT) < MAX_SAMPLE)
        has_missing = bool(missing_CT.any())
        if has_missing:
            x_CT = np.where(missing_CT, 0.0, x_CT)
        skip = start - block * up
        out_CT: Floats = self._filter(x_CT)[:, skip : skip + stop - start] * self._scale_C1
        if has_missing:
            self._spread(missing_CT, out_CT, skip)
        return out_CT

    def _read_samples(self, span: int, begin: int, end: int) -> NDArray[np.float64]:
        try:
            return self._signal.read(self._picks, span, begin, end)
        except (OSError, ValueError, IndexError) as error:
            problem = f"its signal cannot be read ({first_line(error)})"
            raise UnreadableRecordingError(f"{self._recording.path}: {problem}") from None

    def _filter(self, x_CT: NDArray[np.float64]) -> NDArray[np.float64]:
        for taps in self._filters:
            x_CT = apply_filter(x_CT, taps)
        if self._up != self._down:
            from scipy.signal import resample_poly

            # As mne.filter.resample(method="polyphase"), whose ratio depends on the length; here all pieces have one.
            x_CT = resample_poly(x_CT, self._up, self._down, axis=1, padtype="reflect")
        return x_CT

    def _spread(self, missing_CT: NDArray[np.bool_], out_CT: Floats, skip: int) -> None:
        """Set the output samples to NaN that depend on missing input samples, and no others."""
        channels, places = np.nonzero(missing_CT)
        n_samples = out_CT.shape[1]
        first = -(-(places - self._reach) * self._up // self._down) - skip
        last = (places + self._reach) * self._up // self._down - skip
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
