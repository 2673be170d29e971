"""States of training as checkpoint files (`raypipe.storage.checkpoint_file`), with torch's tensors."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load, save

from raypipe.storage.checkpoint_file import flatten, forged, seal, unflatten, unseal


def dumps(state: dict[str, Any]) -> bytes:
    """Pack tensors and plain values, preceded by their digest. A tensor that a state has twice is written once."""
    tensors: dict[str, torch.Tensor] = {}
    keys: dict[int, str] = {}
    taken: set[int] = set()

    def key_of(value: Any) -> str | None:
        if not isinstance(value, torch.Tensor):
            return None
        if id(value) not in keys:
            key = keys[id(value)] = str(len(keys))
            tensors[key] = _own_memory(value, taken)
        return keys[id(value)]

    text = flatten(state, key_of)
    return seal(text, lambda metadata: save(tensors, metadata))


def _own_memory(tensor: torch.Tensor, taken: set[int]) -> torch.Tensor:
    """Return a tensor on the CPU that shares its memory with no other, as safetensors asks for."""
    whole = tensor.detach().cpu().contiguous()
    storage = whole.untyped_storage()
    if storage.nbytes() > whole.nbytes or storage.data_ptr() in taken:
        return whole.clone()
    if whole.nbytes:
        taken.add(storage.data_ptr())
    return whole


def loads(data: bytes, name: str = "checkpoint") -> dict[str, Any]:
    """Unpack the result of `dumps`.

    Raises
    ------
    CheckpointError
        The data is truncated, altered or no checkpoint.
    """
    content, state = unseal(data, name)
    try:
        return unflatten(state, load(content))
    except Exception as error:  # as in `unseal`
        raise forged(name, error) from None


def clone_tensors(state: Any) -> Any:
    """Copy a state's tensors to the CPU, so that training continues while they are written."""
    if isinstance(state, torch.Tensor):
        return state.detach().cpu().clone()
    if isinstance(state, dict):
        return {key: clone_tensors(value) for key, value in state.items()}
    return [clone_tensors(value) for value in state] if isinstance(state, list | tuple) else state
