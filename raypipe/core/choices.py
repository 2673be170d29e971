"""Choices of a parameter that are lists: a study has them as text, since storages of Optuna hold plain values only."""

from __future__ import annotations

import json
import math
from typing import Any


def as_drawn(value: Any) -> Any:
    """Return a value as a study has it: lists and tuples as JSON, such as ``"[4, 2]"``, others as they are.

    Raises
    ------
    ValueError
        A list has something else than text, finite numbers, truth values, None and lists.
    """
    return json.dumps(_plain(value)) if isinstance(value, list | tuple) else value


def choice_as_drawn(name: str, choice: Any) -> Any:
    """Return one of the choices of a parameter as a study has it.

    Raises
    ------
    ValueError
        No study can have it; names the parameter.
    """
    try:
        return as_drawn(_checked(choice))
    except ValueError as error:
        raise ValueError(f"'{name}': {error}; draw a name, and return what it stands for") from None


def _checked(value: Any) -> Any:
    if value is not None and not isinstance(value, str | bool | int | float | list | tuple):
        raise ValueError(
            f"a choice must be text, a number, True, False, None or a list of these (given {type(value).__name__})"
        )
    return value


def _plain(value: Any) -> Any:
    """Return a value of a list as JSON has it; equal numbers are written the same."""
    if isinstance(_checked(value), list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"a number of a list must be finite (given {value})")
        return int(value) if value.is_integer() else float(value)
    return value
