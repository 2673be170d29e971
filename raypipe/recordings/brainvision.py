"""Read BrainVision recordings: a text header (``.vhdr``), a data file and a marker file.

Source: BrainVision Core Data Format 1.0 (Brain Products, 2018).

MNE's reader is not used: it wants the header's name in lower case, takes unknown units for volts, and fails on markers
that are not needed here.
"""

from __future__ import annotations

import codecs
import glob
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from raypipe.recordings.signal import Channel, Signal, Span, UnreadableRecordingError, spans_between
from raypipe.recordings.tables import parse_number
from raypipe.storage.regular_files import read_whole

_TYPES = {"int_16": "i2", "uint_16": "u2", "int_32": "i4", "ieee_float_32": "f4", "ieee_float_64": "f8"}
_NO_RESOLUTION = "its resolution in the header is no number other than zero"
_MAX_CHANNELS = 100_000
"""More are a damaged header."""
_DATA_SUFFIXES = (".eeg", ".dat", ".avg", ".seg")

Sections = dict[str, dict[str, str]]
"""Entries of a header by section; names of both in lower case."""


class BrainVisionSignal(Signal):
    """A BrainVision recording.

    The clock counts samples of the file, as BIDS events do: a pause at a "New Segment" splits the recording, but takes
    no time.

    Raises
    ------
    UnreadableRecordingError
        The header is damaged, its data file is missing or truncated, or it holds text.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        sections = _read_sections(path)
        common = sections.get("common infos", {})
        self._check_supported(common)
        n_channels = int(self._positive(common, "numberofchannels"))
        if n_channels != self._positive(common, "numberofchannels") or n_channels > _MAX_CHANNELS:
            raise UnreadableRecordingError(f"{path}: its header has no valid entry numberofchannels")
        self._rate = 1e6 / self._positive(common, "samplinginterval")
        infos = sections.get("channel infos", {})
        parsed = [_parse_channel(infos.get(f"ch{number}", ""), number) for number in range(1, n_channels + 1)]
        self._resolution_C1 = np.array([[resolution] for _, resolution, _ in parsed])
        self.channels = tuple(
            Channel(name, self._rate, unit, problem="" if _is_usable(resolution) else _NO_RESOLUTION)
            for name, resolution, unit in parsed
        )
        self._segment = self._segment_length(common)
        self._is_vectorized = common.get("dataorientation", "multiplexed").lower() == "vectorized"
        self._dtype = self._sample_type(sections.get("binary infos", {}))
        self._data_path = _find_data(path, common)
        self._marker_path = _find_companion(path, common, "markerfile", (".vmrk",))
        self._n_samples = self._count_samples(n_channels, common)

    def _check_supported(self, common: dict[str, str]) -> None:
        if common.get("dataformat", "binary").lower() != "binary":
            raise UnreadableRecordingError(
                f"{self.path}: its data are text (DataFormat={common['dataformat']}); export them as binary"
            )
        orientation = common.get("dataorientation", "multiplexed")
        if orientation.lower() not in ("multiplexed", "vectorized"):
            raise UnreadableRecordingError(f"{self.path}: unknown DataOrientation '{orientation}'")
        kind = common.get("datatype", "timedomain").lower()
        if kind not in ("timedomain", ""):
            raise UnreadableRecordingError(f"{self.path}: holds no signals over time (DataType={common['datatype']})")

    def _segment_length(self, common: dict[str, str]) -> int:
        """Return the samples of each segment of a segmented file; 0 for others."""
        if common.get("segmentationtype", "").lower() in ("", "notsegmented"):
            return 0
        return int(self._positive(common, "segmentdatapoints"))

    def _positive(self, common: dict[str, str], key: str) -> float:
        number = parse_number(common.get(key, "").replace(",", "."))
        if number is None or not 0 < number < np.inf:
            raise UnreadableRecordingError(f"{self.path}: its header has no valid entry {key}")
        return number

    def _sample_type(self, binary: dict[str, str]) -> np.dtype[Any]:
        name = binary.get("binaryformat", "int_16").lower()
        if name not in _TYPES:
            raise UnreadableRecordingError(f"{self.path}: unknown BinaryFormat '{binary['binaryformat']}'")
        order = ">" if binary.get("usebigendianorder", "no").lower() == "yes" else "<"
        return np.dtype(order + _TYPES[name])

    def _count_samples(self, n_channels: int, common: dict[str, str]) -> int:
        size, width = self._data_path.stat().st_size, n_channels * self._dtype.itemsize
        if size == 0 or size % width:
            raise UnreadableRecordingError(
                f"{self._data_path}: truncated: {size} bytes are no whole number of samples of {width} bytes"
            )
        announced = parse_number(common.get("datapoints", "")) or 0.0
        if size // width < announced or (self._is_vectorized and 0 < announced != size // width):
            raise UnreadableRecordingError(
                f"{self._data_path}: has {size // width} samples of each channel, its header announces {announced:g}"
            )
        return size // width

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """Return the stretches without a gap."""
        return spans_between(self._edges, self._rate)

    @cached_property
    def _edges(self) -> list[int]:
        inner = {start for start in _segment_starts(self._marker_path) if 0 < start < self._n_samples}
        if self._segment:
            inner.update(range(self._segment, self._n_samples, self._segment))
        return [0, *sorted(inner), self._n_samples]

    @cached_property
    def _data(self) -> NDArray[Any]:
        """Return a memory map of the data, (channels, samples)."""
        n_channels = len(self.channels)
        shape = (n_channels, self._n_samples) if self._is_vectorized else (self._n_samples, n_channels)
        data: NDArray[Any] = np.memmap(self._data_path, self._dtype, "r", shape=shape)
        return data if self._is_vectorized else data.T

    def read(self, picks: Sequence[int], span: int, begin: int, stop: int) -> NDArray[np.float64]:
        """Return samples as `Signal.read` does."""
        for pick in picks:
            if self.channels[pick].problem:
                channel = self.channels[pick]
                raise UnreadableRecordingError(f"{self.path}: channel '{channel.name}': {channel.problem}")
        first, last = self._edges[span], self._edges[span + 1]
        if not 0 <= begin <= stop <= last - first:
            raise IndexError(f"{self.path}: samples {begin} to {stop} of {last - first}")
        x_CT: NDArray[np.float64] = np.asarray(self._data[:, first + begin : first + stop])[list(picks)].astype(
            np.float64
        )
        x_CT *= self._resolution_C1[list(picks)]
        return x_CT


def companions(path: Path) -> list[Path]:
    """Return the data and the marker file that a header names and that exist.

    Raises
    ------
    UnreadableRecordingError
        The header is damaged or the data file is missing.
    """
    common = _read_sections(path).get("common infos", {})
    markers = _find_companion(path, common, "markerfile", (".vmrk",))
    return [*([markers] if markers else []), _find_data(path, common)]


def _read_sections(path: Path) -> Sections:
    """Read a header, up to its section of comments."""
    sections: Sections = {}
    current: dict[str, str] = {}
    for line in re.split(r"\r\n|\r|\n", _text(path))[1:]:  # splitlines() also splits at Latin-1's byte 85
        line = line.strip()
        if line.startswith("[") and line.endswith("]"):
            name = line[1:-1].strip().lower()
            if name == "comment":
                break
            current = sections.setdefault(name, {})
        elif "=" in line and not line.startswith(";"):
            key, _, value = line.partition("=")
            current.setdefault(key.strip().lower(), value.strip())
    return sections


def _text(path: Path, errors: str = "strict") -> str:
    """Return the text of a header or marker file: UTF-16 with a byte-order mark, UTF-8 if it is valid, else Latin-1.

    `errors` is what `bytes.decode` does with damaged UTF-16.
    """
    data = read_whole(path)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return normalize("NFC", data.decode("utf-16", errors))
    try:
        return normalize("NFC", data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return normalize("NFC", data.decode("latin-1"))


def _parse_channel(entry: str, number: int) -> tuple[str, float, str]:
    """Return name, resolution and unit of a channel; the defaults of the specification where they are left out.

    The resolution is NaN if it is no number, and if the unit is one, as after a decimal comma.
    """
    parts = [part.strip().replace("\\1", ",") for part in entry.split(",")] + [""] * 4
    resolution = parse_number(parts[2]) if parts[2] else 1.0
    if parse_number(parts[3]) is not None:
        resolution = None
    return parts[0] or f"Ch{number}", np.nan if resolution is None else resolution, parts[3] or "\u00b5V"


def _is_usable(resolution: float) -> bool:
    return bool(np.isfinite(resolution)) and resolution != 0


def _find_data(path: Path, common: dict[str, str]) -> Path:
    """Return the data file of a header.

    Raises
    ------
    UnreadableRecordingError
        There is none, or it is that of another header, from which this one was copied.
    """
    found = _find_companion(path, common, "datafile", _DATA_SUFFIXES)
    if found is None:
        named = common.get("datafile", "")
        raise UnreadableRecordingError(
            f"{path}: its data file '{named}' is missing, and no other has the header's name"
        )
    own = [each for each in path.parent.glob(f"{glob.escape(path.stem)}.*") if each.suffix.lower() in _DATA_SUFFIXES]
    if own and found not in own and found.with_suffix(path.suffix).is_file():
        raise UnreadableRecordingError(
            f"{path}: its header names {found.name}, the data of {found.stem}{path.suffix}; "
            f"correct DataFile ({own[0].name})"
        )
    return found


def _find_companion(path: Path, common: dict[str, str], key: str, suffixes: Sequence[str]) -> Path | None:
    """Return the file that a header names, in any case; else that of the header's own name, if the pair was renamed."""
    named = common.get(key, "").replace("$b", path.stem)
    name = re.split(r"[/\\]", named)[-1]
    if name and (path.parent / name).is_file():
        return path.parent / name
    present = [each for each in path.parent.iterdir() if each.is_file()]
    same = [each for each in present if name and normalize("NFC", each.name).casefold() == name.casefold()]
    renamed = [each for each in present if each.stem == path.stem and each.suffix.lower() in suffixes]
    for found in (same, renamed):
        if len(found) == 1:
            return found[0]
    return None


def _segment_starts(markers: Path | None) -> list[int]:
    """Return the samples at which segments begin; markers that cannot be read are left out."""
    if markers is None:
        return []
    text = _text(markers, "replace")
    found = re.findall(r"^\s*mk\d+\s*=\s*new segment\s*,[^,]*,\s*(\d+)(?:\.0*)?\s*(?:,|$)", text, re.I | re.M)
    return [int(position) - 1 for position in found]
