"""Targets that are several columns of numbers at once: a regression of several values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from raypipe.core.errors import UserError
from raypipe.core.metrics import Kind
from raypipe.data.column_labels import split_kind
from raypipe.data.target_base import Labels, Value, split_names
from raypipe.recordings.tables import list_some, parse_number

K = TypeVar("K")


def split_columns(spec: str, argument: str) -> tuple[tuple[str, ...], Kind | None]:
    """Split ``A,B`` or ``A,B:regression`` into the names of columns and the kind; None where it ends in no kind.

    Raises
    ------
    UserError
        A column is named twice, or one has no name.
    """
    text, kind = split_kind(argument)
    if "," not in text:
        return ((text,) if text else ()), kind
    if not all(name.strip() for name in text.split(",")):
        raise UserError(f"target '{spec}': a comma stands before or after no column")
    return split_names(spec, text, 1), kind


def named_columns(columns: tuple[str, ...], argument: str, is_column: Callable[[str], bool]) -> tuple[str, ...]:
    """Return the columns that an argument names: one whose name has commas where a table has it, else each.

    Parameters
    ----------
    columns
        Parts of the argument.
    argument
        The argument of the target's specification.
    is_column
        Returns whether a table has a column.
    """
    text = split_kind(argument.strip())[0].strip()
    return (text,) if len(columns) > 1 and is_column(text) else columns


def read_each_column(spec: str, columns: Sequence[str], kind: Kind | None, read: Callable[[str], Labels]) -> Labels:
    """Return the labels of one column, or those of several joined: owners with a value in each.

    Parameters
    ----------
    spec
        Specification of the target, for messages.
    columns
        Names of the columns.
    kind
        What they are taken for; None where their values decide it.
    read
        Returns the labels of one of them.

    Raises
    ------
    UserError
        Several are to be classes, one of them is no column of numbers, or no person has a value in each.
    """
    if len(columns) == 1:
        return read(columns[0])
    if kind == "classification":
        raise UserError(f"target '{spec}': several columns are predicted as numbers; predict classes one at a time")
    found = {name: read(name) for name in columns}
    for name, labels in found.items():
        check_is_numbers(spec, name, labels)
    parts = list(found.values())
    joined = Labels(
        "regression",
        (),
        _joined([each.by_subject for each in parts]),
        _joined([each.by_recording for each in parts]),
        _joined_onsets([each.by_onset for each in parts]),
        tuple(dict.fromkeys(note for each in parts for note in each.notes)) + tuple(_missing(found)),
        tuple(columns),
    )
    owners = joined.by_subject, joined.by_recording, joined.by_onset
    if any(each is not None for each in owners) and not any(owners):
        raise UserError(f"target '{spec}': no row has a value in each of its columns")
    return joined


def check_is_numbers(spec: str, name: str, labels: Labels) -> None:
    """Refuse a column of classes among several that are predicted as numbers.

    Raises
    ------
    UserError
        It holds classes, or codes of two.
    """
    if labels.kind == "classification":
        raise UserError(f"target '{spec}': column '{name}' {_classes(labels)}")


def _classes(labels: Labels) -> str:
    names = list_some(labels.classes)
    if all(parse_number(name) is not None for name in labels.classes):
        return f"holds codes of classes ({names}); ':regression' behind the columns makes them numbers"
    return f"holds classes ({names}), and several columns must be numbers; predict it alone"


def _joined(parts: Sequence[Mapping[K, Value] | None]) -> dict[K, Value] | None:
    """Return the values of the owners that have one in each part; None where the parts have none."""
    tables = [each for each in parts if each is not None]
    if not tables:
        return None
    return {
        owner: tuple(float(each[owner]) for each in tables)  # type: ignore[arg-type]
        for owner in tables[0]
        if all(owner in each for each in tables)
    }


def _joined_onsets(parts: Sequence[Mapping[str, Mapping[float, Value]] | None]) -> dict[str, dict[float, Value]] | None:
    tables = [each for each in parts if each is not None]
    if not tables:
        return None
    found = {key: _joined([each.get(key, {}) for each in tables]) for key in tables[0]}
    return {key: each for key, each in found.items() if each}


def _missing(found: Mapping[str, Labels]) -> list[str]:
    """Return a sentence for each column that lacks values which another one has."""
    owners = {name: _owners(labels) for name, labels in found.items()}
    every = set().union(*owners.values())
    return [
        f"'{name}' is n/a for {len(every - own)} of {len(every)} with a value in another column; they are left out."
        for name, own in owners.items()
        if every - own
    ]


def _owners(labels: Labels) -> set[object]:
    onsets = labels.by_onset or {}
    return {
        *(labels.by_subject or {}),
        *(labels.by_recording or {}),
        *((key, at) for key in onsets for at in onsets[key]),
    }
