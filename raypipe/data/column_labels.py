"""Decide whether the values of a column are classes or numbers, for columns of every table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raypipe.core.errors import UserError
from raypipe.core.metrics import Kind
from raypipe.data.target_base import Labels

MAX_NAMED = 5
"""Different whole numbers up to which it is said that they are taken for numbers."""
KINDS: tuple[Kind, ...] = ("regression", "classification")


def split_kind(argument: str) -> tuple[str, Kind | None]:
    """Split ``COLUMN:regression`` or ``COLUMN:classification`` into column and kind; None where it ends in neither."""
    column, _, last = argument.rpartition(":")
    kind = next((each for each in KINDS if each == last), None)
    return (column.strip(), kind) if column and kind else (argument, None)


def column_labels(
    values: Mapping[str, float | str],
    where: str,
    kind: Kind | None,
    *,
    is_numeric: bool,
    each: str = "subject",
    count: int | None = None,
) -> Labels:
    """Return the kind and the classes of a column, with the target of each value's owner in `by_subject`.

    Without `kind`, text is classes, and so are the codes 0 and 1, 1 and 2, or -1 and 1 if three or more share them.
    Other numbers are regression targets.

    Parameters
    ----------
    values
        Values by subject or other owner, without missing ones.
    where
        File and column, for messages.
    each
        Whose values they are, for messages.
    count
        Number of owners, where `values` has one for each different value only.

    Raises
    ------
    UserError
        There are no values, all are equal, all are different though they are classes, or a
        regression target is text.
    """
    count = len(values) if count is None else count
    if not values:
        raise UserError(f"{where} is n/a for every {each}{' that has recordings' * (each == 'subject')}")
    distinct = sorted(set(values.values()))
    if len(distinct) < 2:
        raise UserError(f"{where} is {shown(distinct[0])} for every {each}; there is nothing to predict")
    notes = _notes(distinct, where, count) if kind is None and is_numeric else ()
    if kind == "regression" or (kind is None and is_numeric and not _are_codes(distinct, count)):
        if not is_numeric:
            raise UserError(f"{where} holds text ('{distinct[0]}'); regression needs numbers")
        return Labels("regression", (), {owner: float(value) for owner, value in values.items()}, notes=notes)
    if len(distinct) == count:
        raise UserError(f"{where} is different for every {each}; classes need {each}s that share one")
    index = {value: float(number) for number, value in enumerate(distinct)}
    targets = {owner: index[value] for owner, value in values.items()}
    return Labels("classification", tuple(shown(value) for value in distinct), targets, notes=notes)


def shown(value: float | str) -> str:
    """Return the text of a value, which is the name of its class."""
    return value if isinstance(value, str) else f"{value:.15g}"


def _notes(distinct: Sequence[float | str], where: str, count: int) -> tuple[str, ...]:
    """Return a sentence about numbers that could be classes as well."""
    names = ", ".join(map(shown, distinct))
    if _are_codes(distinct, count):
        return (f"{where} holds {names}, taken for two classes; ':regression' behind its name makes them numbers.",)
    is_whole = all(float(value).is_integer() for value in distinct)
    if is_whole and len(distinct) <= MAX_NAMED and count >= 3 * len(distinct):
        return (f"{where} holds {names}, taken for numbers; ':classification' behind its name makes them classes.",)
    return ()


def _are_codes(values: Sequence[float | str], count: int) -> bool:
    """Return whether numbers are the codes of two classes (0 and 1, 1 and 2, -1 and 1) that owners share."""
    return len(values) == 2 < count and tuple(values) in ((0, 1), (1, 2), (-1, 1))
