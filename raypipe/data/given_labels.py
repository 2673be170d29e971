"""Read targets, subjects, groups and recordings that are given as arrays, a value per window."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any
from unicodedata import normalize

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raypipe.core.errors import UserError, first_line, nearest
from raypipe.core.levels import level_of
from raypipe.core.metrics import Kind
from raypipe.core.text import check_one_line
from raypipe.data.target_base import Labels
from raypipe.recordings.participants import MAX_FLOAT32, MAX_ROUNDING, check_spellings
from raypipe.recordings.tables import list_some

MAX_GUESSED_CLASSES = 20
"""Number of different values up to which strings and integers are taken for classes."""
MAX_KEY = 120
"""Characters of a recording's name, which is that of a file."""
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
    array = _array_of(y, what)
    if array.ndim == 2 and array.shape[1] > 1:
        names = _own_names(y) if names is None else names
        return _read_values(array.astype(object), subjects, kind, what, names)
    if names is not None:
        raise UserError(f"target_names: {what} has one value per window; name it by 'name'")
    values = column(array, what)
    if len(values) != len(subjects):
        raise UserError(f"{what} has {len(values)} values, subject has {len(subjects)}: both need one per window")
    _check_none_missing(values, what)
    if _is_regression(values, kind, what):
        return Labels("regression"), _numbers(values, what)
    distinct = sorted(set(values))
    names = [_class_name(value) for value in distinct]
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
        _check_none_missing(values, label)
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
    array = _array_of(values, what)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise UserError(f"{what} has the shape {array.shape}: it needs one value per window")
    found = [_plain(value) for value in array.tolist()]
    for number, value in enumerate(found):
        if isinstance(value, list | tuple | dict | set | np.ndarray):
            raise UserError(f"{what} has a {type(value).__name__} for window {number}: it needs one value per window")
    return found


def _array_of(values: ArrayLike, what: str) -> NDArray[Any]:
    check_no_mask(values, what)
    try:
        return np.asarray(values, object if isinstance(values, list | tuple) else None)  # text swallows numbers
    except ValueError as error:
        raise UserError(f"{what} is a {type(values).__name__} that is no array ({first_line(error)})") from None


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return normalize("NFC", value).strip() if isinstance(value, str) else value


def is_missing_value(value: object) -> bool:
    """Return whether a value is None, NaN, pandas.NA, NaT or an empty string."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):  # pandas.NA compares to nothing, not even itself
        return True
    return value == "" or value != value


def _check_none_missing(values: list[Any], what: str) -> None:
    missing = [number for number, value in enumerate(values) if is_missing_value(value)]
    if missing:
        raise UserError(
            f"{what} is missing (NaN, None or empty) for {len(missing)} windows (the first: {missing[0]}); leave them "
            "out"
        )


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


def _class_name(value: object) -> str:
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def _check_classes(names: list[str], subjects: Sequence[str], values: list[Any], kind: Kind | None, what: str) -> None:
    if len(names) < 2:
        raise UserError(f"{what} is {names[0]} for every window; there is nothing to predict")
    people = len(set(subjects))
    if len(names) >= people and level_of(subjects, np.array([names.index(_class_name(v)) for v in values])) == "person":
        raise UserError(f"{what} is different for every subject; classes need subjects that share one")
    if kind is None and len(names) > MAX_GUESSED_CLASSES:
        raise UserError(
            f"{what} has {len(names)} different values ({list_some(names)}): say kind='classification' if they are "
            "classes, kind='regression' if they are numbers to predict"
        )


def read_subjects(subject: ArrayLike, what: str = "subject") -> list[str]:
    """Return the label of each window's subject (N,), without ``sub-``.

    Raises
    ------
    UserError
        One is missing, or is no name.
    """
    values = column(subject, what)
    if not values:
        raise UserError(f"{what} is empty: it needs the subject of each window")
    _check_none_missing(values, what)
    known = {value: subject_label(value, what) for value in set(values)}
    return [known[value] for value in values]


def subject_label(value: object, what: str = "subject") -> str:
    """Return a subject's label: text without ``sub-``, a whole number without a decimal point.

    Raises
    ------
    UserError
        The value is neither.
    """
    value = _plain(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UserError(f"{what} '{value}': a subject is text or a whole number")
    label = re.sub(r"^sub-", "", str(value), flags=re.IGNORECASE)
    if not re.search(r"\w", label):
        raise UserError(f"{what} '{value}': a subject's name needs a letter or a digit")
    check_one_line(label, what)
    return label


def recording_keys(subjects: Sequence[str], recordings: Sequence[str] | None) -> list[str]:
    """Return the key (`Recording.key`) of each window's recording (N,).

    It is ``sub-LABEL`` with the recording's name; other characters than letters, digits and ``.+-_`` become hyphens.

    Raises
    ------
    UserError
        Two subjects or recordings get one key, or a name is too long for a file.
    """
    pairs = list(zip(subjects, recordings or [""] * len(subjects), strict=True))
    keys = {pair: _key(*pair) for pair in dict.fromkeys(pairs)}
    owner: dict[str, tuple[str, str]] = {}
    for pair, key in keys.items():
        other = owner.setdefault(key.casefold(), pair)
        if other != pair:
            raise UserError(
                f"subject or recording: {_shown(other)} and {_shown(pair)} cannot be distinguished; rename one"
            )
        if len(key) > MAX_KEY:
            raise UserError(f"recording '{key[:20]}...': its name is longer than {MAX_KEY} characters")
    return [keys[pair] for pair in pairs]


def _key(subject: str, recording: str) -> str:
    person = f"sub-{_safe(subject)}"
    name = _safe(recording)
    if not name or name == person or name.startswith(f"{person}_"):
        return name or person
    return f"{person}_{name}"


def _safe(name: str) -> str:
    return re.sub(r"[^\w.+-]", "-", name)


def _shown(pair: tuple[str, str]) -> str:
    return f"'{pair[0]}'" + (f" ('{pair[1]}')" if pair[1] else "")


def read_groups(groups: Mapping[Any, Any] | ArrayLike, subjects: Sequence[str]) -> dict[str, str]:
    """Return the group of each subject that has one.

    Parameters
    ----------
    groups
        (N,) the group of each window's subject; or the groups by subject. Missing values are no group.

    Raises
    ------
    UserError
        A subject has two groups, no subject has one, or there is another number of them than of windows.
    """
    if isinstance(groups, Mapping):
        by_label = {subject_label(name, "groups"): value for name, value in groups.items()}
        pairs: Iterable[tuple[str, Any]] = [(who, by_label[who]) for who in dict.fromkeys(subjects) if who in by_label]
        if not pairs:
            raise UserError(f"groups names no subject ('{subjects[0]}'); {nearest(subjects[0], by_label)}")
    else:
        values = column(groups, "groups")
        if len(values) != len(subjects):
            raise UserError(f"groups has {len(values)} values, subject has {len(subjects)}: both need one per window")
        pairs = zip(subjects, values, strict=True)
    found: dict[str, str] = {}
    for who, value in pairs:
        if is_missing_value(value):
            continue
        name = _class_name(value)
        check_one_line(name, "groups")
        if found.setdefault(who, name) != name:
            raise UserError(f"groups: subject '{who}' is of two groups, '{found[who]}' and '{name}'; keep one")
    if not found:
        raise UserError("groups: no subject has one")
    return found


def read_onsets(onset: ArrayLike | None, keys: Sequence[str], window: float) -> Floats:
    """Return the onset of each window (N,) in seconds from its recording's start.

    Without onsets, the windows of a recording are one after the other.

    Raises
    ------
    UserError
        There is another number of onsets than of windows, or one is no finite number.
    """
    if onset is None:
        seen: Counter[str] = Counter()
        places = np.zeros(len(keys))
        for place, key in enumerate(keys):
            places[place] = seen[key]
            seen[key] += 1
        return places * window
    values = column(onset, "onset")
    if len(values) != len(keys):
        raise UserError(f"onset has {len(values)} values, subject has {len(keys)}: both need one per window")
    for place, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise UserError(f"onset is {value} for window {place}: not a number of seconds")
    return np.array(values, np.float64)
