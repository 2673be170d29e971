"""Configurations of users' code: its name, its arguments, and what identifies its source."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer

from raypipe.core import own_code
from raypipe.core.own_code import SourceFile
from raypipe.core.record import FrozenModel

OWN = "file.py:Name"
"""Tag of users' code in a union of configurations: a name that nothing of raypipe's has."""
MAX_INTEGER = 2**63
"""Integers of arguments are below this."""


def _freeze(value: Any) -> Any:
    """Return an argument so that it can be hashed: text, a number, a truth value, None, or tuples."""
    if isinstance(value, list | tuple):
        return tuple(_freeze(each) for each in value)
    if value is not None and not isinstance(value, str | bool | int | float):
        raise ValueError(f"must be text, a number, True, False, None or a list of these (given {type(value).__name__})")
    if isinstance(value, int) and abs(value) >= MAX_INTEGER:
        raise ValueError("an integer of more than 64 bits")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"must be finite (given {value})")
    return value


def _freeze_args(value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError("must be arguments by name, such as args/NAME")
    return tuple(sorted((str(name), _freeze(each)) for name, each in value.items()))


Arguments = Annotated[
    tuple[tuple[str, Any], ...], BeforeValidator(_freeze_args), PlainSerializer(dict, return_type=dict)
]
"""Arguments of users' code, by name."""


class OwnCode(FrozenModel):
    """Code of a user's: a network, a loss or an augmentation."""

    name: str
    """`file.py:Name` with a file beside the search space, or `package.module:Name`."""
    args: Arguments = ()
    """Its arguments, searched as `args/NAME` of its section."""
    code: Annotated[str, Field(max_length=200)] = ""
    """The file's hash, or the package and its version; set by raypipe."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.model_dump(), own_code.known_source(self.code))


def _restore(kind: Callable[..., Any], fields: Mapping[str, Any], source: SourceFile | None) -> Any:
    """Return a configuration in another process, which then knows the file of its code."""
    if source is not None:
        own_code.keep_source(source)
    return kind(**fields)


def own_or(other: str) -> Callable[[Any], str]:
    """Return what finds the tag of a configuration: `OWN` for one of users' code, `other` for one of raypipe's."""

    def tag(value: Any) -> str:
        is_map = isinstance(value, Mapping)
        name = value.get("name", "") if is_map else getattr(value, "name", "")
        return OWN if isinstance(value, OwnCode) or (is_map and "code" in value) or ":" in str(name) else other

    return tag
