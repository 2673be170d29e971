"""Read FIF files, and recordings that MNE has read, with MNE."""

from __future__ import annotations

import re
import struct
import warnings
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypipe.core.errors import first_line
from raypipe.recordings.signal import Channel, Signal, Span, UnreadableRecordingError

_GAPS = ("bad_acq_skip",)
"""Annotations, in lower case, of stretches that were not recorded."""
_SPLICES = ("bad boundary", "edge boundary", "boundary", "new segment/")
"""Annotations of times at which recordings were joined."""
_TAG = struct.Struct(">4i")
_FILE_ID = (100, 31, 20)
"""Kind, type and size of the first tag of a file."""
_ROLE, _NEXT_FILE, _FILE_NAME = 115, 2, 118
"""Kind of the tag that says what a reference to another file means, its value for the next part of a split file, and
kind of the tag with that file's name."""
_TYPES = {"stim": "trig"}
"""Types of MNE that channels.tsv calls otherwise."""


class RawSignal(Signal):
    """The signal of an `mne.io.Raw`, in volts.

    Parameters
    ----------
    raw
        The recording.
    path
        Its file, or what it is called in messages.
    """

    unit_source = "format"

    def __init__(self, raw: Any, path: Path) -> None:
        self.path = path
        self._raw = raw
        self._rate = float(self._raw.info["sfreq"])
        types = self._raw.get_channel_types()
        self.channels = tuple(
            Channel(name.strip(), self._rate, "V", _TYPES.get(kind, kind))
            for name, kind in zip(self._raw.ch_names, types, strict=True)
        )

    @property
    def first_sample(self) -> int:
        """Return the number of the first sample by the clock of the acquisition, which starts before a FIF file."""
        return int(self._raw.first_samp)

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """Return the stretches between skips and joins."""
        return tuple(Span(first / self._rate, (last - first) / self._rate) for first, last in self._stretches)

    @cached_property
    def _stretches(self) -> list[tuple[int, int]]:
        """Return the first sample of each span and the one after its last."""
        recorded_T = np.ones(self._raw.n_times, bool)
        cuts = {0, self._raw.n_times}
        first_time = self._raw.first_samp / self._rate
        for onset, duration, text in self._annotations():
            start = round((onset - first_time) * self._rate)
            if text in _GAPS:
                recorded_T[max(0, start) : max(0, start + round(duration * self._rate))] = False
            elif text in _SPLICES:
                cuts.add(start)
        changes = np.flatnonzero(np.diff(recorded_T)) + 1
        edges = sorted({cut for cut in [*cuts, *changes.tolist()] if 0 <= cut <= self._raw.n_times})
        return [(a, b) for a, b in pairwise(edges) if recorded_T[a]]

    def _annotations(self) -> list[tuple[float, float, str]]:
        """Return onset (s, by the clock of `first_samp`), duration (s) and lower-case text of finite annotations."""
        notes = self._raw.annotations
        times = zip(notes.onset, notes.duration, notes.description, strict=True)
        return [(t, d, str(text).lower()) for t, d, text in times if np.isfinite([t, d]).all()]

    def read(self, picks: Sequence[int], span: int, begin: int, stop: int) -> NDArray[np.float64]:
        """Return samples as `Signal.read` does."""
        first, last = self._stretches[span]
        if not 0 <= begin <= stop <= last - first:
            raise IndexError(f"{self.path}: samples {begin} to {stop} of {last - first}")
        if begin == stop:
            return np.empty((len(picks), 0))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                x_CT: NDArray[np.float64] = self._raw[list(picks), first + begin : first + stop][0]
        except Exception as error:  # MNE raises exceptions of many types
            raise UnreadableRecordingError(f"{self.path}: its signal cannot be read ({first_line(error)})") from None
        return x_CT


class FifSignal(RawSignal):
    """A FIF file with continuous data, and the files that it was split into.

    Raises
    ------
    UnreadableRecordingError
        MNE cannot read the file, or would read for ever.
    """

    def __init__(self, path: Path) -> None:
        import mne

        check_whole(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            raw = mne.io.read_raw_fif(path, preload=False, allow_maxshield=True, verbose="ERROR")
        for part in raw.filenames[1:]:
            check_whole(Path(part))
        super().__init__(raw, path)


def is_fif(path: Path) -> bool:
    """Return whether a file begins as FIF files do: with a tag of kind 100, which names the file."""
    with open(path, "rb") as file:
        first = file.read(_TAG.size)
    return len(first) == _TAG.size and _TAG.unpack(first)[:3] == _FILE_ID


def check_whole(path: Path) -> None:
    """Check that the last tag of a file is there: MNE takes a file that was cut between two tags for a shorter one.

    A tag begins with its kind, type, size and the place of the next one: 0 for the one that follows, -1 for the last.

    Raises
    ------
    UnreadableRecordingError
        It is not there, or tags lead back to earlier ones, and MNE would read for ever.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        place, seen = 0, set[int]()
        while place + _TAG.size <= size:
            if place in seen or place < 0:
                raise UnreadableRecordingError(f"{path}: damaged: the tags after byte {max(seen)} lead back")
            seen.add(place)
            file.seek(place)
            _, _, length, following = _TAG.unpack(file.read(_TAG.size))
            place = following if following > 0 else place + _TAG.size + length
            if following == -1 and place <= size:
                return
    raise UnreadableRecordingError(f"{path}: truncated: it has {size} bytes and lacks its last tag")


def next_part(path: Path) -> Path | None:
    """Return the next part of a FIF file that was split by size, as the file itself names it; None if there is none.

    Names alone do not say it: ``a-1.fif`` may be another recording than ``a.fif``.
    """
    size, role, place = path.stat().st_size, 0, 0
    with open(path, "rb") as file:
        while place + _TAG.size <= size:
            file.seek(place)
            kind, _, length, following = _TAG.unpack(file.read(_TAG.size))
            if kind in (_ROLE, _FILE_NAME) and 0 < length <= 1000:
                content = file.read(length)
                if kind == _ROLE:
                    role = int.from_bytes(content, "big")
                elif role == _NEXT_FILE:
                    return path.parent / content.decode("latin-1")
            last, place = place, following if following > 0 else place + _TAG.size + length
            if following < 0 or place <= last:
                break
    return None


def companions(path: Path) -> list[Path]:
    """Return the later files of a split recording, named as BIDS (``_split-02_``) or MNE (``-1.fif``) do."""
    pattern = re.escape(path.stem)
    named = [rf"{pattern}-\d+\.fif"]
    split = re.search(r"_split-0*1(?=_|$)", path.stem)
    if split:
        named.append(
            re.escape(path.stem[: split.start()]) + r"_split-\d+" + re.escape(path.stem[split.end() :]) + r"\.fif"
        )
    found = [each for each in path.parent.iterdir() if any(re.fullmatch(name, each.name) for name in named)]
    return sorted(each for each in found if each != path and each.is_file())
