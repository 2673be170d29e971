"""Open a recording file with the reader of its format, which the first bytes tell."""

from __future__ import annotations

import struct
from pathlib import Path
from types import ModuleType

from raypipe.core.errors import first_line
from raypipe.recordings import brainvision, edf, eeglab, fif
from raypipe.recordings.signal import Signal, UnreadableRecordingError
from raypipe.storage.regular_files import open_regular

_HEAD = 512
"""Bytes that are looked at."""
_FIF_MAGIC = struct.pack(">ii", 100, 31)
"""Kind and type of the first tag of a FIF file: its identification."""


def open_signal(path: Path) -> Signal:
    """Open a recording file.

    Raises
    ------
    UnreadableRecordingError
        The file is missing, truncated or unreadable, or no supported format.
    """
    if not path.exists():
        problem = "a link to data that was not fetched" if path.is_symlink() else "no such file"
        raise UnreadableRecordingError(f"{path}: {problem}")
    if path.is_dir():
        raise UnreadableRecordingError(f"{path}: a folder, not a file")
    if not path.is_file():
        raise UnreadableRecordingError(f"{path}: not a regular file")
    try:
        return _open(path)
    except UnreadableRecordingError:
        raise
    except Exception as error:  # damaged headers raise exceptions of many types
        raise UnreadableRecordingError(f"{path}: cannot be read ({first_line(error)})") from None


def companions(path: Path) -> list[Path]:
    """Return the other files that hold parts of a recording's signal and exist."""
    try:
        reader = _reader_of(path)
        found: list[Path] = [] if reader is edf else reader.companions(path)
        return found
    except Exception:  # of many types, for damaged headers; reported when the recording itself is read
        return []


def _open(path: Path) -> Signal:
    reader = _reader_of(path)
    if reader is edf:
        return edf.EdfSignal(path)
    if reader is brainvision:
        return brainvision.BrainVisionSignal(path)
    return fif.FifSignal(path) if reader is fif else eeglab.EeglabSignal(path)


def _reader_of(path: Path) -> ModuleType:
    """Return the module that reads a file, by its first bytes.

    Raises
    ------
    UnreadableRecordingError
        None does.
    """
    with open_regular(path) as file:
        head = file.read(_HEAD)
    if head[:8] == edf.BDF_MAGIC or head[:8].replace(b"\0", b" ") == edf.EDF_MAGIC:
        return edf
    if is_brainvision(head):
        return brainvision
    if head.startswith(_FIF_MAGIC):
        return fif
    if head.startswith((b"MATLAB", b"\x89HDF")):
        return eeglab
    raise UnreadableRecordingError(f"{path}: not a supported EEG file ({_describe(head)})")


def is_brainvision(head: bytes) -> bool:
    """Return whether a file begins as a BrainVision header does."""
    text = head.removeprefix(b"\xef\xbb\xbf").replace(b"\0", b"").lstrip(b"\xff\xfe\r\n ")  # with any byte-order mark
    line = text.split(b"\n")[0].lower().replace(b" ", b"")
    return line.startswith(b"brainvision") and b"header" in line


def _describe(head: bytes) -> str:
    """Return what the first bytes of a file say that it is."""
    if not head:
        return "it is empty"
    if not head.strip(b"\0"):
        return "it begins with zeros only"
    if head.startswith(b"\x1f\x8b"):
        return "it is compressed with gzip; unpack it"
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer to data that was not fetched"
    shown = head[:16].decode("ascii", "backslashreplace")
    return f"it begins with {shown!r}"
