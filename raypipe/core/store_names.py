"""Names of the stores of a sweep that has several: ``a=STORE1,b=STORE2``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from raypipe.core.errors import UserError, nearest

Data = str | Path | Mapping[str, str | Path]
"""The windows of a sweep: a store, or several by name, also as ``a=STORE1,b=STORE2``."""

PARAMETER = "data/store"
"""The parameter of a trial that chooses its store."""
_NAME = r"[A-Za-z][\w-]{0,30}"
_NAMED = re.compile(rf"({_NAME})=(.+)", re.DOTALL)
_NEXT = re.compile(rf",(?={_NAME}=)")


def parse_stores(data: Data) -> dict[str, str]:
    """Return the places of stores by name; empty for a single store without a name.

    Parameters
    ----------
    data
        ``a=STORE1,b=STORE2``, a mapping with the same content, or the place of one store.

    Raises
    ------
    UserError
        A name is not a word, or is there twice; or a part has none.
    """
    if isinstance(data, Mapping):
        return _parse_mapping(data)
    text = str(data)
    if not _NAMED.fullmatch(text) or Path(text).exists():
        return {}
    found: dict[str, str] = {}
    for part in _NEXT.split(text):
        match = _NAMED.fullmatch(part)
        assert match is not None
        if match[1] in found:
            raise UserError(f"--data {text}: the name '{match[1]}' is there twice; each store needs its own")
        found[match[1]] = match[2]
    return found


def _parse_mapping(data: Mapping[str, str | Path]) -> dict[str, str]:
    given = {str(name): str(place) for name, place in data.items()}
    if not given:
        raise UserError("data: no store; give a folder, or a dictionary such as {'a': 'store-a', 'b': 'store-b'}")
    wrong = next((name for name in given if not re.fullmatch(_NAME, name)), None)
    if wrong is not None:
        raise UserError(f"data: '{wrong}' is no name of a store; names are words of letters, digits, - and _")
    if parse_stores(join_stores(given)) != given:
        raise UserError(f"data: a place has a comma and a name in it: {join_stores(given)}; rename the folder")
    return given


def places_of(data: Data) -> list[str]:
    """Return the places of all stores; raises as `parse_stores`."""
    return list(parse_stores(data).values()) or [str(data)]


def join_stores(places: Mapping[str, str | Path]) -> str:
    """Return the text that `parse_stores` reads."""
    return ",".join(f"{name}={place}" for name, place in places.items())


def require_known_store(name: object, names: tuple[str, ...], where: str) -> None:
    """Check that a space chooses one of the stores of a sweep.

    Raises
    ------
    UserError
        It does not, or the sweep has one store without a name.
    """
    if not names:
        raise UserError(
            f"{where}: {PARAMETER}={name}: this sweep has one store without a name; name several with "
            "--data a=STORE1,b=STORE2"
        )
    if name not in names:
        raise UserError(f"{where}: {PARAMETER}={name}: no such store; {nearest(str(name), names)}")
