"""Read subjects, groups, recordings and onsets that are given as arrays, a value per window."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raypipe.core.errors import UserError, nearest
from raypipe.core.text import check_one_line
from raypipe.data.given_column import check_none_missing, class_name, column, is_missing_value, plain

MAX_KEY = 120
"""Characters of a recording's name, which is that of a file."""

Floats = NDArray[np.float64]


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
    check_none_missing(values, what)
    known = {value: subject_label(value, what) for value in set(values)}
    return [known[value] for value in values]


def subject_label(value: object, what: str = "subject") -> str:
    """Return a subject's label: text without ``sub-``, a whole number without a decimal point.

    Raises
    ------
    UserError
        The value is neither.
    """
    value = plain(value)
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
        name = class_name(value)
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
