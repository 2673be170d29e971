"""Files that are written whole or not at all, in a local folder or behind a pyarrow.fs URI."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, BinaryIO, Protocol, TypeVar

from raypipe.core.errors import DamagedFileError, StorageError, UserError, disk_full
from raypipe.core.record import Record
from raypipe.storage.regular_files import open_regular
from raypipe.storage.remote import PARTIAL_SUFFIX as PARTIAL_SUFFIX
from raypipe.storage.remote import RemoteFolder, refuse_credentials

MAX_CALLS = 16
"""Calls of a remote storage that run at the same time; each waits for the server."""

TEXT_SUFFIXES, MAX_TEXT_BYTES = (".json", ".jsonl", ".py", ".txt", ".csv"), 2**28
"""Files that are text, and the size up to which they are read."""
MAX_HOLE_BYTES = 2**26
"""Size up to which a file may be a hole of a file system."""

A = TypeVar("A")
B = TypeVar("B")
R = TypeVar("R", bound=Record)


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file whole or not at all.

    The content goes to a partial file beside `path`, which is flushed to the disk and renamed.

    Parameters
    ----------
    path
        The file; its folder is created if it does not exist.
    write
        Writes the content to an open file.

    Raises
    ------
    DiskFullError
        The disk is full; `path` is as it was.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        raise disk_full(error, path) or error from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def lock(file: int | IO[bytes], *, shared: bool = False) -> bool:
    """Lock an open file without waiting, and return False if another process of this host holds the lock.

    The lock is released when the file is closed or the process ends. On a file system without locks, return True.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _check_size(path: str, found: os.stat_result) -> None:
    """Check that a file may be read whole.

    Raises
    ------
    DamagedFileError
        It is a text that is too long, or almost all of a large file is a hole: raypipe writes neither.
    """
    if path.endswith(tuple(TEXT_SUFFIXES)) and found.st_size > MAX_TEXT_BYTES:
        megabytes = f"{found.st_size / 2**20:,.0f} MB; at most {MAX_TEXT_BYTES / 2**20:,.0f} are read"
        raise DamagedFileError(f"{path}: {megabytes}; restore it from a copy")
    if found.st_size > MAX_HOLE_BYTES and 512 * found.st_blocks < found.st_size / 100:
        raise DamagedFileError(
            f"{path}: damaged ({found.st_size / 2**20:,.0f} MB without content); restore it from a copy"
        )


class Folder(Protocol):
    """A local folder, or a folder behind a URI. Names of files are relative and use ``/``."""

    where: str
    """Path or URI."""

    def write(self, name: str, data: bytes) -> None:
        """Write the file whole or not at all."""

    def read(self, name: str) -> bytes:
        """Return the content of the file; raises FileNotFoundError."""

    def exists(self, name: str) -> bool:
        """Return whether there is a file of this name."""

    def names(self, prefix: str = "") -> list[str]:
        """Return the sorted names of all files below the folder `prefix`, without partial files."""

    def partial_files(self) -> list[str]:
        """Return the sorted names of partial files: those being written, or left by a process that was killed."""

    def remove(self, name: str) -> None:
        """Remove the file, if it exists."""


class LocalFolder:
    """A folder of this machine or of a mounted file system.

    It is created by the first write. Once a file was found in it, it is not created again: where it is gone, `read` and
    `write` raise `StorageError`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().absolute()
        self.where = str(self.path)
        self._used = False

    def write(self, name: str, data: bytes) -> None:
        if gone := self.gone_error():
            raise gone
        self._refuse_links((self.path / name).parent)
        write_atomic(self.path / name, lambda file: file.write(data))

    def read(self, name: str) -> bytes:
        path = f"{self.where}/{name}"  # a Path takes half as long as reading a record
        try:
            with open_regular(path) as file:
                _check_size(path, os.fstat(file.fileno()))
                return file.read()
        except FileNotFoundError as error:
            raise self.gone_error() or error from None
        except OSError as error:  # links in a circle, no permission, a broken disk
            raise DamagedFileError(f"{path}: cannot be read ({error.strerror})") from None

    def exists(self, name: str) -> bool:
        found = (self.path / name).is_file()
        self._used = self._used or found
        return found

    def gone_error(self) -> StorageError | None:
        """Return the error of a folder that was renamed or removed while it was used; None if it was not."""
        if not self._used or self.path.is_dir():
            return None
        return StorageError(f"{self.where}: this folder was renamed or removed; use it where it is now")

    def names(self, prefix: str = "") -> list[str]:
        if prefix:
            self._refuse_links(self.path / prefix)
        found = self._walk(self.path / prefix, refuse_links=bool(prefix))
        return sorted(name for name in found if not name.endswith(PARTIAL_SUFFIX))

    def partial_files(self) -> list[str]:
        return sorted(name for name in self._walk(self.path) if name.endswith(PARTIAL_SUFFIX))

    def _refuse_links(self, place: Path) -> None:
        """Check that no folder from this one down to `place` is a link or a file.

        Raises
        ------
        DamagedFileError
            One is: what is below it is elsewhere, or cannot be.
        """
        for folder in (place, *place.parents):
            if folder == self.path or not folder.is_relative_to(self.path):
                return
            try:
                mode = folder.lstat().st_mode
            except (FileNotFoundError, NotADirectoryError):  # the latter's parent follows, and is refused
                continue
            if stat.S_ISLNK(mode):
                raise link_error(folder)
            if not stat.S_ISDIR(mode):
                raise no_folder_error(folder)

    def _walk(self, top: Path, *, refuse_links: bool = False) -> Iterator[str]:
        folders = [str(top)]
        while folders:
            folder = folders.pop()
            below = f"{folder}/".removeprefix(f"{self.where}/")
            with contextlib.suppress(OSError), os.scandir(folder) as entries:  # a folder may be removed meanwhile
                for entry in entries:
                    if not _is_folder(entry):
                        yield below + entry.name
                    elif not entry.is_symlink():
                        folders.append(entry.path)
                    elif refuse_links:
                        raise link_error(entry.path)

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder; False where its kind cannot be read, as of links in a circle."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def link_error(path: str | Path) -> DamagedFileError:
    """Return the error of a folder or a file that is a link."""
    return DamagedFileError(f"{path}: a link, and raypipe writes through none; put what it names itself there")


def no_folder_error(path: str | Path) -> DamagedFileError:
    """Return the error of a file that has the name of a folder."""
    return DamagedFileError(f"{path}: a file where raypipe has a folder; put the folder itself there")


def check_places(*places: str | Path | None) -> None:
    """Check that paths and URIs are UTF-8, as records and Ray need, and that no URI contains keys.

    Raises
    ------
    UserError
        One is not UTF-8 (Python writes lone surrogates for bytes that it cannot decode), or contains keys.
    """
    for place in places:
        text = "" if place is None else str(place)
        whole = text if "://" in text else str(Path(text).absolute())
        try:
            whole.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{whole}: this name is no UTF-8 text here; rename it, or choose a UTF-8 locale, as by LC_ALL=C.UTF-8"
            ) from None
        if "://" in text:
            refuse_credentials(text)


def open_folder(where: str | Path) -> Folder:
    """Open a local path or a pyarrow.fs URI. Nothing is created before the first write.

    Raises
    ------
    UserError
        pyarrow cannot open the URI.
    """
    text = str(where)
    return RemoteFolder(text) if "://" in text else LocalFolder(text)


def map_concurrently(folder: Folder, call: Callable[[A], B], arguments: Iterable[A]) -> list[B]:
    """Call a function with each argument and return the results in order.

    For a folder behind a URI, several calls run at a time in threads, since each waits for the server.
    """
    if isinstance(folder, LocalFolder):
        return [call(argument) for argument in arguments]
    with ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="raypipe-call") as pool:
        return list(pool.map(call, arguments))


def read_record(kind: type[R], folder: Folder, name: str) -> R:
    """Read a JSON file with a format number (see `Record`); raises as `read_record_and_bytes`."""
    return read_record_and_bytes(kind, folder, name)[0]


def read_record_and_bytes(kind: type[R], folder: Folder, name: str) -> tuple[R, bytes]:
    """Read a JSON file with a format number (see `Record`); return the record, and the content of the file.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    OtherFormatError
        The file has another format.
    UserError
        The file is not JSON, or does not fit the schema.
    """
    where = f"{folder.where}/{name}"
    data = folder.read(name)
    try:
        return kind.parse(data, where), data
    except UserError:
        # pyarrow asks a store for a file's length and then for its bytes, and the file may be rewritten in between.
        data = folder.read(name)
        return kind.parse(data, where), data


def read_required(folder: Folder, name: str) -> bytes:
    """Return the content of a file that every run has.

    Raises
    ------
    DamagedFileError
        There is none.
    """
    try:
        return folder.read(name)
    except FileNotFoundError:
        raise DamagedFileError(f"{folder.where}/{name}: missing; restore it from a copy") from None


def write_record(folder: Folder, name: str, record: Record) -> None:
    """Write a JSON file with a format number, whole or not at all."""
    folder.write(name, record.to_json())
