"""Targets of stores that are made from MNE epochs: which epochs have one, and its values."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raypipe.core.errors import UserError, nearest
from raypipe.core.metrics import Kind
from raypipe.data.accounting import Ledger
from raypipe.data.epochs_files import EpochsSource
from raypipe.data.given_column import column, is_missing_value
from raypipe.data.given_labels import are_codes, read_labels
from raypipe.data.given_windows import MAX_NAMED_CLASSES
from raypipe.data.several_columns import check_is_numbers, split_columns
from raypipe.data.target_base import Labels
from raypipe.recordings.tables import list_some

SOURCE = "epochs"
"""Name of the target of stores that are made from epochs."""
NO_TARGET = "epochs without a target"
OTHER_EVENT = "epochs of other events"
DROPPED = "epochs dropped by MNE ({})"
"""Reasons for leaving epochs out."""


@dataclass(frozen=True)
class TargetSpec:
    """What is predicted: the event of an epoch, or a column of the metadata."""

    spec: str
    columns: tuple[str, ...] = ()
    """Columns of the metadata; none for events."""
    events: tuple[str, ...] = ()
    """Events that are used; empty for all."""
    kind: Kind | None = None


class Part(NamedTuple):
    """The used epochs of one file or object."""

    source: EpochsSource
    rows: NDArray[np.int64]
    """(N,) places of the epochs."""
    subjects: list[str]
    """(N,) subject of each."""

    def values(self, column_name: str) -> list[Any]:
        """Return the value of each in a column of the metadata; its event for an empty name."""
        facts = self.source.facts
        if not column_name:
            return [facts.events[row] for row in self.rows]
        values = column(facts.column(column_name, self.source.name), column_name)
        return [values[row] for row in self.rows]


def parse_target(target: str) -> TargetSpec:
    """Return what a specification of a target means.

    Raises
    ------
    UserError
        It is neither ``event`` nor ``metadata:COLUMN``.
    """
    kind, _, argument = target.partition(":")
    if kind == "event":
        names = tuple(name.strip() for name in argument.split(",") if name.strip())
        if argument and (len(names) < 2 or len(set(names)) < len(names)):
            raise UserError(f"target '{target}': needs two or more different events, separated by commas")
        return TargetSpec(target, events=names)
    if kind != "metadata" or not argument:
        raise UserError(f"target '{target}': epochs take event, event:A,B or metadata:COLUMN")
    columns, chosen = split_columns(target, argument)
    return TargetSpec(target, columns, kind=chosen)


def stored_spec(wanted: TargetSpec, labels: Labels) -> str:
    """Return the specification of the store's target; it names the events that are classes, if they are few."""
    if not wanted.columns and len(labels.classes) <= MAX_NAMED_CLASSES:
        return f"{SOURCE}:event:{','.join(labels.classes)}"
    return f"{SOURCE}:{wanted.spec}"


def used_part(source: EpochsSource, wanted: TargetSpec, subjects: list[str], ledger: Ledger) -> Part:
    """Return the epochs that have a target; the others, and those that MNE has dropped, are counted."""
    only = set(subjects)
    dropped = {DROPPED.format(reason): n for reason, n in source.facts.dropped.items()}
    ledger.leave_parts_out(next(iter(only)) if len(only) == 1 else source.name, dropped)
    if wanted.columns:
        columns = [source.facts.column(name, source.name) for name in wanted.columns]
        used = [not any(map(is_missing_value, values)) for values in zip(*columns, strict=True)]
    else:
        used = [not wanted.events or name in wanted.events for name in source.facts.events]
    for who, n in Counter(who for who, is_used in zip(subjects, used, strict=True) if not is_used).items():
        ledger.leave_parts_out(who, {NO_TARGET if wanted.columns else OTHER_EVENT: n})
    rows = np.flatnonzero(used)
    return Part(source, rows, [subjects[row] for row in rows])


def labels_of(parts: list[Part], subjects: list[str], wanted: TargetSpec) -> tuple[Labels, NDArray[np.float64]]:
    """Return the labels and the targets of the epochs that are used.

    Raises
    ------
    UserError
        There are none, or their values are no target.
    """
    what = f"target '{wanted.spec}'"
    if not subjects:
        named = "' and '".join(wanted.columns)
        missing = f"no epoch has a value in column '{named}'" if named else "no epoch of these events"
        raise UserError(f"{what}: {missing}; events: {list_some(_all_events(parts), 10)}")
    if len(wanted.columns) > 1:
        rows = [row for part in parts for row in zip(*map(part.values, wanted.columns), strict=True)]
        if wanted.kind is None:
            _refuse_codes(rows, wanted)
        return read_labels(np.array(rows, object), subjects, wanted.kind, what, wanted.columns)
    y = [value for part in parts for value in part.values(wanted.columns[0] if wanted.columns else "")]
    if wanted.events:
        return _event_labels(parts, wanted, y)
    if wanted.columns and all(isinstance(value, Real) and not isinstance(value, bool) for value in y):
        y = [float(value) for value in y]  # whole numbers of a column are values, as in participants.tsv
    return read_labels(y, subjects, wanted.kind, what)


def _refuse_codes(rows: list[tuple[Any, ...]], wanted: TargetSpec) -> None:
    for name, values in zip(wanted.columns, zip(*rows, strict=True), strict=True):
        if are_codes(values):
            classes = tuple(f"{float(value):g}" for value in sorted(set(values)))
            check_is_numbers(wanted.spec, name, Labels("classification", classes))


def _event_labels(parts: list[Part], wanted: TargetSpec, y: list[Any]) -> tuple[Labels, NDArray[np.float64]]:
    absent = [name for name in wanted.events if name not in y]
    if absent:
        known = nearest(absent[0], _all_events(parts))
        raise UserError(f"target '{wanted.spec}': no epoch of event '{absent[0]}'; {known}")
    place = {name: float(number) for number, name in enumerate(wanted.events)}
    return Labels("classification", wanted.events), np.array([place[name] for name in y])


def _all_events(parts: list[Part]) -> list[str]:
    return sorted({name for part in parts for name in part.source.facts.events})
