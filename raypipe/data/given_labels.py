"""Read targets that are given as arrays, a value per window."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raypipe.core.errors import UserError
from raypipe.core.levels import level_of
from raypipe.core.metrics import Kind
from raypipe.core.text import check_one_line
from raypipe.data.given_column import array_of, check_none_missing, class_name, column
from raypipe.data.target_base import Labels
from raypipe.recordings.participants import MAX_FLOAT32, MAX_ROUNDING, check_spellings
from raypipe.recordings.tables import list_some

MAX_GUESSED_CLASSES = 20
"""Number of different values up to which strings and integers are taken for classes."""
CODES = ((0.0, 1.0), (1.0, 2.0), (-1.0, 1.0))
"""Pairs of numbers that are codes of two classes, as in a column of participants.tsv."""

Floats = NDArray[np.float64]


def read_labels(
    y: ArrayLike, subjects: Sequence[str], kind: Kind | None, what: str = "y", names: Sequence[str] | None = None
) -> tuple[Labels, Floats]:
    """Return the kind and the classes of targets, and the target of each window (N,), or several values (N, K).

    Strings, booleans and integers are classes; other numbers are values, unless they are the codes 0 and 1, 1 and 2, or
    -1 and 1. Classes are in the order of their names or numbers.

    Parameters
    ----------
    y
        (N,) a target per window; (N, K) several values, which are numbers.
    subjects
        (N,) label of each window's subject.
    kind
        ``classification`` or ``regression``, where the values do not decide it.
    what
        Name of the targets, for messages.
    names
        Names of the values of (N, K); None for those of a table's columns, or ``y1`` to ``yK``.

    Raises
    ------
    UserError
        There is another number of targets than of subjects, one is missing, infinite or lost in 32 bits, all are equal,
        or the kind is ambiguous.
    """
    if kind not in (None, "classification", "regression"):
        raise UserError(f"kind '{kind}': must be classification or regression")
    array = array_of(y, what)
    if array.ndim == 2 and array.shape[1] > 1:
        names = _own_names(y) if names is None else names
        return _read_values(array.astype(object), subjects, kind, what, names)
    if names is not None:
        raise UserError(f"target_names: {what} has one value per window; name it by 'name'")
    values = column(array, what)
    if len(values) != len(subjects):
        raise UserError(f"{what} has {len(values)} values, subject has {len(subjects)}: both need one per window")
    check_none_missing(values, what)
    if _is_regression(values, kind, what):
        return Labels("regression"), _numbers(values, what)
    distinct = sorted(set(values))
    names = [class_name(value) for value in distinct]
    check_spellings(set(names), what)
    for label in names:
        check_one_line(label, what)
    _check_classes(names, subjects, values, kind, what)
    place = {value: float(number) for number, value in enumerate(distinct)}
    return Labels("classification", tuple(names)), np.array([place[value] for value in values])


def _read_values(
    y_NK: NDArray[Any], subjects: Sequence[str], kind: Kind | None, what: str, names: Sequence[str] | None
) -> tuple[Labels, Floats]:
    """Return the labels and the values (N, K) of a regression of several values."""
    n, k = y_NK.shape
    if n != len(subjects):
        raise UserError(f"{what} has {n} rows, subject has {len(subjects)} values: both need one per window")
    if kind == "classification":
        raise UserError(f"{what} has {k} columns, which are predicted as numbers; give classes as one column")
    outputs = tuple(f"{what}{number + 1}" for number in range(k)) if names is None else _output_names(names, k, what)
    columns = [(f"{what} ('{name}')", column(y_N, what)) for name, y_N in zip(outputs, y_NK.T, strict=True)]
    for label, values in columns:
        check_none_missing(values, label)
        _is_regression(values, "regression", label)
    numbers = [_numbers(values, label) for label, values in columns]
    return Labels("regression", outputs=outputs), np.stack(numbers, axis=1)


def _own_names(y: ArrayLike) -> list[str] | None:
    """Return the names of the columns of a table of pandas; None for an array, and where they are numbers."""
    names = list(getattr(y, "columns", ()))
    return names if names and all(isinstance(name, str) for name in names) else None


def _output_names(names: Sequence[str], k: int, what: str) -> tuple[str, ...]:
    found = tuple(str(name).strip() for name in names)
    if len(found) != k or len(set(found)) < k or not all(found) or any("," in name for name in found):
        raise UserError(f"target_names: needs {k} different names without commas, one for each column of {what}")
    for name in found:
        check_one_line(name, "target_names")
    return found


def _is_regression(values: list[Any], kind: Kind | None, what: str) -> bool:
    is_text = [isinstance(value, str) for value in values]
    if any(is_text) != all(is_text):
        raise UserError(f"{what} mixes text ('{values[is_text.index(True)]}') and numbers; use one of them")
    is_number = not any(is_text) and all(isinstance(value, Real) for value in values)
    if not (is_number or all(is_text)):
        odd = next(value for value in values if not isinstance(value, Real | str))
        raise UserError(f"{what} holds a {type(odd).__name__}; it needs strings or numbers")
    if kind == "regression" and not is_number:
        raise UserError(f"{what} holds text ('{values[0]}'); regression needs numbers")
    if kind is not None:
        return kind == "regression"
    has_floats = is_number and any(isinstance(value, float) for value in values)
    return has_floats and not are_codes(values)


def are_codes(values: Sequence[Any]) -> bool:
    """Return whether values are the codes of two classes: 0 and 1, 1 and 2, or -1 and 1."""
    return all(isinstance(value, Real) for value in values) and tuple(sorted(set(values))) in CODES


def _numbers(values: list[Any], what: str) -> Floats:
    """Return targets of a regression, which are finite and stay different in 32 bits, in which they are trained on."""
    target_N = np.array(values, np.float64)
    odd_N = ~(np.abs(target_N) <= MAX_FLOAT32)
    if odd_N.any():
        place = int(np.argmax(odd_N))
        raise UserError(f"{what} is {target_N[place]:g} for window {place}: not a finite number of 32 bits")
    if np.ptp(target_N) == 0:
        raise UserError(f"{what} is {target_N[0]:g} for every window; there is nothing to predict")
    lost = np.abs(target_N - target_N.astype(np.float32)).max()
    if lost > MAX_ROUNDING * target_N.std():
        raise UserError(f"{what} is rounded by up to {lost:g} in 32 bits, much for its spread; subtract a constant")
    return target_N


def _check_classes(names: list[str], subjects: Sequence[str], values: list[Any], kind: Kind | None, what: str) -> None:
    if len(names) < 2:
        raise UserError(f"{what} is {names[0]} for every window; there is nothing to predict")
    people = len(set(subjects))
    if len(names) >= people and level_of(subjects, np.array([names.index(class_name(v)) for v in values])) == "person":
        raise UserError(f"{what} is different for every subject; classes need subjects that share one")
    if kind is None and len(names) > MAX_GUESSED_CLASSES:
        raise UserError(
            f"{what} has {len(names)} different values ({list_some(names)}): say kind='classification' if they are "
            "classes, kind='regression' if they are numbers to predict"
        )
