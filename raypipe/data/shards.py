"""A shard: one recording's windows in a ``.npy`` file, with a JSON file beside it that says what it was made from."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from raypipe.core.errors import UserError
from raypipe.data.bids import Recording, eeg_channels, read_raw
from raypipe.data.tasks import Labels, parse_task
from raypipe.data.window_store import HEADER_BYTES, SHARDS, Plan, Shard, finish_hash
from raypipe.data.windower import MISSING, Row, describe_row, place_windows, read_windows
from raypipe.storage.files import write_atomic


class Made(BaseModel):
    """A finished shard."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard: Shard
    bytes: int
    """Size of the ``.npy`` file; 0 where there are no windows and no file."""
    rows: list[dict[str, Any]]
    """The table's rows, without their place in the store."""
    left_out: dict[str, int]


def probe(recording: Recording) -> tuple[float, tuple[str, ...]]:
    """Sampling rate (Hz) and EEG channels by a recording's header."""
    with recording.at_hand(header=True):
        raw = read_raw(recording)
        return float(raw.info["sfreq"]), tuple(eeg_channels(recording, raw))


def load_made(folder: Path, key: str, fingerprint: str) -> Made | None:
    """The shard of recording `key` if it is whole and was made from what `fingerprint` says, else None."""
    try:
        made = Made.model_validate_json(_sidecar(folder, key).read_bytes())
    except (OSError, ValidationError):
        return None
    if made.shard.fingerprint != fingerprint:
        return None
    if not made.bytes:
        return made
    try:
        size = (folder / made.shard.file).stat().st_size
    except OSError:
        return None
    return made if size == made.bytes else None


def make_shard(recording: Recording, task: str, labels: Labels, plan: Plan, folder: Path, fingerprint: str) -> Made:
    """Cut a recording and write its shard. Runs in a worker process.

    Raises
    ------
    UserError
        The recording cannot be read, or the disk is full.
    """
    with recording.at_hand():
        return _make_shard(recording, task, labels, plan, folder, fingerprint)


def _make_shard(recording: Recording, task: str, labels: Labels, plan: Plan, folder: Path, fingerprint: str) -> Made:
    raw = read_raw(recording)
    rows, left_out = place_windows(recording, raw, parse_task(task), plan, labels)
    _sidecar(folder, recording.key).unlink(missing_ok=True)
    writer = _Writer(recording, raw, rows, plan)
    path = folder / SHARDS / f"{recording.key}.npy"
    if rows:
        write_atomic(path, writer.write)
    if not writer.rows:
        path.unlink(missing_ok=True)
    left_out[MISSING] += len(rows) - len(writer.rows)
    made = Made(
        shard=Shard(recording=recording.key, rows=len(writer.rows), sha256=writer.sha256, fingerprint=fingerprint),
        bytes=writer.bytes,
        rows=[describe_row(recording, row) for row in writer.rows],
        left_out=+left_out,
    )
    write_atomic(_sidecar(folder, recording.key), lambda file: file.write(made.model_dump_json().encode() + b"\n"))
    return made


def _sidecar(folder: Path, key: str) -> Path:
    return folder / SHARDS / f"{key}.json"


class _Writer:
    """Writes windows piece by piece; those with missing samples are left out, so the count is known at the end only."""

    def __init__(self, recording: Recording, raw: Any, rows: list[Row], plan: Plan) -> None:
        self._recording, self._raw, self._wanted, self._plan = recording, raw, rows, plan
        self.rows: list[Row] = []
        self.sha256, self.bytes = "", 0

    def write(self, file: BinaryIO) -> None:
        plan, digest = self._plan, hashlib.sha256()
        file.write(self._header(len(self._wanted)))
        for group, x_NCT in read_windows(self._recording, self._raw, self._wanted, plan):
            for row, x_CT in zip(group, x_NCT, strict=True):
                if not np.isfinite(x_CT).all():
                    continue
                data = self._convert(x_CT).tobytes()
                file.write(data)
                digest.update(data)
                self.rows.append(row)
        if not self.rows:
            return
        self.bytes = file.tell()
        header = self._header(len(self.rows))
        file.seek(0)
        file.write(header)
        shape = (len(self.rows), len(plan.channels), plan.window_samples)
        self.sha256 = finish_hash(digest, shape, plan.dtype)

    def _header(self, rows: int) -> bytes:
        # numpy pads the header such that the first axis can grow to 21 digits in place.
        shape = (rows, len(self._plan.channels), self._plan.window_samples)
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            buffer, {"descr": np.dtype(self._plan.dtype).str, "fortran_order": False, "shape": shape}
        )
        header = buffer.getvalue()
        if len(header) != HEADER_BYTES:
            raise RuntimeError(f"numpy wrote a header of {len(header)} bytes, not {HEADER_BYTES}")
        return header

    def _convert(self, x_CT: NDArray[np.float32]) -> NDArray[Any]:
        if self._plan.dtype == "float16" and np.abs(x_CT).max() > np.finfo(np.float16).max:
            raise UserError(
                f"{self._recording.path}: samples of {np.abs(x_CT).max():.0f} uV do not fit float16 (65504); use "
                "float32, or a band that takes the offset away"
            )
        return x_CT.astype(self._plan.dtype)
