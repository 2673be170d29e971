"""A BIDS folder behind a URI, as a folder of this machine: tables whole, recordings only while they are read.

Files that are not here yet are sparse: of the right size and time of change, without a byte on the disk. So recordings
are found, told from changed ones and checked for truncation as anywhere else.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from raypipe.core.errors import UserError, disk_full
from raypipe.storage.files import lock
from raypipe.storage.remote import TEMPORARY, RemoteFolder, without_settings

AT_ONCE = 16
"""Tables that are fetched at a time."""

_PREFIX = ".remote-"
_LOCK = "lock"
_WANTED = re.compile(r"(?:[^/]+/)?(?:participants\.tsv|sub-[^/]+/(?:ses-[^/]+/)?eeg/[^/]+)")


@dataclass(frozen=True)
class RemoteBids:
    """A folder behind a URI, and the one of this machine that stands for it; goes along to other processes."""

    uri: str
    place: Path

    def fetch(self, paths: Iterable[Path], most: int | None = None) -> None:
        """Fill files of the mirror, or their first `most` bytes.

        Raises
        ------
        UserError
            A file is not what the listing said, the storage fails, or the disk is full.
        """
        for path in paths:
            known = path.stat()
            name = path.relative_to(self.place).as_posix()
            try:
                with open(path, "r+b") as file:
                    done = _remote(self.uri).copy(name, file, most)
            except FileNotFoundError:
                done = -1
            except OSError as error:
                raise disk_full(error, path.parent) or error from None
            if done != (known.st_size if most is None else min(most, known.st_size)):
                raise UserError(f"{path}: has changed since the folder was listed; run the same command again")
            os.utime(path, ns=(known.st_mtime_ns, known.st_mtime_ns))

    def fetch_tables(self, paths: Iterable[Path]) -> None:
        """Fill small files, several at a time; raises as `fetch`."""
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="raypipe-get") as others:
            list(others.map(lambda path: self.fetch([path]), paths))

    def empty(self, paths: Iterable[Path]) -> None:
        """Take files' bytes away again."""
        for path in paths:
            known = path.stat()
            os.truncate(path, 0)
            _sparse(path, known.st_size, known.st_mtime_ns)


@contextlib.contextmanager
def open_remote_bids(folders: Sequence[str | Path], out: Path) -> Iterator[list[Path | RemoteBids]]:
    """Put a mirror in the place of every folder behind a URI, for as long as this lasts.

    Parameters
    ----------
    folders
        Paths, and URIs of pyarrow.fs.
    out
        Mirrors are kept in this folder, which is made if need be, under names that count as temporary. What a killed
        process left of them is removed.

    Raises
    ------
    UserError
        A storage cannot be read. What is raised within names places behind the URI, not in the mirror.
    """
    if not any("://" in str(folder) for folder in folders):
        yield [Path(folder) for folder in folders]
        return
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: a file, not a folder for windows")
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    _remove_left(out)
    top = Path(tempfile.mkdtemp(prefix=_PREFIX, suffix=TEMPORARY, dir=out))
    places: list[Path | RemoteBids] = []
    try:
        with open(top / _LOCK, "wb") as file:
            lock(file)
            for number, folder in enumerate(folders):
                places.append(_mirror(str(folder), top / str(number)) if "://" in str(folder) else Path(folder))
            yield places
    except UserError as error:
        error.args = (_told(str(error), places),)
        raise
    finally:
        shutil.rmtree(top, ignore_errors=True)
        if made:
            with contextlib.suppress(OSError):  # something has come of it
                out.rmdir()


def _mirror(uri: str, top: Path) -> RemoteBids:
    name = without_settings(uri).rpartition("/")[2]
    mirror = RemoteBids(uri, top / name)
    entries = [entry for entry in _remote(uri).listing() if _WANTED.fullmatch(entry.name)]
    if not any("/eeg/" in entry.name for entry in entries):
        raise UserError(f"{without_settings(uri)}: no BIDS folder there, nor a folder of them (sub-*/[ses-*/]eeg/)")
    for entry in entries:
        path = mirror.place / entry.name
        path.parent.mkdir(parents=True, exist_ok=True)
        _sparse(path, entry.size, entry.changed)
    mirror.fetch_tables(mirror.place / e.name for e in entries if e.name.endswith("participants.tsv"))
    return mirror


def _told(text: str, places: Iterable[Path | RemoteBids]) -> str:
    for mirror in places:
        if isinstance(mirror, RemoteBids):
            text = text.replace(str(mirror.place), without_settings(mirror.uri))
    return text


def _sparse(path: Path, size: int, changed: int) -> None:
    with open(path, "ab") as file:
        file.truncate(size)
    os.utime(path, ns=(changed, changed))


def _remove_left(out: Path) -> None:
    """Remove mirrors whose process is gone, and its lock with it."""
    for left in out.glob(f"{_PREFIX}*{TEMPORARY}"):
        with contextlib.suppress(OSError), open(left / _LOCK, "rb") as file:
            if lock(file):
                shutil.rmtree(left, ignore_errors=True)


@lru_cache(maxsize=16)
def _remote(uri: str) -> RemoteFolder:
    return RemoteFolder(uri)
