"""Windows behind a URI, fetched once into a disk cache that all processes of a machine share."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from raypipe.core.errors import DamagedFileError, UserError
from raypipe.core.progress import Progress, no_progress
from raypipe.core.store_names import Data, parse_stores
from raypipe.data.manifest import MANIFEST, SETTINGS, TABLE, Manifest, Shard
from raypipe.data.shard_file import HEADER_BYTES, content_hash, file_size, map_shard
from raypipe.data.window_store import WindowStore
from raypipe.storage.files import Folder, lock, open_folder, write_atomic
from raypipe.storage.regular_files import open_lock_file, read_whole
from raypipe.storage.remote import refuse_credentials
from raypipe.storage.transfer import copy_folder

FOLDER_VARIABLE = "RAYPIPE_CACHE"
"""Environment variable: the cache's folder. Default: ``~/.cache/raypipe``."""
LIMIT_VARIABLE = "RAYPIPE_CACHE_GB"
"""Environment variable: gigabytes that the cache may use. Default: 90 % of the disk space that is free or its own."""

MAX_FETCHES = 8
"""Shards that one process fetches at the same time."""

_LOCK_PAUSE = 0.05
"""Seconds between two attempts to take a shard's lock."""

T = TypeVar("T")


def open_windows(where: Data) -> WindowStore:
    """Open windows made by `prepare`.

    Parameters
    ----------
    where
        Folder, or pyarrow.fs URI. Shards behind a URI are fetched into a cache on this machine: all at once if they
        fit, else each at its first use. Also several stores of the same windows by name, as a dictionary or as
        ``a=STORE1,b=STORE2`` (`raypipe.data.named_stores`).

    Returns
    -------
    WindowStore
        ``gather(range(10))`` returns windows as an array (windows, channels, samples), and ``describe()`` a summary.

    Raises
    ------
    UserError
        There is no store, or it is damaged; or several do not have the same subjects and targets.
    """
    if named := parse_stores(where):
        from raypipe.data.named_stores import NamedStores

        return NamedStores({name: open_windows(place) for name, place in named.items()})
    assert not isinstance(where, Mapping)
    return RemoteWindowStore(str(where)) if "://" in str(where) else WindowStore(where)


def push_store(store: str, target: str, *, progress: Progress = no_progress) -> int:
    """Copy a store of windows to shared storage, and return the number of files.

    The manifest is copied last, so that an unfinished copy is recognised.

    Raises
    ------
    UserError
        `store` is not a store of windows, or the storage fails.
    """
    WindowStore(store)
    return copy_folder(store, target, last=(MANIFEST,), progress=progress)


class CachedShard(NamedTuple):
    """A file of the cache. Files sort by their last use."""

    used: float
    """Unix time (s)."""
    size: int
    """Bytes."""
    path: Path


class ShardCache:
    """Shards on this machine's disk, named by their hash. The least recently used are evicted when the cache is full.

    An evicted shard stays readable for processes that have mapped it: its disk space is freed with the last map.

    Parameters
    ----------
    folder
        The cache's folder; None for the default (`FOLDER_VARIABLE`).
    limit
        Bytes that it may use; None for the default (`LIMIT_VARIABLE`).
    """

    def __init__(self, folder: Path | None = None, limit: int | None = None) -> None:
        self.folder = folder or Path(os.environ.get(FOLDER_VARIABLE) or "~/.cache/raypipe").expanduser()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.limit = self._default_limit() if limit is None else limit

    def _default_limit(self) -> int:
        text = os.environ.get(LIMIT_VARIABLE)
        if not text:
            return int(0.9 * (shutil.disk_usage(self.folder).free + sum(shard.size for shard in self._shards())))
        try:
            return int(float(text) * 1e9)
        except ValueError:
            raise UserError(f"{LIMIT_VARIABLE}={text}: not a number of gigabytes, such as 100") from None

    def _shards(self) -> Iterator[CachedShard]:
        for path in self.folder.glob("*.npy"):
            with contextlib.suppress(FileNotFoundError):  # evicted by another process
                stat = path.stat()
                yield CachedShard(stat.st_atime, stat.st_size, path)

    def use(self, shard: Shard, shape: tuple[int, ...], dtype: str, folder: Folder, read: Callable[[Path], T]) -> T:
        """Fetch a shard if it is not in the cache, call `read` with the path of its file, and return the result.

        The shard is locked during the call: no other process of the machine fetches or evicts it.

        Parameters
        ----------
        shard, shape, dtype
            The shard, and shape and type of its array.
        folder
            The store's folder, from which the shard is fetched.
        read
            Opens the file.

        Raises
        ------
        UserError
            The shard is not in `folder`, or is not what `prepare` wrote.
        """
        path = self.folder / f"{shard.sha256}.npy"
        with self._locked(path):
            if path.is_file():
                os.utime(path, (time.time(), path.stat().st_mtime))  # the time of change is part of what is verified
                with contextlib.suppress(DamagedFileError):
                    return read(path)
            data = self._fetch(shard, shape, dtype, folder)
            self._evict_for(len(data))
            write_atomic(path, lambda file: file.write(data))
            return read(path)

    @contextlib.contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        with open_lock_file(path.with_suffix(".lock")) as file:
            while not lock(file):
                time.sleep(_LOCK_PAUSE)
            yield

    def _fetch(self, shard: Shard, shape: tuple[int, ...], dtype: str, folder: Folder) -> bytes:
        where = f"{folder.where}/{shard.file}"
        try:
            data = folder.read(shard.file)
        except FileNotFoundError:
            raise DamagedFileError(f"{where}: missing; copy the whole store there again") from None
        whole = len(data) == file_size(shape, dtype)
        if not whole or content_hash(np.frombuffer(data, dtype, offset=HEADER_BYTES).reshape(shape)) != shard.sha256:
            raise DamagedFileError(
                f"{where}: damaged (its content is not what prepare wrote); copy the store there again"
            )
        return data

    def _evict_for(self, size: int) -> None:
        """Evict shards until `size` more bytes fit. Locked shards are kept."""
        shards = sorted(self._shards())
        used = sum(shard.size for shard in shards)
        for shard in shards:
            if used + size <= self.limit:
                return
            with open_lock_file(shard.path.with_suffix(".lock")) as file:
                if lock(file):
                    shard.path.unlink(missing_ok=True)
                    used -= shard.size


class RemoteWindowStore(WindowStore):
    """Windows behind a URI. A pickle contains the URI only: another machine fetches its own copy.

    All shards are fetched at the start if they fit in the cache, else each at its first use.

    Parameters
    ----------
    uri
        URI of a folder that contains a whole store.
    cache
        The cache; None for the machine's.

    Raises
    ------
    UserError
        There is no store, or it is damaged.
    """

    def __init__(self, uri: str, cache: ShardCache | None = None) -> None:
        refuse_credentials(uri)
        self._folder, self._cache = open_folder(uri), cache or ShardCache()
        super().__init__(self._fetch_manifest_and_table())
        self.where = uri
        shards = [shard for shard in self.manifest.shards if shard.rows]
        if sum(file_size(self._shape(shard), self.manifest.plan.dtype) for shard in shards) <= self._cache.limit:
            with ThreadPoolExecutor(MAX_FETCHES) as pool:
                list(pool.map(lambda shard: self._use(shard, Path), shards))

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return RemoteWindowStore, (self.where,)

    def _fetch_manifest_and_table(self) -> Path:
        """Return the folder on this machine that contains copies of both."""
        where = self._folder.where
        try:
            manifest = self._folder.read(MANIFEST)
        except FileNotFoundError:
            unfinished = self._folder.exists(SETTINGS)
            reason = "prepare or the copy did not finish" if unfinished else f"not a store of windows (no {MANIFEST})"
            raise UserError(f"{where}: {reason}; copy a store there with raypipe push") from None
        local = self._cache.folder / "stores" / hashlib.sha256(manifest).hexdigest()[:24]
        wanted = Manifest.parse(manifest, f"{where}/{MANIFEST}").table_sha256
        if not ((local / MANIFEST).is_file() and _has_hash(local / TABLE, wanted)):
            try:
                table = self._folder.read(TABLE)
            except FileNotFoundError:
                raise UserError(f"{where}/{TABLE}: missing; copy the whole store there again") from None
            if hashlib.sha256(table).hexdigest() != wanted:
                problem = "damaged (its content is not what prepare wrote)"
                raise DamagedFileError(f"{where}/{TABLE}: {problem}; copy the whole store there again")
            write_atomic(local / TABLE, lambda file: file.write(table))
            write_atomic(local / MANIFEST, lambda file: file.write(manifest))
        return local

    def _open(self, shard: Shard) -> NDArray[Any]:
        return self._use(
            shard, lambda path: map_shard(path, self._shape(shard), self.manifest.plan.dtype, shard.sha256)
        )

    def _use(self, shard: Shard, read: Callable[[Path], T]) -> T:
        return self._cache.use(shard, self._shape(shard), self.manifest.plan.dtype, self._folder, read)


def _has_hash(path: Path, sha256: str) -> bool:
    """Return whether a file is there and has a content."""
    try:
        return hashlib.sha256(read_whole(path)).hexdigest() == sha256
    except FileNotFoundError:
        return False
