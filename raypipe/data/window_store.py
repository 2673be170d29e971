"""A store of windows: memory-mapped shards, one per recording, and a table with a row per window."""

from __future__ import annotations

import hashlib
import io
import resource
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from raypipe.core.errors import DamagedFileError, UserError
from raypipe.core.store_names import require_known_store
from raypipe.data.manifest import OPTIONAL_COLUMNS, OUTPUT, TABLE, Shard, read_manifest
from raypipe.data.shard_file import REBUILD_HINT, content_hash, map_shard
from raypipe.storage.regular_files import read_whole

MIN_OPEN_MAPS = 16


class WindowStore:
    """Windows made by `prepare`, read-only. A pickle contains the path only: a worker opens its own memory maps.

    Parameters
    ----------
    path
        The store's folder.

    Attributes
    ----------
    where
        The folder, or the URI that the store was fetched from (`window_cache.RemoteWindowStore`).
    manifest
        Settings, plan, shards and hashes.
    table
        A row per window: `window` (0 to N-1), `recording`, `subject`, `session`, `task`, `run`, `onset` (s from the
        recording's start), `target`, `shard`, `row` in the shard, `offset` (samples from the window's start to the
        evaluated crop), `digest` (a hash of its samples). Also `release`, `age` and `group` where they are known, and
        `mark` where the target marks windows.
    targets
        (N,) float32 values, or int64 classes; (N, K) float32 where a target has several values.
    outputs
        Names of these values; empty for one value, and for classes.
    subjects
        (N,) subject labels without ``sub-``.
    classes
        Names of the classes; empty for regression.
    dtype
        Type in which windows are stored, ``float16`` or ``float32``; they are read as float32.
    redone
        Number of recordings that `prepare` read to make this store; None if it was opened instead.
    is_up_to_date
        `prepare` found that nothing has changed.

    Raises
    ------
    UserError
        There is no such folder, it is not a finished store, or it is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().absolute()
        self.where = str(self.path)
        self.manifest = read_manifest(self.path)
        self.table = self._read_table()
        plan = self.manifest.plan
        self.classes = list(self.manifest.classes)
        self.kind, self.metric = self.manifest.kind, self.manifest.metric
        names = [str(name) for name in self.table.columns]
        self.outputs = [name.removeprefix(OUTPUT) for name in names if name.startswith(OUTPUT)]
        self.n_outputs = len(self.classes) or len(self.outputs) or 1
        self.sfreq = plan.sfreq
        self.channels = list(plan.channels)
        self.n_channels = len(self.channels)
        self.window_samples, self.crop_samples = plan.window_samples, plan.crop_samples
        self.target_is_offset, self.dtype = plan.target_is_offset, plan.dtype
        self.data_hash = self.manifest.data_hash
        self.redone: int | None = None
        self.is_up_to_date = False
        columns: Any = [f"{OUTPUT}{name}" for name in self.outputs] or "target"
        self.targets: NDArray[Any] = self.table[columns].to_numpy(np.int64 if self.classes else np.float32)
        self.subjects: NDArray[Any] = self.table["subject"].to_numpy(dtype=object).astype(str)
        self._shard_N = self.table["shard"].to_numpy(np.int64)
        self._row_N = self.table["row"].to_numpy(np.int64)
        self._offset_N = self.table["offset"].to_numpy(np.int64)
        self._maps: OrderedDict[int, NDArray[Any]] = OrderedDict()
        # Every memory map uses a file descriptor, and a large data set has more recordings than a process may open.
        self._max_maps = max(MIN_OPEN_MAPS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        self._lock = threading.Lock()  # folds that are trained as a stack read their batches in threads

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the stores of the same windows (`NamedStores`); empty for a single store."""
        return ()

    @property
    def places(self) -> list[str]:
        """Return the folder or URI of each store."""
        return [self.where]

    @property
    def hashes(self) -> dict[str, str]:
        """Return the stores' hashes by name, where several are one."""
        return {name: self.of(name).data_hash for name in self.names}

    def of(self, name: str) -> WindowStore:
        """Return the windows of a store by its name, which is empty for a single store.

        Raises
        ------
        UserError
            There is no such store.
        """
        if name:
            require_known_store(name, self.names, self.where)
        return self

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return WindowStore, (self.path,)

    def __repr__(self) -> str:
        return f"<WindowStore {self.where}: {self.describe()}>"

    def describe(self) -> str:
        """Return a summary in one line: contents, what was left out, and how many recordings `prepare` read."""
        summary = self.manifest.summary
        target = f"{len(self.classes)} classes ({', '.join(self.classes[:5])})" if self.classes else "regression"
        target += f" of {len(self.outputs)} values ({', '.join(self.outputs[:5])})" if self.outputs else ""
        parts = [
            f"{summary.windows} windows of {self.n_channels} channels x {self.window_samples} samples at "
            f"{self.sfreq:g} Hz from {summary.recordings} recordings of {summary.subjects} subjects; {target}"
        ]
        left_out = self.manifest.accounting.counts()
        if left_out:
            parts.append("left out: " + ", ".join(f"{n} {what}" for what, n in left_out.items()))
        if self.is_up_to_date:
            parts.append("up to date, nothing was read")
        elif self.redone == 0:
            parts.append("no recording had to be read again")
        elif self.redone is not None and self.redone < len(self.manifest.shards):
            parts.append(f"{self.redone} recordings read now, the others kept")
        return "; ".join(parts)

    def left_out_line(self) -> str:
        """Return which windows are left out because other stores lack them, in words; empty for a single store."""
        return ""

    # Signals

    def gather(self, index_B: ArrayLike, offset_B: ArrayLike | None = None) -> NDArray[np.float32]:
        """Read one crop of each window, in the order of `index_B`.

        Parameters
        ----------
        index_B
            (B,) numbers of windows.
        offset_B
            (B,) samples from the start of each window to its crop, 0 to ``window_samples - crop_samples``. None for
            the offsets of the table, which evaluation uses.

        Returns
        -------
        numpy.ndarray
            (B, C, crop_samples), in microvolts.

        Raises
        ------
        IndexError
            A number or an offset is out of range.
        DamagedFileError
            A shard is missing, or is not what `prepare` wrote. Each is compared with its checksum when it is first
            read.
        """
        index = np.asarray(index_B, np.int64)
        offsets = self.offsets(index) if offset_B is None else np.asarray(offset_B, np.int64)
        if offsets.shape != index.shape:
            raise IndexError(f"{len(index)} windows, but {len(offsets)} offsets")
        if len(index) and (offsets.min() < 0 or offsets.max() > self.window_samples - self.crop_samples):
            raise IndexError(f"offsets must be from 0 to {self.window_samples - self.crop_samples}")
        return self._copy(index, offsets, self.crop_samples)

    def whole(self, index_B: ArrayLike) -> NDArray[np.float32]:
        """Read whole windows (B, C, window_samples), in microvolts; raises as `gather`."""
        index = np.asarray(index_B, np.int64)
        return self._copy(index, np.zeros_like(index), self.window_samples)

    def _copy(self, index_B: NDArray[np.int64], offset_B: NDArray[np.int64], samples: int) -> NDArray[np.float32]:
        out = np.empty((len(index_B), self.n_channels, samples), np.float32)
        places = zip(self._shard_N[index_B].tolist(), self._row_N[index_B].tolist(), offset_B.tolist(), strict=True)
        for x_CT, (shard, row, offset) in zip(out, places, strict=True):
            x_CT[:] = self._map(shard)[row, :, offset : offset + samples]
        return out

    def _map(self, number: int) -> NDArray[Any]:
        """Return the memory map of a shard, and close the least recently used one if too many are open."""
        with self._lock:
            if number in self._maps:
                self._maps.move_to_end(number)
                return self._maps[number]
            while len(self._maps) >= self._max_maps:
                self._maps.popitem(last=False)
            mapped = self._maps[number] = self._open(self.manifest.shards[number])
            return mapped

    def _open(self, shard: Shard) -> NDArray[Any]:
        return map_shard(self.path / shard.file, self._shape(shard), self.manifest.plan.dtype, shard.sha256)

    def _shape(self, shard: Shard) -> tuple[int, int, int]:
        return shard.rows, self.n_channels, self.window_samples

    # Table

    @property
    def releases(self) -> dict[str, str]:
        """Return the release of each subject; empty if the table has no releases."""
        if "release" not in self.table:
            return {}
        return dict(zip(self.subjects.tolist(), self.table["release"].astype(str), strict=True))

    @property
    def group_of(self) -> dict[str, str]:
        """Return the group of each subject that has one (``prepare --groups``)."""
        if "group" not in self.table:
            return {}
        pairs = zip(self.subjects.tolist(), self.table["group"].astype(str), strict=True)
        return {subject: group for subject, group in pairs if group}

    def offsets(self, index_B: ArrayLike) -> NDArray[np.int64]:
        """Return the samples (B,) from the start of each window to its evaluated crop."""
        return np.asarray(self._offset_N[np.asarray(index_B, np.int64)])

    def target_at(self, index_B: ArrayLike, offset_B: ArrayLike) -> NDArray[np.float32]:
        """Return the regression targets (B,) or (B, K) of crops that start `offset_B` samples into their windows."""
        if self.target_is_offset:
            return (np.asarray(offset_B) / self.sfreq).astype(np.float32)
        return self.targets[np.asarray(index_B, np.int64)].astype(np.float32)

    def _read_table(self) -> pd.DataFrame:
        path = self.path / TABLE
        try:
            data = read_whole(path)
        except FileNotFoundError:
            raise DamagedFileError(f"{path}: missing; {REBUILD_HINT}") from None
        if hashlib.sha256(data).hexdigest() != self.manifest.table_sha256:
            raise DamagedFileError(f"{path}: damaged (its content is not what prepare wrote); {REBUILD_HINT}")
        # Numbers are read as text first: the fast parser of pandas may lose their last digit.
        columns = ("recording", "subject", "session", "task", "run", "onset", "digest", *OPTIONAL_COLUMNS)
        names = pd.read_csv(io.BytesIO(data), nrows=0).columns
        values = [name for name in names if name == "target" or name.startswith(OUTPUT)]
        texts = dict.fromkeys((*columns, *values), str)
        table = pd.read_csv(io.BytesIO(data), dtype=texts, keep_default_na=False)
        return table.astype(dict.fromkeys(("onset", *values), float))

    # Integrity

    def verify(self) -> None:
        """Read all shards and compare them with the manifest.

        Raises
        ------
        UserError
            Names the first shard that is damaged.
        """
        first = next(self.damaged(), None)
        if first is not None:
            raise UserError(first)

    def damaged(self) -> Iterator[str]:
        """Read all shards, and yield a line for each that is missing or differs from the manifest."""
        for number, shard in enumerate(self.manifest.shards):
            try:
                if shard.rows and content_hash(self._map(number)) != shard.sha256:
                    yield f"{self.path / shard.file}: damaged (its content is not what prepare wrote); {REBUILD_HINT}"
            except UserError as error:
                yield str(error)
