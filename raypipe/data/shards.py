"""Make a shard: the windows of one recording in a ``.npy`` file, and a JSON record with their rows of the table."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from raypipe.core.errors import UserError
from raypipe.core.record import Record
from raypipe.data.alignment import Floats
from raypipe.data.kept_windows import KeptWindows, Losses, keep_windows
from raypipe.data.manifest import SHARDS, Plan, Shard
from raypipe.data.plan import Header
from raypipe.data.target_base import Labels
from raypipe.data.targets import parse_target
from raypipe.data.window_writer import WindowWriter
from raypipe.data.windower import OpenRecording, Window, place_windows, table_row
from raypipe.recordings.recording import Recording
from raypipe.storage.files import write_atomic
from raypipe.storage.regular_files import read_whole


class ShardRecord(Record):
    """A finished shard (``shards/<key>.json``)."""

    format: Literal["raypipe-shard/3"] = "raypipe-shard/3"
    shard: Shard
    bytes: int
    """Size of the ``.npy`` file; 0 where there are no windows and hence no file."""
    rows: list[dict[str, Any]]
    """Rows of the table, without their place in the store."""
    left_out: dict[str, int]
    outside: dict[str, dict[str, int]]
    """`kept_windows.Losses.channels`"""
    duration: float | None = None
    """Seconds of signal in the recording; None where they are unknown."""
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
    return Header(channels.names, channels.rates, channels.left_out, channels.notes, channels.bads)


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
    recording: Recording, labels: Labels, plan: Plan, folder: Path, fingerprint: str, matrix_CC: Floats | None = None
) -> ShardRecord:
    """Cut a recording and write its shard; returns the shard's record. `matrix_CC` as for `keep_windows`.

    Raises
    ------
    UserError
        The recording cannot be read, or the disk is full.
    """
    with recording.fetched():
        return _make_shard(recording, labels, plan, folder, fingerprint, matrix_CC)


def _make_shard(
    recording: Recording, labels: Labels, plan: Plan, folder: Path, fingerprint: str, matrix_CC: Floats | None
) -> ShardRecord:
    opened = OpenRecording(recording)
    target = parse_target(plan)
    windows, left_out = place_windows(opened, target, plan, labels)
    losses = Losses(left_out)
    kept = keep_windows(opened, windows, target, plan, losses, matrix_CC)
    _record_path(folder, recording.key).unlink(missing_ok=True)
    writer = WindowWriter(plan, len(windows), str(recording.path))
    written: list[Window] = []
    path = shard_path(folder, recording.key)
    if windows:
        write_atomic(path, lambda file: written.extend(_write_windows(file, writer, kept)))
    if not written:
        path.unlink(missing_ok=True)
    confirmed = opened.channels.has_confirmed_units
    duration = sum(span.duration for span in opened.signal.spans)
    return write_shard_record(folder, recording, writer, written, fingerprint, losses, confirmed, duration)


def _write_windows(file: BinaryIO, writer: WindowWriter, kept: Iterable[KeptWindows]) -> list[Window]:
    """Write the windows of a recording, and return them."""
    writer.begin(file)
    written: list[Window] = []
    for part in kept:
        for x_CT, microvolts_CT in zip(part.samples, part.microvolts, strict=True):
            writer.add(file, x_CT, microvolts_CT)
        written += part.windows
    writer.finish(file)
    return written


def write_shard_record(
    folder: Path,
    recording: Recording,
    writer: WindowWriter,
    written: list[Window],
    fingerprint: str,
    losses: Losses,
    has_confirmed_units: bool,
    duration: float | None = None,
) -> ShardRecord:
    """Write the record of a shard whose file is finished, and return it.

    Parameters
    ----------
    writer, written
        What wrote the file, and the windows in it.
    losses
        The windows left out.
    """
    rows = [table_row(recording, window) | {"digest": one} for window, one in zip(written, writer.digests, strict=True)]
    record = ShardRecord(
        shard=Shard(recording=recording.key, rows=len(rows), sha256=writer.sha256, fingerprint=fingerprint),
        bytes=writer.bytes,
        rows=rows,
        left_out=dict(+losses.counts),
        outside={reason: dict(channels) for reason, channels in losses.channels.items()},
        duration=duration,
        channel_scales=writer.channel_scales(),
        has_confirmed_units=has_confirmed_units,
    )
    write_atomic(_record_path(folder, recording.key), lambda file: file.write(record.to_json()))
    return record


def shard_path(folder: Path, key: str) -> Path:
    """Return the path of the ``.npy`` file of a recording's windows."""
    return folder / SHARDS / f"{key}.npy"


def _record_path(folder: Path, key: str) -> Path:
    return folder / SHARDS / f"{key}.json"


def remove_shard(folder: Path, key: str) -> None:
    """Remove the shard of a recording."""
    _record_path(folder, key).unlink(missing_ok=True)
    shard_path(folder, key).unlink(missing_ok=True)
