"""Windows that lie on shared storage, fetched to a machine's own disk once, for all of its processes."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from raypipe.core.errors import UserError
from raypipe.core.progress import Progress, no_progress
from raypipe.data.window_store import HEADER_BYTES, MANIFEST, SETTINGS, TABLE, Shard, WindowStore, content_hash
from raypipe.storage.files import Folder, lock, open_folder, write_atomic
from raypipe.storage.remote import refuse_credentials
from raypipe.storage.transfer import copy_folder

CACHE, LIMIT = "RAYPIPE_CACHE", "RAYPIPE_CACHE_GB"
"""Environment variables: the folder (default ``~/.cache/raypipe``) and the most gigabytes that shards may take in it
(default: nine tenths of what is free or already used by them)."""

_AT_A_TIME = 8

T = TypeVar("T")


def open_windows(where: str | Path) -> WindowStore:
    """Open windows made by `prepare`.

    Parameters
    ----------
    where
        Folder, or pyarrow.fs URI. Behind a URI, windows are fetched when they are used, and cached on this machine.

    Returns
    -------
    WindowStore
        ``gather(range(10))`` returns windows as an array (windows x channels x samples); ``describe()`` a summary.

    Raises
    ------
    UserError
        There is no store, or it is damaged.
    """
    return RemoteWindowStore(str(where)) if "://" in str(where) else WindowStore(where)


class ShardCache:
    """Shards by their content, on this machine's disk; the longest unused go first when room is short.

    Whoever has mapped a shard keeps it when it is removed: the disk's blocks go with the last map.

    Parameters
    ----------
    folder, limit
        Where, and the most bytes; None for the defaults (`CACHE`, `RETRY_SECONDS`).
    """

    def __init__(self, folder: Path | None = None, limit: int | None = None) -> None:
        self.folder = folder or Path(os.environ.get(CACHE) or "~/.cache/raypipe").expanduser()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.limit = self._limit() if limit is None else limit

    def _limit(self) -> int:
        text = os.environ.get(LIMIT)
        if not text:
            return int(0.9 * (shutil.disk_usage(self.folder).free + sum(size for _, size, _ in self._held())))
        try:
            return int(float(text) * 1e9)
        except ValueError:
            raise UserError(f"{LIMIT}={text}: not a number of gigabytes; say for example 100") from None

    def _held(self) -> Iterator[tuple[float, int, Path]]:
        """Last use, size and path of every shard."""
        for path in self.folder.glob("*.npy"):
            with contextlib.suppress(FileNotFoundError):  # another process makes room
                found = path.stat()
                yield found.st_mtime, found.st_size, path

    def use(self, shard: Shard, shape: tuple[int, ...], dtype: str, folder: Folder, how: Callable[[Path], T]) -> T:
        """What `how` makes of a shard's file, which is not removed meanwhile.

        It is fetched from `folder` unless it is there; one process of a machine fetches it.

        Parameters
        ----------
        shard, shape, dtype
            What is wanted, and the array that it must hold.
        folder
            The store's.
        how
            Given the file's path.

        Raises
        ------
        UserError
            It is not in `folder`, or is not what `prepare` wrote.
        """
        path = self.folder / f"{shard.sha256}.npy"
        with self._alone(path):
            if not path.is_file():
                data = self._fetched(shard, shape, dtype, folder)
                self._make_room(len(data))
                write_atomic(path, lambda file: file.write(data))
            os.utime(path)
            return how(path)

    @contextlib.contextmanager
    def _alone(self, path: Path) -> Iterator[None]:
        with open(path.with_suffix(".lock"), "wb") as file:
            while not lock(file):
                time.sleep(0.05)
            yield

    def _fetched(self, shard: Shard, shape: tuple[int, ...], dtype: str, folder: Folder) -> bytes:
        where = f"{folder.where}/{shard.file}"
        try:
            data = folder.read(shard.file)
        except FileNotFoundError:
            raise UserError(f"{where}: missing; copy the whole store there again") from None
        count = math.prod(shape)
        whole = len(data) == HEADER_BYTES + count * np.dtype(dtype).itemsize
        x_NCT = np.frombuffer(data, dtype, count, HEADER_BYTES).reshape(shape) if whole else None
        if x_NCT is None or content_hash(x_NCT) != shard.sha256:
            raise UserError(f"{where}: damaged (its content is not what prepare wrote); copy the store there again")
        return data

    def _make_room(self, size: int) -> None:
        held = sorted(self._held())
        there = sum(size for _, size, _ in held)
        for _, each, path in held:
            if there + size <= self.limit:
                return
            with open(path.with_suffix(".lock"), "wb") as file:
                if lock(file):  # or it is being mapped
                    path.unlink(missing_ok=True)
                    there -= each


class RemoteWindowStore(WindowStore):
    """Windows behind a URI. Pickled by it: another machine fetches its own.

    All shards are fetched at once where they fit into the cache, else each at its first use.

    Parameters
    ----------
    uri
        Of the folder that holds a store, copied there whole.
    cache
        Where shards are kept.
    """

    def __init__(self, uri: str, cache: ShardCache | None = None) -> None:
        refuse_credentials(uri)
        self._folder, self._cache = open_folder(uri), cache or ShardCache()
        super().__init__(self._small_files(uri))
        self.where = uri
        whole = [shard for shard in self.manifest.shards if shard.rows]
        itemsize = np.dtype(self.manifest.plan.dtype).itemsize
        if sum(HEADER_BYTES + math.prod(self._shape(shard)) * itemsize for shard in whole) <= self._cache.limit:
            with ThreadPoolExecutor(_AT_A_TIME) as pool:
                list(pool.map(lambda shard: self._use(shard, Path), whole))

    def _small_files(self, uri: str) -> Path:
        """Copy the manifest and the table; the folder on this machine that holds them."""
        try:
            manifest = self._folder.read(MANIFEST)
        except FileNotFoundError:
            unfinished = self._folder.exists(SETTINGS)
            why = "prepare or the copying did not finish" if unfinished else f"not a store of windows (no {MANIFEST})"
            raise UserError(f"{self._folder.where}: {why}; copy a store there with raypipe push") from None
        local = self._cache.folder / "stores" / hashlib.sha256(manifest).hexdigest()[:24]
        if not (local / MANIFEST).is_file():
            try:
                table = self._folder.read(TABLE)
            except FileNotFoundError:
                raise UserError(f"{self._folder.where}/{TABLE}: missing; copy the whole store there again") from None
            write_atomic(local / TABLE, lambda file: file.write(table))
            write_atomic(local / MANIFEST, lambda file: file.write(manifest))
        return local

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return RemoteWindowStore, (self.where,)

    def _shape(self, shard: Shard) -> tuple[int, ...]:
        return shard.rows, self.n_channels, self.window_samples

    def _use(self, shard: Shard, how: Callable[[Path], T]) -> T:
        return self._cache.use(shard, self._shape(shard), self.manifest.plan.dtype, self._folder, how)

    def _open(self, shard: Shard) -> NDArray[Any]:
        return self._use(shard, lambda path: self._mapped(path, shard))


def push_store(store: str, target: str, *, progress: Progress = no_progress) -> int:
    """Copy a store of windows to shared storage, its manifest last: what is cut short is no store."""
    WindowStore(store)  # refuses what is none
    return copy_folder(store, target, last=(MANIFEST,), progress=progress)
