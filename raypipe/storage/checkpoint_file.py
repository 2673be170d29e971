"""Checkpoint files: a SHA-256 of the content, and the content, a safetensors file; reading one never runs code.

The tensors of a state are in the file by number; its metadata has the rest of the state as JSON. A file can be read
without torch: the driver, which moves a trial's weights from its checkpoints to files of their own, needs no tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from raypipe.core.errors import CheckpointError

_MAGIC = b"raypipe-checkpoint-2\n"
_DIGEST_BYTES = 32
_METADATA, _STATE = "__metadata__", "state"
_TENSOR, _DICT, _TUPLE = "tensor", "dict", "tuple"
_LENGTH_BYTES, _ALIGNMENT = 8, 8
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "u1", "BOOL": "?"}


class RawTensor(NamedTuple):
    """A tensor of a safetensors file as it is there.

    Attributes
    ----------
    dtype
        Name of its type in safetensors, such as ``F32``.
    shape
        Length of each axis.
    data
        Its values in C order, little-endian.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, value: float | list[float]) -> RawTensor:
        """Return a number as a tensor without axes, or several as one with one axis, in double precision."""
        values = np.asarray(value, np.float64)
        return cls("F64", values.shape, values.tobytes())

    def numpy(self) -> npt.NDArray[Any]:
        """Return the values as an array, of a type that numpy has."""
        return np.frombuffer(self.data, _DTYPES[self.dtype]).reshape(self.shape).copy()


def seal(state: str, pack: Callable[[dict[str, str]], bytes]) -> bytes:
    """Return a checkpoint file.

    Parameters
    ----------
    state
        The state, as `flatten` gives it.
    pack
        Returns the safetensors file of its tensors, with the given metadata.
    """
    content = pack({_STATE: state})
    return _MAGIC + hashlib.sha256(content).digest() + content


def unseal(data: bytes, name: str) -> tuple[bytes, str]:
    """Return the safetensors file in a checkpoint file, and its state for `unflatten`.

    Raises
    ------
    CheckpointError
        The data is truncated, altered or no checkpoint.
    """
    head = len(_MAGIC) + _DIGEST_BYTES
    if data[: len(_MAGIC)] != _MAGIC:
        raise CheckpointError(f"{name}: not a raypipe checkpoint")
    content = data[head:]
    if hashlib.sha256(content).digest() != data[len(_MAGIC) : head]:
        raise CheckpointError(f"{name}: truncated or altered (its checksum differs)")
    try:
        return content, str(_header(content)[0][_METADATA][_STATE])
    except Exception as error:  # of any type: its checksum is right, so that somebody has made it up
        raise forged(name, error) from None


def read_raw(data: bytes, name: str = "checkpoint") -> dict[str, Any]:
    """Return the state in a checkpoint file, with a `RawTensor` for each tensor.

    Raises
    ------
    CheckpointError
        As `unseal`.
    """
    content, state = unseal(data, name)
    try:
        header, start = _header(content)
        tensors = {key: _raw(each, content, start) for key, each in header.items() if key != _METADATA}
        return unflatten(state, tensors)
    except Exception as error:  # as in `unseal`
        raise forged(name, error) from None


def forged(name: str, error: Exception) -> CheckpointError:
    """Return the error of a file whose checksum is right and whose content is not."""
    return CheckpointError(f"{name}: not what raypipe writes ({type(error).__name__})")


def pack_raw(tensors: Mapping[str, RawTensor]) -> bytes:
    """Return a safetensors file of tensors, as the library writes it: larger types first, so that all are aligned."""
    header: dict[str, Any] = {}
    parts, end = [], 0
    for name in sorted(tensors, key=lambda name: (-_item_bytes(tensors[name]), name)):
        dtype, shape, data = tensors[name]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + len(data)]}
        parts.append(data)
        end += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return b"".join([len(text).to_bytes(_LENGTH_BYTES, "little"), text, *parts])


def _item_bytes(tensor: RawTensor) -> int:
    return len(tensor.data) // max(1, int(np.prod(tensor.shape)))


def _header(content: bytes) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file, and where the values begin."""
    start = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    return json.loads(content[_LENGTH_BYTES:start]), start


def _raw(entry: dict[str, Any], content: bytes, start: int) -> RawTensor:
    begin, end = entry["data_offsets"]
    return RawTensor(entry["dtype"], tuple(entry["shape"]), content[start + begin : start + end])


def flatten(value: Any, key_of: Callable[[Any], str | None]) -> str:
    """Return a state as JSON: dicts, lists, tuples, plain values, and the keys of its tensors.

    Parameters
    ----------
    value
        The state.
    key_of
        Returns the key of a tensor in the file, and None for another value.
    """
    return json.dumps(_encoded(value, key_of), separators=(",", ":"))


def _encoded(value: Any, key_of: Callable[[Any], str | None]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {_DICT: [[key, _encoded(each, key_of)] for key, each in value.items()]}
    if isinstance(value, list | tuple):
        items = [_encoded(each, key_of) for each in value]
        return items if isinstance(value, list) else {_TUPLE: items}
    key = key_of(value)
    if key is None:
        raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")
    return {_TENSOR: key}


def unflatten(state: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state that `flatten` was given, with its tensors."""
    found = _decoded(json.loads(state), tensors)
    if not isinstance(found, dict):
        raise TypeError("no state")
    return found


def _decoded(value: Any, tensors: Mapping[str, Any]) -> Any:
    if isinstance(value, list):
        return [_decoded(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == _TENSOR:
        return tensors[content]
    if kind == _TUPLE:
        return tuple(_decoded(each, tensors) for each in content)
    return {key: _decoded(each, tensors) for key, each in content}
