"""The samples of one recording, as every reader of a file format gives them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raypipe.core.errors import UserError


class UnreadableRecordingError(UserError):
    """A recording or a table beside it cannot be read. Other recordings may be readable."""


@dataclass(frozen=True)
class Channel:
    """One channel of a file. Channels that hold text (annotations of EDF+) are not listed."""

    name: str
    """Label in the file, in Unicode's NFC form and without spaces around it. Two channels may have the same one."""
    rate: float
    """Sampling rate in Hz."""
    unit: str
    """Unit of the values that `Signal.read` returns, spelt as in the file; empty where the file leaves it blank."""
    type: str | None = None
    """Type in the words of channels.tsv, in lower case (``eeg``, ``eog``, ``misc``), where the file states it."""
    problem: str = ""
    """What keeps the channel from being read, such as equal physical limits in its header; empty for sound channels."""


@dataclass(frozen=True)
class Span:
    """A stretch of a recording without a gap."""

    onset: float
    """Seconds from the recording's first sample to the span's first, by the recording's clock."""
    duration: float
    """Seconds; a channel of rate r has ``round(duration * r)`` samples in the span."""


def spans_between(edges: Sequence[int], rate: float) -> tuple[Span, ...]:
    """Return the spans between the samples at which a recording begins, breaks and ends; its clock counts samples."""
    return tuple(Span(first / rate, (last - first) / rate) for first, last in pairwise(edges))


class Signal(ABC):
    """An open recording file.

    Attributes
    ----------
    path
        The file.
    channels
        The channels in file order. Reading them needs the header only.
    note
        What a user should know of the file, a sentence without a full stop; mostly empty.
    unit_source
        What says that EEG has the unit of its channel: the `file` (EDF, BrainVision), the `format` (FIF: volts), or a
        `convention` (EEGLAB: microvolts).
    """

    path: Path
    channels: tuple[Channel, ...]
    note: str = ""
    unit_source: Literal["file", "format", "convention"] = "file"

    @property
    @abstractmethod
    def spans(self) -> tuple[Span, ...]:
        """Return the stretches without a gap, by ascending onset; may read the whole file.

        Raises
        ------
        UnreadableRecordingError
            The times in the file contradict each other.
        """

    @abstractmethod
    def read(self, picks: Sequence[int], span: int, begin: int, stop: int) -> NDArray[np.float64]:
        """Return samples of channels that have one rate, exactly as the file holds them.

        Parameters
        ----------
        picks
            Places of the channels in `channels`.
        span
            Place of the span in `spans`.
        begin, stop
            Samples from the span's start, at the rate of the channels.

        Returns
        -------
        numpy.ndarray
            (C, stop - begin), in the unit of each channel; NaN for missing samples.

        Raises
        ------
        UnreadableRecordingError
            The file cannot be read.
        """
