"""The store of windows: memory-mapped shards, one a recording, with a table of targets."""

from __future__ import annotations

import hashlib
import mmap
import resource
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from raypipe.core.errors import UserError

MANIFEST = "manifest.json"
TABLE = "windows.csv"
SETTINGS = "settings.json"
SHARDS = "shards"
COLUMNS = ("window", "recording", "subject", "session", "task", "run", "onset", "target", "shard", "row", "offset")
EXTRA = ("release", "mark", "age")
"""Columns that the table has only where a window has something in them."""

HEADER_BYTES = 128
"""Of a ``.npy`` file with three axes."""

_BLOCK = 1 << 24


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Settings(_Frozen):
    """What was asked of `prepare`; it decides the windows, given the recordings."""

    task: str
    sfreq: float | None
    band: tuple[float, float] | None
    channels: tuple[str, ...] | None
    window: float | None
    crop: float | None
    stride: float | None
    tmin: float | None
    dtype: Literal["float16", "float32"]


class Plan(_Frozen):
    """The settings with every default filled in from the task and the recordings: how a recording is cut."""

    task: str
    channels: tuple[str, ...]
    sfreq: float
    """Hz, of the windows."""
    band: tuple[float, float] | None
    """Edges of the band-pass (Hz)."""
    window: float
    """Seconds, as are `stride` and `tmin`."""
    stride: float
    tmin: float
    window_samples: int
    crop_samples: int
    target_is_offset: bool
    dtype: Literal["float16", "float32"]
    crops: Literal["own", "scorer"] = "own"
    """Where crops that are evaluated lie: `scorer`, where the challenge's scorer draws them."""


class Shard(_Frozen):
    """One recording's windows."""

    recording: str
    rows: int
    sha256: str
    """Of the samples, shape and type (`content_hash`); empty where there are no rows and hence no file."""
    fingerprint: str
    """Of the files and labels that it was made from."""

    @property
    def file(self) -> str:
        """Its path in the store."""
        return f"{SHARDS}/{self.recording}.npy"


class Summary(_Frozen):
    """What came in and what was left out."""

    recordings: int
    """Recordings with at least one window."""
    windows: int
    subjects: int
    left_out: dict[str, int]
    """How many of what were left out; the keys say it in words."""


class Manifest(_Frozen):
    """Everything about a store but its windows. Written last: a store without one is unfinished."""

    format: Literal[1] = 1
    settings: Settings
    plan: Plan
    kind: Literal["regression", "classification"]
    metric: Literal["nrmse", "auc"]
    classes: tuple[str, ...]
    unit: Literal["uV"] = "uV"
    shards: tuple[Shard, ...]
    table_sha256: str
    data_hash: str
    """Of shards and table: equal for equal windows, wherever the store lies."""
    summary: Summary
    versions: dict[str, str]

    @property
    def task(self) -> str:
        """The task's specification."""
        return self.plan.task


class WindowStore:
    """Windows made by `prepare`, read-only. Pickled by its path: a worker opens its own memory maps.

    Parameters
    ----------
    path
        The store's folder.

    Attributes
    ----------
    where
        The folder, or the URI that the store was fetched from (`cache.RemoteWindowStore`).
    manifest
        What the store is.
    table
        A row a window: `window` (0 to N-1), `recording`, `subject`, `session`, `task`, `run`, `onset` (s from the
        recording's start), `target`, `shard`, `row` in it, `offset` (samples: where the crop that is evaluated begins);
        where they are known also `release` and `age`, and `mark` where the task marks windows.
    targets
        (N,) float32 values, or int64 classes.
    subjects
        (N,) subject labels without ``sub-``.
    classes
        Names of the classes; empty for regression.
    redone
        How many recordings were read by the call of `prepare` that returned this store; None for one that was opened.

    Raises
    ------
    UserError
        No such folder, no store, a store whose prepare did not finish, or a damaged one.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().absolute()
        self.where = str(self.path)
        self.manifest = read_manifest(self.path)
        self.table = self._read_table()
        plan = self.manifest.plan
        self.classes = list(self.manifest.classes)
        self.kind, self.metric = self.manifest.kind, self.manifest.metric
        self.n_outputs = len(self.classes) or 1
        self.sfreq = plan.sfreq
        self.channels = list(plan.channels)
        self.n_channels = len(self.channels)
        self.window_samples, self.crop_samples = plan.window_samples, plan.crop_samples
        self.target_is_offset = plan.target_is_offset
        self.data_hash = self.manifest.data_hash
        self.redone: int | None = None
        self.targets: NDArray[Any] = self.table["target"].to_numpy(np.int64 if self.classes else np.float32)
        self.subjects: NDArray[Any] = self.table["subject"].to_numpy(dtype=object).astype(str)
        self._shard_N = self.table["shard"].to_numpy(np.int64)
        self._row_N = self.table["row"].to_numpy(np.int64)
        self._offset_N = self.table["offset"].to_numpy(np.int64)
        self._maps: OrderedDict[int, NDArray[Any]] = OrderedDict()
        # Every memory map keeps a file descriptor, and a large data set has more recordings than a process may open.
        self._most_maps = max(16, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        self._lock = threading.Lock()  # folds that are trained side by side fetch their batches side by side

    def __len__(self) -> int:
        return len(self.targets)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return WindowStore, (self.path,)

    def __repr__(self) -> str:
        return f"<WindowStore {self.where}: {self.describe()}>"

    def describe(self) -> str:
        """One line for people: what is in the store, what was left out, and how much was done for it just now."""
        summary = self.manifest.summary
        target = f"{len(self.classes)} classes ({', '.join(self.classes[:5])})" if self.classes else "regression"
        parts = [
            f"{summary.windows} windows of {self.n_channels} channels x {self.window_samples} samples at "
            f"{self.sfreq:g} Hz from {summary.recordings} recordings of {summary.subjects} subjects; {target}"
        ]
        if summary.left_out:
            parts.append("left out: " + ", ".join(f"{n} {what}" for what, n in summary.left_out.items()))
        if self.redone == 0:
            parts.append("up to date, nothing was read")
        elif self.redone is not None and self.redone < len(self.manifest.shards):
            parts.append(f"{self.redone} recordings read now, the others kept")
        return "; ".join(parts)

    def gather(self, index_B: ArrayLike, offset_B: ArrayLike | None = None) -> NDArray[np.float32]:
        """Read windows, in the order asked for.

        Parameters
        ----------
        index_B
            Numbers of windows.
        offset_B
            Samples from the start of each window to its crop, 0 to ``window_samples - crop_samples``. None for the
            table's, with which windows are evaluated.

        Returns
        -------
        numpy.ndarray
            (B, C, crop_samples), in microvolts.

        Raises
        ------
        IndexError
            A number or an offset is out of range.
        UserError
            A shard is missing or has another size than the manifest says.
        """
        index = np.asarray(index_B, np.int64)
        offsets = self.offsets(index) if offset_B is None else np.asarray(offset_B, np.int64)
        if offsets.shape != index.shape:
            raise IndexError(f"{len(index)} windows, but {len(offsets)} offsets")
        if len(index) and (offsets.min() < 0 or offsets.max() > self.window_samples - self.crop_samples):
            raise IndexError(f"offsets must lie within 0 and {self.window_samples - self.crop_samples}")
        return self._copy(index, offsets, self.crop_samples)

    def whole(self, index_B: ArrayLike) -> NDArray[np.float32]:
        """Whole windows (B, C, window_samples), in microvolts."""
        index = np.asarray(index_B, np.int64)
        return self._copy(index, np.zeros_like(index), self.window_samples)

    def offsets(self, index_B: ArrayLike) -> NDArray[np.int64]:
        """Samples (B,) from the start of each window to the crop that is evaluated."""
        return np.asarray(self._offset_N[np.asarray(index_B, np.int64)])

    def _copy(self, index_B: NDArray[np.int64], offset_B: NDArray[np.int64], samples: int) -> NDArray[np.float32]:
        out = np.empty((len(index_B), self.n_channels, samples), np.float32)
        places = zip(self._shard_N[index_B].tolist(), self._row_N[index_B].tolist(), offset_B.tolist(), strict=True)
        for x_CT, (shard, row, offset) in zip(out, places, strict=True):
            x_CT[:] = self._map(shard)[row, :, offset : offset + samples]
        return out

    @property
    def releases(self) -> dict[str, str]:
        """Release of each subject; empty where the table has none."""
        if "release" not in self.table:
            return {}
        return dict(zip(self.subjects.tolist(), self.table["release"].astype(str), strict=True))

    def target_at(self, index_B: ArrayLike, offset_B: ArrayLike) -> NDArray[np.float32]:
        """Regression targets (B,) of crops that begin `offset_B` samples into their windows."""
        if self.target_is_offset:
            return (np.asarray(offset_B) / self.sfreq).astype(np.float32)
        return self.targets[np.asarray(index_B, np.int64)].astype(np.float32)

    def verify(self) -> None:
        """Read everything once and compare it with the manifest.

        Raises
        ------
        UserError
            Names the shard that is damaged.
        """
        for line in self.damaged():
            raise UserError(line)

    def damaged(self) -> Iterator[str]:
        """Read everything once, and give a line on each shard that is missing or not what the manifest says."""
        for number, shard in enumerate(self.manifest.shards):
            try:
                if shard.rows and content_hash(self._map(number)) != shard.sha256:
                    yield f"{self.path / shard.file}: damaged (its content is not what prepare wrote); {_AGAIN}"
            except UserError as error:
                yield str(error)

    def _map(self, shard: int) -> NDArray[Any]:
        with self._lock:
            if shard in self._maps:
                self._maps.move_to_end(shard)
                return self._maps[shard]
            while len(self._maps) >= self._most_maps:
                self._maps.popitem(last=False)
            mapped = self._maps[shard] = self._open(self.manifest.shards[shard])
            return mapped

    def _open(self, shard: Shard) -> NDArray[Any]:
        return self._mapped(self.path / shard.file, shard)

    def _mapped(self, path: Path, shard: Shard) -> NDArray[Any]:
        shape = (shard.rows, self.n_channels, self.window_samples)
        dtype = np.dtype(self.manifest.plan.dtype)
        count = shape[0] * shape[1] * shape[2]
        # Not numpy.load: parsing a header takes longer than reading a window, and the manifest has said it all.
        try:
            with open(path, "rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise UserError(f"{path}: missing; {_AGAIN}") from None
        except ValueError:
            raise UserError(f"{path}: damaged (empty); {_AGAIN}") from None
        expected = HEADER_BYTES + count * dtype.itemsize
        if len(mapped) != expected:
            raise UserError(f"{path}: damaged ({len(mapped)} bytes, not {expected}); {_AGAIN}")
        return np.frombuffer(mapped, dtype, count, HEADER_BYTES).reshape(shape)

    def _read_table(self) -> pd.DataFrame:
        path = self.path / TABLE
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise UserError(f"{path}: missing; {_AGAIN}") from None
        if hashlib.sha256(data).hexdigest() != self.manifest.table_sha256:
            raise UserError(f"{path}: damaged (its content is not what prepare wrote); {_AGAIN}")
        # Numbers as text first: pandas' fast parser may miss the last digit of what was written.
        text = dict.fromkeys(("recording", "subject", "session", "task", "run", "onset", "target", *EXTRA), str)
        table = pd.read_csv(path, dtype=text, keep_default_na=False)
        return table.astype({"onset": float, "target": float})


_AGAIN = "delete it and run prepare again"


def read_manifest(path: Path) -> Manifest:
    """Read a store's manifest.

    Raises
    ------
    UserError
        No such folder, no store, a store whose prepare did not finish, or a damaged manifest.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder of windows; make one with raypipe prepare")
    file = path / MANIFEST
    if not file.is_file():
        if (path / SETTINGS).is_file():
            raise UserError(f"{path}: prepare did not finish; run the same prepare command again, it goes on")
        raise UserError(f"{path}: not a store of windows (no {MANIFEST}); make one with raypipe prepare")
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise UserError(f"{file}: damaged ({where + ': ' if where else ''}{problem['msg']}); {_AGAIN}") from None


def content_hash(x_NCT: NDArray[Any]) -> str:
    """SHA-256 of an array's samples, shape and type, whatever file it lies in."""
    digest = hashlib.sha256()
    step = max(1, _BLOCK // max(1, x_NCT[:1].nbytes))
    for start in range(0, len(x_NCT), step):
        digest.update(np.ascontiguousarray(x_NCT[start : start + step]).data)
    return finish_hash(digest, x_NCT.shape, x_NCT.dtype)


def finish_hash(digest: Any, shape: tuple[int, ...], dtype: Any) -> str:
    """End a running hash of samples with their shape and type."""
    digest.update(f"{np.dtype(dtype).str}{tuple(shape)}".encode())
    return str(digest.hexdigest())
