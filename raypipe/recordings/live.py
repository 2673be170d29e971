"""Samples that come while they are recorded: where they are continuous, and reading them as from a file."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from raypipe.recordings.signal import Channel, Signal, Span, UnreadableRecordingError

Floats = NDArray[np.float64]

JITTER = 0.05
"""Seconds by which stamps may be off where no other limit is given: drivers stamp the blocks in which they send."""
LAG = 10.0
"""Seconds over which stamps are compared: a clock may be off by 1/200 of the default limit of `StampCheck`."""


class Chunk(NamedTuple):
    """Consecutive samples of a stream."""

    samples: NDArray[np.floating]
    """(C, T), in the unit of each channel; T may be 0."""
    stamps: Floats
    """(T,) when each was taken (s), by any clock."""
    follows_loss: bool = False
    """Samples were lost before these, whatever the stamps say."""


class SampleSource(Protocol):
    """A stream of samples.

    Attributes
    ----------
    name
        Of the stream, for messages.
    channels
        Its channels, all of one rate.
    """

    name: str
    channels: tuple[Channel, ...]

    def pull(self) -> Chunk | None:
        """Return the samples that have come, perhaps none after a short wait; None at the end of the stream."""


class StampCheck:
    """Find where samples were lost, by their stamps.

    Two samples that are one apart, or `LAG` seconds, are continuous if their stamps are as far apart as their numbers
    say, up to a limit. The second distance finds losses that are small but many, and a rate that is not the stated one.

    Parameters
    ----------
    rate
        Sampling rate (Hz).
    jitter
        The limit (s).
    """

    def __init__(self, rate: float, jitter: float) -> None:
        self._rate, self._jitter = rate, jitter
        self._lag = max(1, round(LAG * rate))
        self._n = 0
        self._off_T: Floats = np.empty(0)
        """By how much the stamps of the last samples since a loss are off those that their numbers say."""

    def losses(self, stamps_T: Floats) -> list[int]:
        """Return the places of the samples to come before which others were lost."""
        found: list[int] = []
        start = 0
        while start < len(stamps_T):
            off_T = stamps_T[start:] - (self._n + np.arange(len(stamps_T) - start)) / self._rate
            n = self._first_loss(off_T)
            self._off_T = np.concatenate((self._off_T, off_T[:n]))[-self._lag :]
            self._n += n
            start += n
            if start < len(stamps_T):
                found.append(start)
                self.restart()
        return found

    def _first_loss(self, off_T: Floats) -> int:
        """Return the number of samples up to the first loss."""
        both_T = np.concatenate((self._off_T, off_T))
        n_before = len(self._off_T)
        place_T = np.arange(max(n_before, 1), len(both_T))  # the first sample of all follows none
        far_T = both_T[np.maximum(place_T - self._lag, 0)]
        off_by_T = np.maximum(np.abs(both_T[place_T] - both_T[place_T - 1]), np.abs(both_T[place_T] - far_T))
        lost = np.flatnonzero(~(off_by_T <= self._jitter))
        return int(place_T[lost[0]]) - n_before if len(lost) else len(off_T)

    def restart(self) -> None:
        """Forget the samples so far: those to come are not continuous with them."""
        self._n, self._off_T = 0, np.empty(0)


class LiveSignal(Signal):
    """A stretch of a stream without a loss, which grows. It is one span, of which old samples may be forgotten.

    Parameters
    ----------
    name
        Of the stream, for messages.
    channels
        Channels of one rate, with the units of the samples.
    """

    def __init__(self, name: str, channels: Sequence[Channel]) -> None:
        self.path, self.channels, self.rate = Path(name), tuple(channels), channels[0].rate
        self.n_times = 0
        self._buffer_XT = np.empty((len(channels) + 1, round(self.rate) + 1))  # the last row are stamps
        self._first = self._end = 0
        """Places of the held samples in the buffer."""

    @property
    def spans(self) -> tuple[Span, ...]:
        """Return the stretch."""
        return (Span(0.0, self.n_times / self.rate),)

    def add(self, chunk: Chunk) -> None:
        """Add samples at the end."""
        n = len(chunk.stamps)
        if self._end + n > self._buffer_XT.shape[1]:
            self._make_room(n)
        self._buffer_XT[:-1, self._end : self._end + n] = chunk.samples
        self._buffer_XT[-1, self._end : self._end + n] = chunk.stamps
        self._end += n
        self.n_times += n

    def _make_room(self, n: int) -> None:
        held_XT = self._buffer_XT[:, self._first : self._end]
        if 2 * (held_XT.shape[1] + n) > self._buffer_XT.shape[1]:
            self._buffer_XT = np.empty((len(self._buffer_XT), 4 * (held_XT.shape[1] + n)))
        self._buffer_XT[:, : held_XT.shape[1]] = held_XT.copy()
        self._first, self._end = 0, held_XT.shape[1]

    def forget(self, before: int) -> None:
        """Forget the samples before one."""
        self._first = min(max(self._first, self._end - self.n_times + before), self._end)

    def stamp(self, place: float) -> float:
        """Return when a place of the stretch is, in samples from its start; between two it is interpolated.

        Raises
        ------
        UnreadableRecordingError
            The sample was forgotten, or has not come yet.
        """
        sample = int(place)
        return float(self._rows(sample, sample + 1)[-1, 0] + (place - sample) / self.rate)

    def read(self, picks: Sequence[int], span: int, begin: int, stop: int) -> Floats:
        """Return samples; see `Signal.read`.

        Raises
        ------
        UnreadableRecordingError
            They were forgotten, or have not come yet.
        """
        return self.view(begin, stop)[list(picks)]

    def view(self, begin: int, stop: int) -> Floats:
        """Return samples of all channels without a copy; they are valid until others are added."""
        return self._rows(begin, stop)[:-1]

    def _rows(self, begin: int, stop: int) -> Floats:
        offset = self._end - self.n_times
        if not self._first <= begin + offset <= stop + offset <= self._end:
            raise UnreadableRecordingError(f"{self.path}: samples {begin} to {stop} are not held")
        return self._buffer_XT[:, begin + offset : stop + offset]


def split_at(chunk: Chunk, places: Sequence[int]) -> list[Chunk]:
    """Split samples before some of them; parts after the first follow a loss, and the first does as the whole does."""
    edges = [0, *(place for place in places if place > 0), len(chunk.stamps)]
    return [
        Chunk(chunk.samples[:, first:end], chunk.stamps[first:end], first > 0 or 0 in places or chunk.follows_loss)
        for first, end in pairwise(edges)
    ]
