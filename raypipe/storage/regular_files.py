"""Read files that come from elsewhere: never a fifo or a device, which may block or not end, and never too much."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from raypipe.core.errors import UserError


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file for reading.

    Raises
    ------
    OSError
        It cannot be opened.
    UserError
        It is not a regular file.
    """
    # Without O_NONBLOCK, opening a fifo waits for a writer.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UserError(f"{path}: not a regular file")
    return os.fdopen(handle, "rb")


def open_lock_file(path: Path) -> BinaryIO:
    """Open a file that is only locked, and create it if it does not exist; raises as `open_regular`."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UserError(f"{path}: not a regular file; remove it")
    return os.fdopen(handle, "rb")


def read_whole(path: Path) -> bytes:
    """Return the content of a file of any size; raises as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def read_regular(path: Path, max_bytes: int) -> bytes:
    """Return the content of a file.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    UserError
        It cannot be read, is not a regular file, or is larger than `max_bytes`.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise UserError(f"{path}: {size / 2**20:,.1f} MB; at most {max_bytes / 2**20:,.1f} MB are read")
            return file.read(max_bytes)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
