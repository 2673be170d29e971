"""Write small recordings in each format from scratch, with the faults that files in the field have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def write_edf(
    path: Path,
    names: Sequence[str | bytes],
    digits: Sequence[ArrayLike],
    *,
    per_record: Sequence[int],
    seconds: float | str = 1,
    units: Sequence[str | bytes] | None = None,
    limits: Sequence[tuple[Any, Any, Any, Any]] | None = None,
    bdf: bool = False,
    reserved: str = "",
    times: Sequence[bytes] | None = None,
    n_records: int | None = None,
) -> Path:
    """Write an EDF or BDF file.

    Parameters
    ----------
    digits
        Digital values of each signal, ``per_record`` a record.
    seconds
        Duration of a record.
    limits
        Physical and digital minimum and maximum (pmin, pmax, dmin, dmax) of each signal. By default a digit is 0.1 in
        EDF and 1 in BDF, whose limits have too many digits for the header otherwise.
    times
        Content of the annotation channel in each record.
    n_records
        The number in the header; the true one by default.
    """
    width, top = (3, 2**23 - 1) if bdf else (2, 2**15 - 1)
    n = len(names)
    units = list(units or ["uV"] * n)
    usual = (-top - 1, top, -top - 1, top) if bdf else ((-top - 1) / 10, top / 10, -top - 1, top)
    limits = list(limits or [usual] * n)
    count = len(np.asarray(digits[0])) // per_record[0] if n else len(times or [])
    names, samples = list(names), list(per_record)
    if times is not None:
        names.append("BDF Annotations" if bdf else "EDF Annotations")
        units.append("")
        limits.append((-1, 1, -top - 1, top))
        samples.append(-(-max(map(len, times)) // width))
    fields = [names, [""] * len(names), units, *zip(*limits, strict=True), [""] * len(names), samples]
    widths = [16, 80, 8, 8, 8, 8, 8, 80, 8]
    header = b"\xffBIOSEMI" if bdf else _field("0", 8)
    header += _field("X X X X", 80) + _field("Startdate X X X X", 80) + _field("01.01.20", 8) + _field("00.00.00", 8)
    header += _field(256 * (len(names) + 1), 8) + _field(reserved, 44)
    header += _field(count if n_records is None else n_records, 8) + _field(seconds, 8) + _field(len(names), 4)
    header += b"".join(_field(value, size) for column, size in zip(fields, widths, strict=True) for value in column)
    body = [header + b" " * 32 * len(names)]
    for record in range(count):
        for values, size in zip(digits, per_record, strict=True):
            part = np.asarray(values)[record * size : (record + 1) * size].astype("<i4")
            body.append(part.view(np.uint8).reshape(-1, 4)[:, :width].tobytes())
        if times is not None:
            body.append(times[record].ljust(samples[-1] * width, b"\0"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(body))
    return path


def _field(value: object, width: int) -> bytes:
    text = value if isinstance(value, bytes) else f"{value:.7g}" if isinstance(value, float) else str(value)
    data = text if isinstance(text, bytes) else text.encode("latin-1")
    return data[:width].ljust(width)


def time_stamp(seconds: float, *notes: bytes) -> bytes:
    """Return the annotation that gives a record its time, and others after it."""
    return f"+{seconds:g}\x14\x14\0".encode() + b"".join(notes)


def write_brainvision(
    path: Path,
    x_TC: NDArray[Any],
    *,
    names: Sequence[str] = ("Fz", "Cz"),
    units: Sequence[str] | None = None,
    resolutions: Sequence[str] | None = None,
    orientation: str = "MULTIPLEXED",
    interval: str = "10000",
    data_file: str | None = None,
    named: str | None = None,
    markers: str = "",
    encoding: str = "utf-8",
    extra: str = "",
) -> Path:
    """Write a header, a marker file and the data in their own type, at 100 Hz in microvolts by default.

    Parameters
    ----------
    data_file, named
        Name of the data file, and the one in the header.
    markers, extra
        Lines of the marker file, and of the header's section of binary data.
    """
    kinds = {"f4": "IEEE_FLOAT_32", "i2": "INT_16", "i4": "INT_32", "u2": "UINT_16", "f8": "IEEE_FLOAT_64"}
    data_file = data_file or f"{path.stem}.eeg"
    path.parent.mkdir(parents=True, exist_ok=True)
    data = x_TC if orientation == "MULTIPLEXED" else x_TC.T
    path.with_name(data_file).write_bytes(np.ascontiguousarray(data).tobytes())
    path.with_name(f"{path.stem}.vmrk").write_bytes(
        f"Brain Vision Data Exchange Marker File, Version 1.0\n[Marker Infos]\n{markers}\n".encode(encoding)
    )
    units, resolutions = units or ["\u00b5V"] * len(names), resolutions or ["1"] * len(names)
    channels = "".join(
        f"Ch{number}={name},,{resolution},{unit}\n"
        for number, (name, resolution, unit) in enumerate(zip(names, resolutions, units, strict=True), start=1)
    )
    path.write_bytes(
        (
            f"Brain Vision Data Exchange Header File Version 1.0\n; written by a test\n[Common Infos]\n"
            f"DataFile={named or data_file}\nMarkerFile={path.stem}.vmrk\nDataFormat=BINARY\n"
            f"DataOrientation={orientation}\nNumberOfChannels={len(names)}\nSamplingInterval={interval}\n"
            f"[Binary Infos]\nBinaryFormat={kinds[x_TC.dtype.str[1:]]}\n{extra}[Channel Infos]\n{channels}"
            "[Comment]\nDataFile=of a comment\n"
        ).encode(encoding)
    )
    return path


def write_eeglab(
    path: Path,
    x_CT: NDArray[Any],
    *,
    names: Sequence[str] = ("Fz", "Cz"),
    types: Sequence[str] | None = None,
    rate: float = 100.0,
    events: Sequence[tuple[float, object]] = (),
    inside: bool = False,
    flat: bool = False,
    trials: int = 1,
) -> Path:
    """Write an EEGLAB data set in microvolts.

    Parameters
    ----------
    events
        Latency (samples from 1) and type of each event.
    inside
        Write the signal into the ``.set`` file instead of a ``.fdt`` file.
    flat
        Write the fields as variables, as newer versions of EEGLAB do.
    """
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    if not inside:
        path.with_suffix(".fdt").write_bytes(np.ascontiguousarray(x_CT.T.astype("<f4")).tobytes())
    fields = {
        "setname": path.stem,
        "nbchan": float(len(x_CT)),
        "pnts": float(x_CT.shape[1] // trials),
        "trials": float(trials),
        "srate": rate,
        "data": x_CT.astype(np.float32) if inside else f"{path.stem}.fdt",
        "chanlocs": _structures(labels=names, type=types or [""] * len(names)),
        "event": _structures(latency=[each[0] for each in events], type=[each[1] for each in events]),
    }
    savemat(path, fields if flat else {"EEG": fields}, oned_as="row", appendmat=False)
    return path


def _structures(**columns: Sequence[object]) -> NDArray[Any]:
    rows = list(zip(*columns.values(), strict=True))
    out = np.zeros(len(rows), dtype=[(name, object) for name in columns])
    for place, row in enumerate(rows):
        out[place] = row
    return out
