"""Preprocess a stretch of a stream while it comes, each sample once; the numbers are those of `PieceReader`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypipe.data.manifest import Plan
from raypipe.data.piece_reader import MAX_SAMPLE, PieceReader, RateReader
from raypipe.recordings.live import Chunk, LiveSignal
from raypipe.recordings.signal import Channel

Floats = NDArray[np.float64]

BLOCK = 0.05
"""Seconds that are preprocessed at a time, so that little is left to do when a window's last sample has come."""
MAX_UP = 200
"""Largest factor of interpolation for which all filters are combined into one."""
MAX_MATRICES = 64


@lru_cache(maxsize=1)
def _blas() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


class LiveReader:
    """Read what has been preprocessed of a stretch, from its start on.

    Filters and resampling are linear. They are combined into one FIR filter, of which only the wanted samples are
    computed, for all channels by one product of matrices.

    Parameters
    ----------
    signal
        The stretch, which grows; its channels are those that the plan reads, in its order.
    reader
        Of the signal.

    Attributes
    ----------
    n_times
        Samples that have been preprocessed.
    """

    def __init__(self, signal: LiveSignal, reader: PieceReader, plan: Plan) -> None:
        self._signal, self._reader = signal, reader
        (self._part,) = reader.parts
        self._block = max(1, round(BLOCK * plan.sfreq))
        self._out = LiveSignal(str(signal.path), [Channel(name, plan.sfreq, "uV") for name in plan.channels])
        self._kernel_G = combined_kernel(self._part) if self._part.up <= MAX_UP else None
        self._matrices: dict[tuple[int, int], Floats] = {}
        self._n_checked, self._last_missing = 0, -1

    @property
    def n_times(self) -> int:
        """Return the number of samples that have been preprocessed."""
        return self._out.n_times

    def advance(self, stop: int) -> bool:
        """Preprocess what can be, in blocks, up to a sample; return whether all up to there is done.

        A sample is computed in the same block, whenever the samples that it needs have come.
        """
        while (start := self.n_times) < stop:
            end = min(stop, (start // self._block + 1) * self._block)
            if round(self._reader.needed(start, end)[1] * self._signal.rate) > self._signal.n_times:
                return False
            self._append(self._preprocessed(start, end))
        return True

    def finish(self, stop: int) -> None:
        """Preprocess up to a sample as at the end of a file: nothing comes after the signal."""
        if stop > self.n_times:
            self._append(self._reader.read(0, self.n_times, stop))

    def read(self, start: int, stop: int) -> Floats:
        """Return the preprocessed samples (C, stop - start) in microvolts; see `PieceReader.read`."""
        return self._out.read(range(len(self._out.channels)), 0, start, stop)

    def forget(self, before: int) -> None:
        """Forget preprocessed samples before one, and those of the signal that are no longer needed."""
        self._out.forget(before)
        begin = round(self._reader.needed(self.n_times, self.n_times + 1)[0] * self._signal.rate)
        self._signal.forget(min(begin, before * self._part.down // self._part.up))

    def _append(self, x_CT: Floats) -> None:
        self._out.add(Chunk(x_CT, np.zeros(x_CT.shape[1])))

    def _preprocessed(self, start: int, stop: int) -> Floats:
        part, kernel_G = self._part, self._kernel_G
        # scipy.signal.resample_poly reflects otherwise than the filters do.
        is_reflected = part.up != part.down and start * part.down < 10 * max(part.up, part.down)
        if kernel_G is None or is_reflected:
            return self._reader.read(0, start, stop)
        half = len(kernel_G) // 2
        begin = -((half - start * part.down) // part.up)
        end = ((stop - 1) * part.down + half) // part.up + 1
        if self._is_missing(begin, end):
            return self._reader.read(0, start, stop)  # which finds the samples that missing ones reach
        key = (start % part.up, stop - start)
        if key not in self._matrices:
            if len(self._matrices) == MAX_MATRICES:
                self._matrices.clear()
            self._matrices[key] = _matrix(kernel_G, part, start, stop, begin, end)
        with _blas().limit(limits=1, user_api="blas"):  # threads cost more than these products where cores are busy
            return self._reader.combine(part.scale_C1 * (self._extended(begin, end) @ self._matrices[key]))

    def _extended(self, begin: int, end: int) -> Floats:
        """Return samples; before the first one the signal is continued by odd reflection, as `apply_filter` does.

        A symmetric filter keeps this symmetry, so it holds for filters one after another too.
        """
        if begin >= 0:
            return self._signal.view(begin, end)
        x_CT = self._signal.view(0, max(end, 1 - begin))
        return np.concatenate((2 * x_CT[:, :1] - x_CT[:, -begin:0:-1], x_CT[:, :end]), axis=1)

    def _is_missing(self, begin: int, end: int) -> bool:
        """Return whether a sample is missing among some; each is looked at once."""
        if self._n_checked < end:
            is_missing_T = ~(np.abs(self._signal.view(self._n_checked, end)) < MAX_SAMPLE).all(axis=0)
            if is_missing_T.any():
                self._last_missing = self._n_checked + int(np.flatnonzero(is_missing_T)[-1])
            self._n_checked = end
        return self._last_missing >= max(begin, 0)


def combined_kernel(part: RateReader) -> Floats:
    """Return the taps of all filters and the resampling at the interpolated rate, symmetric and of odd length."""
    from scipy.signal import fftconvolve, firwin

    taps_N = np.ones(1)
    for taps in part.filters:
        taps_N = np.convolve(taps_N, taps)
    if part.up == part.down:
        return taps_N
    spread_G = np.zeros((len(taps_N) - 1) * part.up + 1)
    spread_G[:: part.up] = taps_N
    most = max(part.up, part.down)
    resample_N = part.up * firwin(20 * most + 1, 1.0 / most, window=("kaiser", 5.0))  # as scipy.signal.resample_poly
    return np.asarray(fftconvolve(spread_G, resample_N))


def _matrix(kernel_G: Floats, part: RateReader, start: int, stop: int, begin: int, end: int) -> Floats:
    """Return the matrix that makes output samples from `start` to `stop` of input samples from `begin` to `end`."""
    place_NT = len(kernel_G) // 2 + np.arange(start, stop) * part.down - np.arange(begin, end)[:, None] * part.up
    is_inside_NT = (place_NT >= 0) & (place_NT < len(kernel_G))
    return np.where(is_inside_NT, kernel_G[np.clip(place_NT, 0, len(kernel_G) - 1)], 0.0)
