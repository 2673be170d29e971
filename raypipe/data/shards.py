"""Make a shard: the windows of one recording in a ``.npy`` file, and a JSON record with their rows of the table."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from raypipe.core.errors import UserError
from raypipe.core.record import Record
from raypipe.data.manifest import SHARDS, Plan, Shard
from raypipe.data.plan import Header
from raypipe.data.shard_file import finish_hash, npy_header, window_digest
from raypipe.data.task_base import Labels
from raypipe.data.tasks import parse_task
from raypipe.data.windower import MISSING_SAMPLES, OpenRecording, Window, place_windows, read_windows, table_row
from raypipe.recordings.recording import Recording
from raypipe.recordings.signal import UnreadableRecordingError
from raypipe.storage.files import write_atomic
from raypipe.storage.regular_files import read_whole


class ShardRecord(Record):
    """A finished shard (``shards/<key>.json``)."""

    format: Literal["raypipe-shard/2"] = "raypipe-shard/2"
    shard: Shard
    bytes: int
    """Size of the ``.npy`` file; 0 where there are no windows and hence no file."""
    rows: list[dict[str, Any]]
    """Rows of the table, without their place in the store."""
    left_out: dict[str, int]
    channel_scales: tuple[float, ...]
    """Median of a window's standard deviation in microvolts, by channel; empty where there are no windows."""
    has_confirmed_units: bool
    """`EegChannels.has_confirmed_units`"""

    @property
    def scale(self) -> float:
        """Return the median of the channels' scales; 0 where there are no windows."""
        return float(np.median(self.channel_scales)) if self.channel_scales else 0.0


def read_header(recording: Recording) -> Header:
    """Return the EEG channels of a recording and their sampling rates.

    Raises
    ------
    UserError
        The recording cannot be read.
    """
    with recording.fetched(header=True):
        channels = OpenRecording(recording).channels
    return Header(channels.names, channels.rates, channels.left_out, channels.notes)


def load_shard_record(folder: Path, key: str, fingerprint: str) -> ShardRecord | None:
    """Return the record of a recording's shard, or None if the shard is incomplete or has another fingerprint."""
    path = _record_path(folder, key)
    try:
        record = ShardRecord.parse(read_whole(path), str(path))
        size = (folder / record.shard.file).stat().st_size if record.bytes else 0
    except (OSError, UserError):
        return None
    return record if record.shard.fingerprint == fingerprint and size == record.bytes else None


def make_shard(
    recording: Recording, task: str, labels: Labels, plan: Plan, folder: Path, fingerprint: str
) -> ShardRecord:
    """Cut a recording and write its shard; returns the shard's record.

    Raises
    ------
    UserError
        The recording cannot be read, or the disk is full.
    """
    with recording.fetched():
        return _make_shard(recording, task, labels, plan, folder, fingerprint)


def _make_shard(
    recording: Recording, task: str, labels: Labels, plan: Plan, folder: Path, fingerprint: str
) -> ShardRecord:
    opened = OpenRecording(recording)
    windows, left_out = place_windows(opened, parse_task(task), plan, labels)
    _record_path(folder, recording.key).unlink(missing_ok=True)
    writer = _ShardWriter(opened, windows, plan)
    path = folder / SHARDS / f"{recording.key}.npy"
    if windows:
        write_atomic(path, writer.write)
    if not writer.written:
        path.unlink(missing_ok=True)
    left_out[MISSING_SAMPLES] += len(windows) - len(writer.written)
    shard = Shard(recording=recording.key, rows=len(writer.written), sha256=writer.sha256, fingerprint=fingerprint)
    rows = [
        table_row(recording, window) | {"digest": one}
        for window, one in zip(writer.written, writer.digests, strict=True)
    ]
    record = ShardRecord(
        shard=shard,
        bytes=writer.bytes,
        rows=rows,
        left_out=+left_out,
        channel_scales=writer.channel_scales(),
        has_confirmed_units=opened.channels.has_confirmed_units,
    )
    write_atomic(_record_path(folder, recording.key), lambda file: file.write(record.to_json()))
    return record


def _record_path(folder: Path, key: str) -> Path:
    return folder / SHARDS / f"{key}.json"


def remove_shard(folder: Path, key: str) -> None:
    """Remove the shard of a recording."""
    _record_path(folder, key).unlink(missing_ok=True)
    (folder / SHARDS / f"{key}.npy").unlink(missing_ok=True)


class _ShardWriter:
    """Write windows to a ``.npy`` file, piece by piece.

    Windows with missing samples are left out, so the number of windows is known only at the end. The header is then
    rewritten.

    Attributes
    ----------
    written
        The windows that were written.
    digests
        `shard_file.window_digest` of each.
    sha256, bytes
        Hash of the samples, their shape and type, and the file's size; empty and 0 if no window was written.
    """

    _MAX_MEASURED = 32
    """Windows whose spread is measured."""

    def __init__(self, opened: OpenRecording, windows: list[Window], plan: Plan) -> None:
        self._opened, self._windows, self._plan = opened, windows, plan
        self.written: list[Window] = []
        self.digests: list[str] = []
        self.sha256, self.bytes = "", 0
        self._spreads: list[NDArray[np.float32]] = []

    def channel_scales(self) -> tuple[float, ...]:
        """Return the median of a window's standard deviation in microvolts, by channel."""
        if not self._spreads:
            return ()
        return tuple(float(f"{scale:.4g}") for scale in np.median(self._spreads, axis=0))

    def write(self, file: BinaryIO) -> None:
        """Write the windows, and set the attributes."""
        plan, digest = self._plan, hashlib.sha256()
        every = 1 + len(self._windows) // self._MAX_MEASURED
        file.write(npy_header(self._shape(len(self._windows)), plan.dtype))
        for group, x_NCT in read_windows(self._opened, self._windows, plan):
            for window, x_CT in zip(group, x_NCT, strict=True):
                if not np.isfinite(x_CT).all():
                    continue
                if len(self.written) % every == 0:
                    self._spreads.append(x_CT.std(axis=1))
                stored_CT = self._convert(x_CT)
                data = stored_CT.tobytes()
                self.digests.append(window_digest(stored_CT))
                file.write(data)
                digest.update(data)
                self.written.append(window)
        if not self.written:
            return
        self.bytes = file.tell()
        shape = self._shape(len(self.written))
        header = npy_header(shape, plan.dtype)
        file.seek(0)
        file.write(header)
        self.sha256 = finish_hash(digest, shape, plan.dtype)

    def _shape(self, rows: int) -> tuple[int, int, int]:
        return rows, len(self._plan.channels), self._plan.window_samples

    def _convert(self, x_CT: NDArray[np.float32]) -> NDArray[Any]:
        if self._plan.dtype == "float16" and np.abs(x_CT).max() > np.finfo(np.float16).max:
            raise UnreadableRecordingError(
                f"{self._opened.recording.path}: samples of {np.abs(x_CT).max():.0f} uV do not fit float16 (65504); "
                "use float32, or a band that removes the offset"
            )
        return x_CT.astype(self._plan.dtype)
