"""Checkpoints with a SHA-256 of their content, so that damage is noticed; reading one never runs code."""

from __future__ import annotations

import hashlib
import io
import pickle
from typing import Any

import torch

from raypipe.core.errors import CheckpointError

_MAGIC = b"raypipe-checkpoint-1\n"


def dumps(state: dict[str, Any]) -> bytes:
    """Pack tensors and plain values, preceded by their digest."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    return _MAGIC + hashlib.sha256(payload).digest() + payload


def loads(data: bytes, name: str = "checkpoint") -> dict[str, Any]:
    """Unpack the result of `dumps` (``torch.load(weights_only=True)``).

    Raises
    ------
    CheckpointError
        The data is truncated, altered or no checkpoint.
    """
    head = len(_MAGIC) + 32
    if data[: len(_MAGIC)] != _MAGIC:
        raise CheckpointError(f"{name}: not a raypipe checkpoint")
    payload = data[head:]
    if hashlib.sha256(payload).digest() != data[len(_MAGIC) : head]:
        raise CheckpointError(f"{name}: truncated or altered (its checksum differs)")
    try:
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(f"{name}: holds more than tensors and plain values; it is not loaded") from None
    except Exception as error:  # forged, since its checksum is right; torch has no common base class for its errors
        raise CheckpointError(f"{name}: not what raypipe writes ({type(error).__name__})") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{name}: holds no state")
    return state


def clone_tensors(state: Any) -> Any:
    """Copy a state's tensors to the CPU, so that training continues while they are written."""
    if isinstance(state, torch.Tensor):
        return state.detach().cpu().clone()
    if isinstance(state, dict):
        return {key: clone_tensors(value) for key, value in state.items()}
    return [clone_tensors(value) for value in state] if isinstance(state, list | tuple) else state
