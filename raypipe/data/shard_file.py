"""The ``.npy`` file of a shard: its header, its hash, and a memory map of it."""

from __future__ import annotations

import hashlib
import io
import math
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypipe.core.errors import DamagedFileError
from raypipe.storage.regular_files import open_regular

HEADER_BYTES = 128
"""Size of the header of a ``.npy`` file with three axes."""
REBUILD_HINT = "delete it and run prepare again"

_HASH_BLOCK = 1 << 24
"""Bytes that are hashed at a time."""


_verified: set[tuple[int, int, int, int, str]] = set()
"""Files that this process has compared with their checksums: device, inode, size, time of change, and checksum."""


def npy_header(shape: tuple[int, int, int], dtype: str) -> bytes:
    """Return the header of a ``.npy`` file, `HEADER_BYTES` long for any number of rows.

    Raises
    ------
    RuntimeError
        NumPy pads headers to another length than `HEADER_BYTES`.
    """
    # NumPy pads the header for a first axis of up to 21 digits, so it can be rewritten in place.
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape})
    header = buffer.getvalue()
    if len(header) != HEADER_BYTES:
        raise RuntimeError(f"NumPy wrote a header of {len(header)} bytes, not {HEADER_BYTES}")
    return header


def file_size(shape: tuple[int, ...], dtype: str) -> int:
    """Return the size of a ``.npy`` file in bytes."""
    return HEADER_BYTES + math.prod(shape) * np.dtype(dtype).itemsize


def map_shard(path: Path, shape: tuple[int, int, int], dtype: str, sha256: str) -> NDArray[Any]:
    """Map a shard's file into memory, read-only, and check its content if this process has not yet.

    Parameters
    ----------
    path
        The file.
    shape
        (N, C, T) of the windows.
    dtype
        Their type.
    sha256
        `content_hash` of the windows that `prepare` wrote.

    Raises
    ------
    DamagedFileError
        The file is missing, or is not what `prepare` wrote.
    UserError
        It is not a regular file.
    """
    # numpy.load would parse the header, which takes longer than reading a window; shape and type are known.
    try:
        with open_regular(path) as file:
            stat = os.fstat(file.fileno())
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise DamagedFileError(f"{path}: missing; {REBUILD_HINT}") from None
    except ValueError:
        raise DamagedFileError(f"{path}: damaged (empty); {REBUILD_HINT}") from None
    expected = file_size(shape, dtype)
    if len(mapped) != expected:
        raise DamagedFileError(f"{path}: damaged ({len(mapped)} bytes, not {expected}); {REBUILD_HINT}")
    x_NCT = np.frombuffer(mapped, dtype, math.prod(shape), HEADER_BYTES).reshape(shape)
    identity = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, sha256)
    if identity not in _verified:
        if content_hash(x_NCT) != sha256:
            raise DamagedFileError(f"{path}: damaged (its content is not what prepare wrote); {REBUILD_HINT}")
        _verified.add(identity)
    return x_NCT


def content_hash(x_NCT: NDArray[Any]) -> str:
    """Return the SHA-256 of an array's samples, shape and type, in hex digits."""
    digest = hashlib.sha256()
    step = max(1, _HASH_BLOCK // max(1, x_NCT[:1].nbytes))
    for start in range(0, len(x_NCT), step):
        digest.update(np.ascontiguousarray(x_NCT[start : start + step]).data)
    return finish_hash(digest, x_NCT.shape, x_NCT.dtype)


def window_digest(x_CT: NDArray[Any]) -> str:
    """Return a hash of a window's samples in 16 hex digits; empty for a window without a signal, flat in all channels.

    Windows of unplugged electrodes are equal without being copies.
    """
    if not np.ptp(x_CT, axis=1).any():
        return ""
    return hashlib.blake2b(np.ascontiguousarray(x_CT).data, digest_size=8).hexdigest()


def finish_hash(digest: Any, shape: tuple[int, ...], dtype: Any) -> str:
    """Add shape and type to a running hash of samples, and return it in hex digits."""
    digest.update(f"{np.dtype(dtype).str}{tuple(shape)}".encode())
    return str(digest.hexdigest())
