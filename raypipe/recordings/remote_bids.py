"""BIDS folders behind a URI, mirrored in a local folder: tables whole, recordings only while they are read.

A file of the mirror that is not fetched is sparse: it has the size and the modification time of the original but takes
no disk space. The code that finds recordings and checks them for changes and truncation works on it as on the original.
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
from raypipe.storage.files import PARTIAL_SUFFIX, lock
from raypipe.storage.regular_files import open_regular
from raypipe.storage.remote import RemoteFolder, without_settings

MAX_FETCHES = 16
"""Tables that are fetched at the same time."""

_PREFIX = ".remote-"
_LOCK = "lock"
_TABLE = r"(?:[^/]+_)?(?:events|channels|participants)\.tsv|dataset_description\.json"
_BIDS_FILE = re.compile(rf"(?:[^/]+/)?(?:{_TABLE}|sub-[^/]+/(?:ses-[^/]+/)?(?:{_TABLE}|eeg/[^/]+))", re.IGNORECASE)


@dataclass(frozen=True)
class RemoteBids:
    """A folder behind a URI and its mirror on this machine. It can be pickled to other processes of the machine."""

    uri: str
    local: Path
    """Folder of the mirror."""

    def fetch(self, paths: Iterable[Path], max_bytes: int | None = None) -> None:
        """Download the content of files into the mirror.

        Parameters
        ----------
        paths
            Files of the mirror.
        max_bytes
            Fetch only the first bytes of each file; None for whole files.

        Raises
        ------
        UserError
            A file has changed since it was listed, the storage fails, or the disk is full.
        """
        for path in paths:
            stat = path.stat()
            name = path.relative_to(self.local).as_posix()
            try:
                with open(path, "r+b") as file:
                    copied = _remote(self.uri).copy(name, file, max_bytes)
            except FileNotFoundError:
                copied = -1
            except OSError as error:
                raise disk_full(error, path.parent) or error from None
            if copied != (stat.st_size if max_bytes is None else min(max_bytes, stat.st_size)):
                raise UserError(f"{path}: has changed since the folder was listed; run the same command again")
            os.utime(path, ns=(stat.st_mtime_ns, stat.st_mtime_ns))

    def fetch_tables(self, paths: Iterable[Path]) -> None:
        """Download small files, several at the same time; raises as `fetch`."""
        with ThreadPoolExecutor(MAX_FETCHES, thread_name_prefix="raypipe-get") as pool:
            list(pool.map(lambda path: self.fetch([path]), paths))

    def evict(self, paths: Iterable[Path]) -> None:
        """Make files of the mirror sparse again."""
        for path in paths:
            stat = path.stat()
            os.truncate(path, 0)
            _make_sparse(path, stat.st_size, stat.st_mtime_ns)


@contextlib.contextmanager
def open_remote_bids(folders: Sequence[str | Path], out: Path) -> Iterator[list[Path | RemoteBids]]:
    """Mirror the folders that are behind a URI, for the duration of the block.

    Parameters
    ----------
    folders
        Paths, and pyarrow.fs URIs.
    out
        Folder for the mirrors, made if it does not exist. Their names mark them as partial files. Mirrors of killed
        processes are removed.

    Yields
    ------
    list
        The paths, and a mirror in the place of each URI.

    Raises
    ------
    UserError
        A storage cannot be read. In messages of errors raised inside the block, paths in the mirror become URIs.
    """
    if not any("://" in str(folder) for folder in folders):
        yield [Path(folder) for folder in folders]
        return
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: a file, not a folder for windows")
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(out)
    top = Path(tempfile.mkdtemp(prefix=_PREFIX, suffix=PARTIAL_SUFFIX, dir=out))
    opened: list[Path | RemoteBids] = []
    try:
        with open(top / _LOCK, "wb") as file:
            lock(file)
            for number, folder in enumerate(folders):
                opened.append(_mirror(str(folder), top / str(number)) if "://" in str(folder) else Path(folder))
            yield opened
    except UserError as error:
        error.args = (_name_uris(str(error), opened),)
        raise
    finally:
        shutil.rmtree(top, ignore_errors=True)
        if is_new:
            with contextlib.suppress(OSError):  # it is not empty if windows were written
                out.rmdir()


def _mirror(uri: str, top: Path) -> RemoteBids:
    name = without_settings(uri).rpartition("/")[2]
    mirror = RemoteBids(uri, top / name)
    entries = [entry for entry in _remote(uri).listing() if _BIDS_FILE.fullmatch(entry.name)]
    if not any("/eeg/" in entry.name.lower() for entry in entries):
        raise UserError(f"{without_settings(uri)}: no BIDS folder there, nor a folder of them (sub-*/[ses-*/]eeg/)")
    for entry in entries:
        path = mirror.local / entry.name
        path.parent.mkdir(parents=True, exist_ok=True)
        _make_sparse(path, entry.size, entry.changed)
    first = ("participants.tsv", "dataset_description.json")
    mirror.fetch_tables(mirror.local / entry.name for entry in entries if entry.name.endswith(first))
    return mirror


def _name_uris(text: str, opened: Iterable[Path | RemoteBids]) -> str:
    """Replace paths of mirrors by their URIs."""
    for mirror in opened:
        if isinstance(mirror, RemoteBids):
            text = text.replace(str(mirror.local), without_settings(mirror.uri))
    return text


def _make_sparse(path: Path, size: int, changed: int) -> None:
    """Give an empty file a size in bytes, which takes no disk space, and a modification time in nanoseconds."""
    with open(path, "ab") as file:
        file.truncate(size)
    os.utime(path, ns=(changed, changed))


def _remove_abandoned(out: Path) -> None:
    """Remove mirrors whose process has died: their locks are free."""
    for folder in out.glob(f"{_PREFIX}*{PARTIAL_SUFFIX}"):
        with contextlib.suppress(OSError, UserError), open_regular(folder / _LOCK) as file:
            if lock(file):
                shutil.rmtree(folder, ignore_errors=True)


@lru_cache(maxsize=16)
def _remote(uri: str) -> RemoteFolder:
    return RemoteFolder(uri)
