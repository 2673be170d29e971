"""Read columns that are given as arrays, a value per window, whatever they mean."""

from __future__ import annotations

from typing import Any
from unicodedata import normalize

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raypipe.core.errors import UserError, first_line


def check_no_mask(values: Any, what: str) -> None:
    """Refuse masked elements of a NumPy masked array, which NumPy itself would take as they are.

    Raises
    ------
    UserError
        Some are masked.
    """
    if isinstance(values, np.ma.MaskedArray) and (n := int(np.sum(values.mask))):
        raise UserError(f"{what}: {n} of its values are masked; leave out these windows")


def column(values: ArrayLike, what: str) -> list[Any]:
    """Return the elements of an array (N,) or (N, 1) as Python's own strings and numbers; text is without spaces.

    Raises
    ------
    UserError
        It has another shape.
    """
    array = array_of(values, what)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise UserError(f"{what} has the shape {array.shape}: it needs one value per window")
    found = [plain(value) for value in array.tolist()]
    for number, value in enumerate(found):
        if isinstance(value, list | tuple | dict | set | np.ndarray):
            raise UserError(f"{what} has a {type(value).__name__} for window {number}: it needs one value per window")
    return found


def array_of(values: ArrayLike, what: str) -> NDArray[Any]:
    """Return what is given as an array; lists and tuples keep the types of their elements.

    Raises
    ------
    UserError
        Elements are masked, or it is no array.
    """
    check_no_mask(values, what)
    try:
        return np.asarray(values, object if isinstance(values, list | tuple) else None)  # text swallows numbers
    except ValueError as error:
        raise UserError(f"{what} is a {type(values).__name__} that is no array ({first_line(error)})") from None


def plain(value: Any) -> Any:
    """Return a value as Python's own string or number; text without spaces around it, its characters composed (NFC)."""
    value = value.item() if isinstance(value, np.generic) else value
    return normalize("NFC", value).strip() if isinstance(value, str) else value


def is_missing_value(value: object) -> bool:
    """Return whether a value is None, NaN, pandas.NA, NaT or an empty string."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):  # pandas.NA compares to nothing, not even itself
        return True
    return value == "" or value != value


def check_none_missing(values: list[Any], what: str) -> None:
    """Refuse missing values.

    Raises
    ------
    UserError
        One is None, NaN, NA or empty.
    """
    missing = [number for number, value in enumerate(values) if is_missing_value(value)]
    if missing:
        raise UserError(
            f"{what} is missing (NaN, None or empty) for {len(missing)} windows (the first: {missing[0]}); leave them "
            "out"
        )


def class_name(value: object) -> str:
    """Return the name of a class or group: numbers without needless decimals."""
    return f"{value:.15g}" if isinstance(value, float) else str(value)
