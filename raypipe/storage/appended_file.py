"""A file that is written piece by piece, and is there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from raypipe.core.errors import disk_full
from raypipe.storage.files import PARTIAL_SUFFIX, sync_folder


class AppendedFile:
    """A partial file that is appended to, and replaces `path` when it is finished.

    It is open only while a piece is written, so that any number of them can be under way.

    Parameters
    ----------
    path
        The file; its folder is created if it does not exist.

    Raises
    ------
    DiskFullError
        From every method: the disk is full; `path` is as it was.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL_SUFFIX}")

    @contextlib.contextmanager
    def append(self) -> Iterator[BinaryIO]:
        """Open the partial file at its end."""
        with self._saying_full():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._partial, "ab") as file:
                yield file

    def finish(self, write: Callable[[BinaryIO], object]) -> None:
        """Let `write` change the partial file in any place, flush it to the disk, and rename it."""
        with self._saying_full():
            with open(self._partial, "r+b") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(self._partial, self._path)
            sync_folder(self._path.parent)

    def discard(self) -> None:
        """Remove the partial file, if it is there."""
        with contextlib.suppress(OSError):
            self._partial.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _saying_full(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise disk_full(error, self._path) or error from None
