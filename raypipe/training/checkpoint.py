"""Checkpoints: whole or noticed. A file carries the SHA-256 of what follows it and never runs code when it is read."""

from __future__ import annotations

import hashlib
import io
import pickle
from typing import Any

import torch

from raypipe.core.errors import CheckpointError

_MAGIC = b"raypipe-checkpoint-1\n"


def dumps(state: dict[str, Any]) -> bytes:
    """Pack tensors and plain values, headed by their digest."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    return _MAGIC + hashlib.sha256(payload).digest() + payload


def loads(data: bytes, name: str = "checkpoint") -> dict[str, Any]:
    """Unpack what `dumps` made (``torch.load(weights_only=True)``).

    Raises
    ------
    CheckpointError
        The data is truncated, altered or of another kind.
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
    except Exception as error:  # forged, for its checksum is right: torch has no common class for what it may find
        raise CheckpointError(f"{name}: not what raypipe writes ({type(error).__name__})") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{name}: holds no state")
    return state


def clone_tensors(state: Any) -> Any:
    """A state's tensors on the CPU, as copies: training goes on while they are written."""
    if isinstance(state, torch.Tensor):
        return state.detach().cpu().clone()
    if isinstance(state, dict):
        return {key: clone_tensors(value) for key, value in state.items()}
    return [clone_tensors(value) for value in state] if isinstance(state, list | tuple) else state
