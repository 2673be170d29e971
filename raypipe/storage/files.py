"""Files that are written whole or not at all, in a local folder or behind a pyarrow.fs URI."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol, TypeVar

from raypipe.core.errors import UserError, disk_full
from raypipe.core.record import Record
from raypipe.storage.remote import TEMPORARY as TEMPORARY
from raypipe.storage.remote import RemoteFolder


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Have `write` fill a temporary file beside `path`, flush it to the disk and rename it into place.

    Raises
    ------
    DiskFullError
        No room is left; `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise disk_full(error, path) or error from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def lock(file: int | IO[bytes], *, shared: bool = False) -> bool:
    """Take an open file's lock, if no other process of this host has it; it goes with the file or the process.

    A file system without locks says yes to everyone.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


class Folder(Protocol):
    """A place for named files; names are relative and use ``/``."""

    where: str

    def write(self, name: str, data: bytes) -> None:
        """Write the file whole or not at all."""

    def read(self, name: str) -> bytes:
        """Return the whole file; FileNotFoundError where there is none."""

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""

    def names(self, prefix: str = "") -> list[str]:
        """Sorted names of all files below the folder `prefix`, temporary ones left out."""

    def partial_files(self) -> list[str]:
        """Sorted names of temporary files: being written, or left by who was killed in the midst of it."""

    def remove(self, name: str) -> None:
        """Remove the file; nothing happens where there is none."""


class LocalFolder:
    """A folder of this machine or of a mounted file system."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().absolute()
        self.where = str(self.path)

    def write(self, name: str, data: bytes) -> None:
        write_atomic(self.path / name, lambda file: file.write(data))

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def exists(self, name: str) -> bool:
        return (self.path / name).is_file()

    def names(self, prefix: str = "") -> list[str]:
        return sorted(name for name in self._walk(self.path / prefix) if not name.endswith(TEMPORARY))

    def partial_files(self) -> list[str]:
        return sorted(name for name in self._walk(self.path) if name.endswith(TEMPORARY))

    def _walk(self, top: Path) -> Iterator[str]:
        for folder, _, files in os.walk(top):
            if files:
                below = Path(folder).relative_to(self.path).as_posix()
                before = "" if below == "." else f"{below}/"
                yield from (before + file for file in files)  # a path object for each would take most of a listing

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)


def open_folder(where: str | Path) -> Folder:
    """Open a local path or a pyarrow.fs URI; nothing is created before the first write."""
    text = str(where)
    return RemoteFolder(text) if "://" in text else LocalFolder(text)


AT_ONCE = 16
"""Calls of a storage at a time: each waits some hundredths of a second for its server."""

A = TypeVar("A")
B = TypeVar("B")
R = TypeVar("R", bound=Record)


def map_concurrently(folder: Folder, call: Callable[[A], B], things: Iterable[A]) -> list[B]:
    """What `call` says of each thing, in order; behind a URI, where it waits, several at a time.

    `call` must bear being called by several threads.
    """
    if isinstance(folder, LocalFolder):
        return [call(thing) for thing in things]
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="raypipe-call") as others:
        return list(others.map(call, things))


def read_json(folder: Folder, name: str) -> Any:
    """Parse a JSON file of `folder`.

    Raises
    ------
    UserError
        The file is no whole JSON document.
    """
    for _ in range(2):
        # Twice, for a file that is rewritten meanwhile: pyarrow asks a store for its length and then for its bytes.
        with contextlib.suppress(ValueError):
            return json.loads(folder.read(name))
    raise UserError(f"{folder.where}/{name}: damaged (not a JSON document); restore it from a copy")


def write_json(folder: Folder, name: str, value: Any) -> None:
    """Write `value` as readable JSON, whole or not at all."""
    folder.write(name, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def read_record(kind: type[R], folder: Folder, name: str) -> R:
    """Read a JSON file with a format number (see `Record`).

    Raises
    ------
    FileNotFoundError
        There is no such file.
    UserError
        The file is not JSON, has another format, or does not fit the schema.
    """
    where = f"{folder.where}/{name}"
    data = folder.read(name)
    try:
        return kind.parse(data, where)
    except UserError:
        # pyarrow asks a store for a file's length and then for its bytes, and the file may be rewritten in between.
        return kind.parse(folder.read(name), where)


def write_record(folder: Folder, name: str, record: Record) -> None:
    """Write a JSON file with a format number, whole or not at all."""
    folder.write(name, record.to_json())
