"""Read EEGLAB data sets (``.set``, with the signal inside or in a ``.fdt`` file), continuous ones.

Source: EEGLAB's documentation of the EEG structure. SciPy reads the MATLAB file; events are used for boundaries only,
so that an odd one does no harm.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from raypipe.recordings.signal import Channel, Signal, Span, UnreadableRecordingError, spans_between

UNIT = "uV"
"""EEGLAB's unit by convention; the file names none."""
_BOUNDARIES = ("boundary", "-99", "-99.0")
"""Types of an event between samples that were not recorded one after the other."""


class EeglabSignal(Signal):
    """A continuous EEGLAB data set.

    Raises
    ------
    UnreadableRecordingError
        The file is no data set, holds epochs, or its data file is missing or truncated.
    """

    unit_source = "convention"

    def __init__(self, path: Path) -> None:
        self.path = path
        fields = _load(path)
        if not all(name in fields for name in ("nbchan", "pnts", "srate", "data")):
            raise UnreadableRecordingError(f"{path}: not an EEGLAB data set (it has no signal)")
        n_channels, self._n_samples = int(fields["nbchan"]), int(fields["pnts"])
        if _number(fields.get("trials", 1), 1) > 1:
            raise UnreadableRecordingError(f"{path}: holds epochs; save the continuous data set")
        self._rate = float(fields["srate"])
        if n_channels < 1 or self._n_samples < 1 or not 0 < self._rate < np.inf:
            raise UnreadableRecordingError(f"{path}: not an EEGLAB data set (it has no signal)")
        self.channels = tuple(_channels(_records(fields.get("chanlocs")), n_channels, self._rate))
        self._events = _records(fields.get("event"))
        self._data = self._map(fields["data"], n_channels)

    def _map(self, data: Any, n_channels: int) -> NDArray[Any]:
        """Return the signal (channels, samples): in memory, or as a memory map of the ``.fdt`` file."""
        if not isinstance(data, str):
            x_CT, shape = np.asarray(data), (n_channels, self._n_samples)
            if x_CT.dtype.kind not in "fiu" or [n for n in x_CT.shape if n != 1] != [n for n in shape if n != 1]:
                raise UnreadableRecordingError(
                    f"{self.path}: its signal is {x_CT.dtype} of shape {x_CT.shape}, its header announces {shape}"
                )
            return x_CT.reshape(shape)
        if data.lower().endswith(".dat"):
            raise UnreadableRecordingError(f"{self.path}: saved by an old EEGLAB (.dat); save it again with a new one")
        file = _find_fdt(self.path, data)
        if file is None:
            raise UnreadableRecordingError(f"{self.path}: its data file '{data}' is missing")
        expected, size = 4 * n_channels * self._n_samples, file.stat().st_size
        if size != expected:
            raise UnreadableRecordingError(f"{file}: has {size} bytes, but its header announces {expected}")
        return np.memmap(file, "<f4", "r", shape=(self._n_samples, n_channels)).T

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """Return the stretches without a boundary; the clock counts the file's samples."""
        return spans_between(self._edges, self._rate)

    @cached_property
    def _edges(self) -> list[int]:
        inner = set()
        for event in self._events:
            latency = _number(event.get("latency"), math.nan)  # from 1; x.5 lies between two samples
            if str(event.get("type")).strip().lower() in _BOUNDARIES and math.isfinite(latency):
                inner.add(math.ceil(latency - 1))
        return [0, *sorted(start for start in inner if 0 < start < self._n_samples), self._n_samples]

    def read(self, picks: Sequence[int], span: int, begin: int, stop: int) -> NDArray[np.float64]:
        """Return samples as `Signal.read` does."""
        first, last = self._edges[span], self._edges[span + 1]
        if not 0 <= begin <= stop <= last - first:
            raise IndexError(f"{self.path}: samples {begin} to {stop} of {last - first}")
        return np.asarray(self._data[:, first + begin : first + stop])[list(picks)].astype(np.float64)


def companions(path: Path) -> list[Path]:
    """Return the ``.fdt`` file of a data set, if it has one that exists."""
    if not any(file.suffix.lower() == ".fdt" for file in path.parent.iterdir()):
        return []
    data = _load(path, ["EEG", "data", "datfile"]).get("data")
    file = _find_fdt(path, data) if isinstance(data, str) else None
    return [file] if file else []


def _find_fdt(path: Path, named: str) -> Path | None:
    """Return the data file that a data set names, or that of its own name if the pair was renamed; in any case."""
    present = [each for each in path.parent.iterdir() if each.is_file()]
    for name in (Path(named.replace("\\", "/")).name, f"{path.stem}.fdt"):
        same = [each for each in present if each.name.casefold() == name.casefold()]
        exact = [each for each in same if each.name == name]
        if exact or len(same) == 1:
            found = (exact or same)[0]
            _check_own(path, found)
            return found
    return None


def _check_own(path: Path, found: Path) -> None:
    """Check that the data file of a data set is not that of another, from which this one was copied.

    Raises
    ------
    UnreadableRecordingError
        It is, and the data set has one of its own.
    """
    own = path.with_suffix(".fdt")
    if own.is_file() and found != own and found.with_suffix(path.suffix).is_file():
        raise UnreadableRecordingError(
            f"{path}: names {found.name}, the data of {found.stem}{path.suffix}; "
            f"save it again so that it names {own.name}"
        )


def _load(path: Path, names: list[str] | None = None) -> Mapping[str, Any]:
    """Return the fields of the EEG structure, which newer versions save as variables of their own."""
    from scipy.io import loadmat

    with open(path, "rb") as file:
        if file.read(10).startswith((b"\x89HDF\r\n\x1a\n", b"MATLAB 7.3")):
            raise UnreadableRecordingError(f"{path}: saved as MATLAB 7.3 (HDF5); save it as MATLAB 7 in EEGLAB")
    options: dict[str, Any] = {"squeeze_me": True, "struct_as_record": False, "variable_names": names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            content = loadmat(path, **options)
        except UnicodeDecodeError:
            content = loadmat(path, uint16_codec="latin-1", **options)
    if "EEG" in content and not hasattr(content["EEG"], "_fieldnames"):
        raise UnreadableRecordingError(f"{path}: not an EEGLAB data set (EEG is not one structure)")
    fields: Mapping[str, Any] = vars(content["EEG"]) if "EEG" in content else content
    return fields


def _records(field: Any) -> list[Mapping[str, Any]]:
    """Return the fields of each element of an array of structures."""
    return [vars(each) for each in np.atleast_1d(np.asarray(field, dtype=object)) if hasattr(each, "_fieldnames")]


def _number(value: Any, default: float) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return default


def _channels(locations: list[Mapping[str, Any]], n_channels: int, rate: float) -> list[Channel]:
    if len(locations) != n_channels:
        return [Channel(f"EEG {number:03d}", rate, UNIT) for number in range(n_channels)]
    return [Channel(_label_of(each) or f"EEG {n:03d}", rate, UNIT, _type_of(each)) for n, each in enumerate(locations)]


def _label_of(location: Mapping[str, Any]) -> str:
    """Return a channel's label; an empty one is an array of no characters to SciPy."""
    label = location.get("labels", "")
    return normalize("NFC", str(label)).strip() if np.size(label) else ""


def _type_of(location: Mapping[str, Any]) -> str | None:
    kind = location.get("type")
    return kind.strip().lower() or None if isinstance(kind, str) else None
