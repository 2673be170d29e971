"""Read EDF, EDF+, BDF and BDF+ files.

Sources: Kemp et al. 1992 (doi:10.1016/0013-4694(92)90009-7), Kemp and Olivan 2003 (EDF+), BioSemi's description of BDF.

MNE's reader (checked with 1.13.2) is not used. Without preloading it slices channels that are slower than the fastest
one wrongly. It takes the records of a discontinuous file for continuous and unknown units for volts, and it goes by the
file's name. edfio (checked with 0.4.18) holds BDF files in memory as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypipe.recordings.signal import Channel, Signal, Span, UnreadableRecordingError
from raypipe.recordings.units import decode_field

EDF_MAGIC = b"0       "
BDF_MAGIC = b"\xffBIOSEMI"

_FIXED = 256
"""Bytes of the fixed part of the header, and of the header of one signal."""
_FIELDS = {"label": 16, "transducer": 80, "unit": 8, "pmin": 8, "pmax": 8, "dmin": 8, "dmax": 8, "filter": 80}
"""Bytes of a signal's fields, in file order; `samples` (8) and 32 reserved bytes follow."""
_ANNOTATIONS = ("edf annotations", "bdf annotations")
_TYPES = {"eeg", "ecg", "ekg", "eog", "emg", "erg", "mcg", "meg", "ep", "resp", "temp", "sao2", "oximetry"}
"""First words of labels that state a type (EDF+ specification, texts)."""
_MIN_ROUNDED_DECIMALS = 3
"""Times of records with fewer decimals are not taken for rounded ones: that would hide gaps."""
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
MAX_GAIN = 1e12
"""Units per digit from which on limits are taken for nonsense."""
_ONSET = re.compile(rb"([+-]\d+(?:\.\d*)?)(?:\x15[\d.]*)?\x14")


@dataclass(frozen=True)
class _SignalHeader:
    """The header of one signal, annotations included."""

    label: str
    unit: str
    gain: float
    """Physical units per digit."""
    offset: float
    """Physical value of the digital value 0."""
    first: int
    """Place of its first sample in a record."""
    samples: int
    """Samples in a record."""
    problem: str

    @property
    def is_text(self) -> bool:
        """Return whether the signal holds annotations."""
        return self.label.casefold() in _ANNOTATIONS


class EdfSignal(Signal):
    """An EDF or BDF file. Its first bytes say which it is, not its name.

    Raises
    ------
    UnreadableRecordingError
        The header is damaged, or the file is shorter than its header says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as file:
            fixed = file.read(_FIXED)
            self._is_bdf = fixed.startswith(BDF_MAGIC)
            n_signals = self._whole_number(fixed[252:256])
            if not 0 <= n_signals < 10_000:
                raise self._damaged()
            headers = file.read(_FIXED * n_signals)
        if len(headers) < _FIXED * n_signals:
            raise UnreadableRecordingError(f"{path}: truncated: it ends in its header")
        self._start = self._whole_number(fixed[184:192])
        if self._start != _FIXED * (n_signals + 1):
            raise UnreadableRecordingError(
                f"{path}: its header announces {self._start} bytes for itself; that of {n_signals} channels has "
                f"{_FIXED * (n_signals + 1)}"
            )
        seconds = _number(fixed[244:252])
        is_timed = bool(np.isfinite(seconds) and seconds > 0)
        self._seconds = seconds if is_timed else 0.0
        self._is_discontinuous = fixed[192:236].strip().upper().startswith((b"EDF+D", b"BDF+D"))
        self._headers = self._parse(headers, n_signals)
        self._record_samples = sum(header.samples for header in self._headers)
        self._n_records = self._count_records(self._whole_number(fixed[236:244]))
        self._signals = [h for h in self._headers if not h.is_text and h.samples > 0 and is_timed]
        self.channels = tuple(
            Channel(h.label, h.samples / self._seconds, h.unit, _type_of(h.label), h.problem) for h in self._signals
        )

    @property
    def _bytes(self) -> int:
        """Return the bytes of a sample."""
        return 3 if self._is_bdf else 2

    def _damaged(self) -> UnreadableRecordingError:
        kind = "a BDF" if self._is_bdf else "an EDF"
        return UnreadableRecordingError(f"{self.path}: not {kind} file (its header cannot be read)")

    def _whole_number(self, field: bytes) -> int:
        number = _number(field)
        if not np.isfinite(number) or number != int(number):
            raise self._damaged()
        return int(number)

    def _parse(self, data: bytes, n_signals: int) -> list[_SignalHeader]:
        columns: dict[str, list[bytes]] = {}
        place = 0
        for name, width in [*_FIELDS.items(), ("samples", 8)]:
            columns[name] = [data[place + width * i : place + width * (i + 1)] for i in range(n_signals)]
            place += width * n_signals
        headers, first = [], 0
        for number in range(n_signals):
            samples = self._whole_number(columns["samples"][number])
            if samples < 0:
                raise self._damaged()
            headers.append(_parse_signal({name: column[number] for name, column in columns.items()}, first, samples))
            first += samples
        return headers

    def _count_records(self, announced: int) -> int:
        """Return the number of records, and check it against the file's size.

        The number is -1 while a recording lasts (EDF specification), and 0 in some files whose writer was interrupted.
        """
        record_bytes = self._record_samples * self._bytes
        size = self.path.stat().st_size
        if announced <= 0:
            return max(0, size - self._start) // record_bytes if record_bytes else 0
        expected = self._start + announced * record_bytes
        if size < expected:
            raise UnreadableRecordingError(
                f"{self.path}: truncated: its header announces {expected} bytes, the file has {size}"
            )
        extra = (size - expected) // record_bytes if record_bytes else 0
        if extra:
            self.note = (
                f"{self.path.name}: {extra} records beyond the {announced} that its header announces are not read"
            )
        return announced

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """Return the stretches without a gap."""
        return tuple(Span(onset, count * self._seconds) for onset, _, count in self._runs)

    @cached_property
    def _runs(self) -> list[tuple[float, int, int]]:
        """Return the onset (s), the first record and the number of records of each span."""
        if self._n_records == 0 or not self.channels or not self._has_gaps():
            return [(0.0, 0, self._n_records)]
        onsets, decimals = self._record_onsets(range(self._n_records))
        gap = np.diff(onsets) - self._seconds
        tolerance = 0.5 / max(channel.rate for channel in self.channels)
        if decimals >= _MIN_ROUNDED_DECIMALS and abs(self._seconds - round(self._seconds, decimals)) > 1e-12:
            tolerance = max(tolerance, 1.01 * 10.0**-decimals)  # the times are rounded
        if (gap < -tolerance).any():
            record = int(np.argmax(gap < -tolerance)) + 1
            raise UnreadableRecordingError(
                f"{self.path}: record {record + 1} starts at {onsets[record]:g} s, before the one before it ends"
            )
        starts = _span_starts(onsets, self._seconds, tolerance)
        stops = [*starts[1:], self._n_records]
        return [(float(onsets[a] - onsets[0]), a, b - a) for a, b in zip(starts, stops, strict=True)]

    def _has_gaps(self) -> bool:
        """Return whether the header says so, or the time of the last record, which some writers set nevertheless."""
        if self._is_discontinuous:
            return True
        try:
            (first, last), decimals = self._record_onsets([0, self._n_records - 1])
        except UnreadableRecordingError:
            return False
        half_a_sample = 0.5 / max(channel.rate for channel in self.channels)
        return bool(abs(last - first - (self._n_records - 1) * self._seconds) > max(half_a_sample, 10.0**-decimals))

    def _record_onsets(self, records: Sequence[int]) -> tuple[NDArray[np.float64], int]:
        """Return the times of records in seconds, from their first annotations, and the decimals of these times."""
        header = next((each for each in self._headers if each.is_text), None)
        if header is None:
            raise UnreadableRecordingError(f"{self.path}: discontinuous, but no channel has the times of its records")
        width = self._record_samples * self._bytes
        first, last = header.first * self._bytes, (header.first + header.samples) * self._bytes
        onsets, decimals = np.empty(len(records)), 0
        with open(self.path, "rb") as file:
            for place, record in enumerate(records):
                file.seek(self._start + record * width + first)
                found = _ONSET.match(file.read(last - first))
                if found is None:
                    raise UnreadableRecordingError(f"{self.path}: the time of record {record + 1} cannot be read")
                onsets[place] = float(found[1])
                decimals = max(decimals, len(found[1].partition(b".")[2]))
        return onsets, decimals

    @cached_property
    def _digits(self) -> NDArray[Any]:
        """Return a view of the file's digital values, (records, samples in a record); those of BDF times 256.

        A sample of BDF and the byte before it, which is that of another sample or of the header, are read as 32 bits.
        """
        shape = (self._n_records, self._record_samples)
        extra = int(self._is_bdf)
        size = self._n_records * self._record_samples * self._bytes + extra
        data = np.memmap(self.path, np.uint8, "r", self._start - extra, (size,))
        strides = (self._record_samples * self._bytes, self._bytes)
        return np.ndarray(shape, "<i4" if self._is_bdf else "<i2", data, strides=strides)

    def read(self, picks: Sequence[int], span: int, begin: int, stop: int) -> NDArray[np.float64]:
        """Return samples as `Signal.read` does."""
        headers = [self._signals[pick] for pick in picks]
        per_record = headers[0].samples
        for header in headers:
            if header.problem:
                raise UnreadableRecordingError(f"{self.path}: channel '{header.label}': {header.problem}")
        _, first, count = self._runs[span]
        if not 0 <= begin <= stop <= count * per_record:
            raise IndexError(f"{self.path}: samples {begin} to {stop} of {count * per_record}")
        x_CT = np.empty((len(picks), stop - begin))
        if stop == begin:
            return x_CT
        records = slice(first + begin // per_record, first - (-stop // per_record))
        skip = begin % per_record
        for row_T, header in zip(x_CT, headers, strict=True):
            digits = self._digits[records, header.first : header.first + header.samples]
            digits = digits >> 8 if self._is_bdf else digits
            np.multiply(digits.reshape(-1)[skip : skip + len(row_T)], header.gain, out=row_T)
            row_T += header.offset
        return x_CT


def _span_starts(onsets: NDArray[np.float64], seconds: float, tolerance: float) -> list[int]:
    """Return the records at which spans start.

    A record starts a span if it is off the time that the span's first record and the count of records since give, so
    that small deviations do not add up.
    """
    shifts = onsets - np.arange(len(onsets)) * seconds
    starts = [0]
    for record, shift in enumerate(shifts.tolist()):
        if abs(shift - shifts[starts[-1]]) > tolerance:
            starts.append(record)
    return starts


def _parse_signal(fields: dict[str, bytes], first: int, samples: int) -> _SignalHeader:
    pmin, pmax, dmin, dmax = (_number(fields[name]) for name in ("pmin", "pmax", "dmin", "dmax"))
    problem, gain, offset = "", 0.0, 0.0
    if not np.isfinite([pmin, pmax, dmin, dmax]).all():
        problem = "its physical or digital limits in the header are no numbers"
    elif pmin == pmax or dmin == dmax:
        which = "physical" if pmin == pmax else "digital"
        problem = f"its {which} minimum and maximum in the header are equal, so its samples have no unit"
    else:
        gain = (pmax - pmin) / (dmax - dmin)
        offset = pmin - gain * dmin
        if not np.isfinite([gain, offset]).all() or abs(gain) > MAX_GAIN:
            problem = f"its physical limits in the header ({pmin:g} and {pmax:g}) are no limits of a voltage"
    label = decode_field(fields["label"])
    return _SignalHeader(label, decode_field(fields["unit"]), gain, offset, first, samples, problem)


def _number(field: bytes) -> float:
    """Return the number in a header field, also with a decimal comma; NaN for other text."""
    text = decode_field(field).replace(",", ".")
    return float(text) if _NUMBER.fullmatch(text) else float("nan")


def _type_of(label: str) -> str | None:
    """Return the type that a label states: as its first word in EDF+, or by BioSemi's name of the trigger channel."""
    word, _, rest = label.partition(" ")
    if rest and word.lower() in _TYPES:
        return "ecg" if word.lower() == "ekg" else word.lower()
    return "trig" if label == "Status" else None
