"""The ``.npy`` file of a shard: its header, its hash, and a memory map of it."""

from __future__ import annotations

import hashlib
import io
import math
import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypipe.core.errors import UserError

HEADER_BYTES = 128
"""Size of the header of a ``.npy`` file with three axes."""
REBUILD_HINT = "delete it and run prepare again"

_HASH_BLOCK = 1 << 24
"""Bytes that are hashed at a time."""


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


def map_shard(path: Path, shape: tuple[int, int, int], dtype: str) -> NDArray[Any]:
    """Map a shard's file into memory, read-only.

    Parameters
    ----------
    shape
        (N, C, T) of the windows.

    Raises
    ------
    UserError
        The file is missing, or has another size than the shape needs.
    """
    # numpy.load would parse the header, which takes longer than reading a window; shape and type are known.
    try:
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise UserError(f"{path}: missing; {REBUILD_HINT}") from None
    except ValueError:
        raise UserError(f"{path}: damaged (empty); {REBUILD_HINT}") from None
    expected = file_size(shape, dtype)
    if len(mapped) != expected:
        raise UserError(f"{path}: damaged ({len(mapped)} bytes, not {expected}); {REBUILD_HINT}")
    return np.frombuffer(mapped, dtype, math.prod(shape), HEADER_BYTES).reshape(shape)


def content_hash(x_NCT: NDArray[Any]) -> str:
    """Return the SHA-256 of an array's samples, shape and type, in hex digits."""
    digest = hashlib.sha256()
    step = max(1, _HASH_BLOCK // max(1, x_NCT[:1].nbytes))
    for start in range(0, len(x_NCT), step):
        digest.update(np.ascontiguousarray(x_NCT[start : start + step]).data)
    return finish_hash(digest, x_NCT.shape, x_NCT.dtype)


def finish_hash(digest: Any, shape: tuple[int, ...], dtype: Any) -> str:
    """Add shape and type to a running hash of samples, and return it in hex digits."""
    digest.update(f"{np.dtype(dtype).str}{tuple(shape)}".encode())
    return str(digest.hexdigest())
