"""What users' code keeps between calls, which a resumed training, in another process, would not have."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping
from numbers import Integral
from typing import Any

from torch import Tensor, nn


def integers(owner: object) -> dict[str, int]:
    """Return the integers that an object, its modules, and the globals of its file have, by where they are.

    Those in lists, dictionaries and objects of the file's classes count, and tensors of one integer. Parameters and
    buffers that are saved do not.
    """
    found: dict[str, int] = {}
    seen: set[int] = set()
    owner = owner.func if isinstance(owner, functools.partial) else owner
    file = _module_of(owner)

    def note(value: object, where: str) -> None:
        if isinstance(value, Tensor):
            if value.numel() == 1 and not (value.is_floating_point() or value.is_complex()):
                found[where] = int(value)
        elif isinstance(value, Integral):
            found[where] = int(value)
        elif id(value) not in seen and not isinstance(value, nn.Module):
            seen.add(id(value))
            for key, each in _parts(value, file):
                note(each, where + key)

    for path, module in owner.named_modules() if isinstance(owner, nn.Module) else [("", owner)]:
        for key, value in _attributes(module):
            note(value, f"{path}.{key}".lstrip("."))
    for key, value in list(vars(sys.modules[file]).items()) if file in sys.modules else []:
        if not key.startswith("__"):
            note(value, key)
    return found


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """Return where `after` has another value than `before`; None if nowhere."""
    return next((where for where, value in before.items() if after.get(where, value) != value), None)


def _module_of(owner: object) -> str:
    return str(getattr(owner, "__module__", "") or "")


def _attributes(owner: object) -> Iterator[tuple[str, Any]]:
    """Yield what an object keeps as attributes; of a module no parameters, submodules, and buffers that are saved."""
    for key, value in list(getattr(owner, "__dict__", {}).items()):
        if not (isinstance(owner, nn.Module) and key in ("_parameters", "_buffers", "_modules")):
            yield key, value
    if isinstance(owner, nn.Module):
        yield from ((key, owner._buffers[key]) for key in sorted(owner._non_persistent_buffers_set))


def _parts(value: Any, file: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((f"[{key!r}]", each) for key, each in list(value.items()))
    elif isinstance(value, list | tuple):
        yield from ((f"[{place}]", each) for place, each in enumerate(value))
    elif _module_of(value) == file:  # a class, a function or an object of the file
        yield from ((f".{key}", each) for key, each in list(getattr(value, "__dict__", {}).items()))
