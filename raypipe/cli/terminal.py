"""Standard streams that outlive their reader."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO, cast

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors by which output is lost although its reader is still there."""


class LastingStream:
    """A standard stream that leads to nothing once its reader is gone: a closed terminal, ``| head``, a full disk.

    Its file descriptor then leads to nothing too, for other code and for processes that inherit it.

    Parameters
    ----------
    stream
        `sys.stdout` or `sys.stderr`; None where it was closed before Python started.

    Attributes
    ----------
    disk_error
        The first error of a full disk, by which output was lost; None if there was none.
    has_reader
        False once output leads to nothing.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.disk_error: OSError | None = None
        self.has_reader = True
        self._stream = stream or cast(TextIO, open(os.devnull, "w"))  # noqa: SIM115  closed with the process
        if isinstance(self._stream, io.TextIOWrapper):
            self._stream.reconfigure(errors="backslashreplace")  # a locale without UTF-8

    def write(self, text: str) -> int:
        with self._lasting():
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with self._lasting():
            self._stream.flush()

    @contextlib.contextmanager
    def _lasting(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
                self.disk_error = self.disk_error or error
            self._lead_to_nothing()

    def _lead_to_nothing(self) -> None:
        self.has_reader = False
        nothing = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nothing, self._stream.fileno())
        except (OSError, ValueError):  # it is closed, or has no descriptor
            self._stream = cast(TextIO, open(os.devnull, "w"))  # noqa: SIM115
        finally:
            os.close(nothing)

    def isatty(self) -> bool:
        return not self._stream.closed and self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)  # encoding, buffer


@contextlib.contextmanager
def lasting_streams() -> Iterator[LastingStream]:
    """Replace `sys.stdout` and `sys.stderr` by lasting ones, for the duration of the block; yield the first."""
    before = sys.stdout, sys.stderr
    _open_closed_descriptors()
    output, sys.stderr = (LastingStream(stream) for stream in before)
    sys.stdout = output
    try:
        yield output
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _open_closed_descriptors() -> None:
    """Let standard descriptors that are closed lead to nothing: a file opened later would get their numbers."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number
