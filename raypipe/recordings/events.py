"""Read the events of a recording, and match their values to those that a target asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

import numpy as np

from raypipe.recordings.event_query import EventQuery
from raypipe.recordings.recording import Recording
from raypipe.recordings.signal import UnreadableRecordingError
from raypipe.recordings.tables import find_column, is_missing, list_columns, missing_column, parse_number, read_tsv

if TYPE_CHECKING:
    import pandas as pd

VALUE_COLUMNS = ("value", "trial_type")
"""Columns in which an event's value is looked for, the first first."""
MIN_CLOCK = 4
"""Increasing numbers that are taken for times."""
NO_ONSET = "events without an onset"
NOT_SELECTED = "events that --select does not take"
OTHER_SPELLING = "events spelt like a value that is asked for, which the file has in several spellings"
"""Reasons for leaving events out."""


def read_events(recording: Recording) -> pd.DataFrame:
    """Read the ``events.tsv`` of a recording; see `read_events_file`."""
    return read_events_file(recording.sidecar("events.tsv"))


def read_events_file(path: Path) -> pd.DataFrame:
    """Read an ``events.tsv``.

    Returns
    -------
    pandas.DataFrame
        Rows by ascending onset, equal onsets in file order; rows without an onset are left out. Columns: `onset` (s,
        float), `duration` (s, float, may be NaN), `value` (str; from ``trial_type`` where there is no ``value``), and
        the file's other columns as text.

    Raises
    ------
    UnreadableRecordingError
        The file is missing or damaged, or lacks a column.
    """
    events = _read(path)
    if not any(column in events.columns for column in VALUE_COLUMNS):
        raise UnreadableRecordingError(_no_value(path, events))
    if "value" not in events.columns:
        events["value"] = events["trial_type"]
    events["value"] = events["value"].replace("", "n/a")
    durations = events.get("duration", [""] * len(events))
    events["duration"] = np.array([parse_number(cell) for cell in durations], float)
    events["onset"] = np.array([_onset(path, cell) for cell in events["onset"]], float)
    finite = np.isfinite(events["onset"])
    kept: pd.DataFrame = events[finite].sort_values("onset", kind="stable", ignore_index=True)
    return kept


@dataclass
class MatchedEvents:
    """Events of a recording that have one of the values that a target asks for."""

    onsets: list[float]
    """Seconds from the recording's start, ascending."""
    values: list[str]
    """Values, spelt as the target does."""
    left_out: Counter[str] = field(default_factory=Counter)


def match_events(
    path: Path, wanted: Sequence[str], column: str | None = None, select: EventQuery | None = None
) -> MatchedEvents:
    """Find the events whose value is one of `wanted`.

    A cell is a value if it is equal, or an equal number (``1.0`` and ``1``), or differs in upper and lower case only
    and the file has no cell that is equal.

    Parameters
    ----------
    column
        Column in which values are looked for. Default: ``value`` or ``trial_type``, that in which more of them are
        found.
    select
        Condition that events must satisfy.

    Raises
    ------
    UnreadableRecordingError
        The file is missing or damaged, or lacks a column; or the two columns contradict each other, or hold the same
        value in different rows.
    """
    events = _read(path)
    columns = [name for name in VALUE_COLUMNS if name in events.columns]
    if column is not None:
        columns = [event_column(path, events, column)]
    if not columns:
        raise UnreadableRecordingError(_no_value(path, events))
    spelt = {name: find_spellings(events[name], wanted) for name in columns}
    best, *others = sorted(columns, key=lambda name: -len(set(spelt[name].values())))
    names = events[best].map(spelt[best]).astype(object)
    for other in others:  # one file may have some values in one column, and the others in the other
        theirs = events[other].map(spelt[other]).astype(object)
        _check_agreement(path, events, {best: names, other: theirs})
        names = names.where(names.notna(), theirs)
    taken = np.ones(len(events), bool) if select is None else select.rows(events, path)
    not_selected = int((names.notna().to_numpy() & ~taken).sum())
    found = events.assign(name=names)[names.notna().to_numpy() & taken]
    onsets = np.array([_onset(path, cell) for cell in found["onset"]], float)
    finite = np.isfinite(onsets)
    kept = found.assign(onset=onsets)[finite].sort_values("onset", kind="stable")
    left_out = Counter({NO_ONSET: len(found) - len(kept)})
    folded = {normalize("NFC", value).casefold() for value in wanted}
    alike = names.isna() & events[best].map(lambda cell: cell.casefold() in folded).astype(bool)
    left_out[OTHER_SPELLING] = int(alike.sum())
    left_out[NOT_SELECTED] = not_selected
    return MatchedEvents(kept["onset"].tolist(), kept["name"].tolist(), +left_out)


def _check_agreement(path: Path, events: pd.DataFrame, names: Mapping[str, pd.Series[Any]]) -> None:
    """Check that two columns do not name one row by two values, or a value in different rows.

    Parameters
    ----------
    names
        The wanted value of each row, by column; missing where the cell is none.

    Raises
    ------
    UnreadableRecordingError
        They do.
    """
    (one, first), (other, second) = names.items()
    choose = f"choose one with --events-from ({list_columns(events)})"
    contradicting = first.notna() & second.notna() & (first != second)
    if contradicting.any():
        row = int(contradicting.to_numpy().argmax())
        raise UnreadableRecordingError(
            f"{path}: columns '{one}' and '{other}' contradict each other ('{first.iloc[row]}' and "
            f"'{second.iloc[row]}' in row {row + 1}); correct one of them, or {choose}"
        )
    for value in set(first.dropna()) & set(second.dropna()):
        if not (first == value).equals(second == value):
            raise UnreadableRecordingError(
                f"{path}: columns '{one}' and '{other}' both hold '{value}', in different rows; {choose}"
            )


def event_column(path: Path, events: pd.DataFrame, column: str) -> str:
    """Return the name that a table of events has for a column.

    Raises
    ------
    UnreadableRecordingError
        It has no such column (names those that it has).
    """
    name = find_column(events, column)
    if name is None:
        raise UnreadableRecordingError(f"{path}: no column '{column}' ({list_columns(events)})")
    return name


def selected_events(path: Path, select: EventQuery | None) -> tuple[pd.DataFrame, Counter[str]]:
    """Read the events that satisfy a condition and have an onset, by ascending onset.

    Returns
    -------
    events, left_out
        The table, `onset` in seconds and the other columns as text; and the number of other events by
        reason.

    Raises
    ------
    UnreadableRecordingError
        The file is missing or damaged, or lacks a column of the condition.
    """
    events = _read(path)
    taken = np.ones(len(events), bool) if select is None else select.rows(events, path)
    onsets = np.array([_onset(path, cell) for cell in events["onset"]], float)
    kept = events.assign(onset=onsets)[taken & np.isfinite(onsets)].sort_values("onset", kind="stable")
    left_out = Counter({NOT_SELECTED: int((~taken).sum()), NO_ONSET: int((taken & ~np.isfinite(onsets)).sum())})
    return kept, +left_out


def columns_with(path: Path, value: str) -> list[str]:
    """Return the names of the columns of an events file that hold a value."""
    try:
        events = _read(path)
    except UnreadableRecordingError:
        return []
    return [str(name) for name in events.columns if name not in ("onset", "duration") and value in set(events[name])]


def taken_events(path: Path, select: EventQuery | None) -> pd.DataFrame:
    """Read the events that satisfy a condition, as text, also those without an onset.

    Raises
    ------
    UnreadableRecordingError
        The file is missing or damaged, or lacks a column of the condition.
    """
    events = _read(path)
    return events if select is None else events[select.rows(events, path)]


def count_values(events: pd.DataFrame, column: str | None = None) -> dict[str, Counter[str]]:
    """Return how often each value is in events, by column; missing values are not counted.

    Parameters
    ----------
    column
        The column. Default: ``value`` and ``trial_type``.
    """
    return {
        name: Counter(cell for cell in events[name] if not is_missing(cell))
        for name in (VALUE_COLUMNS if column is None else (find_column(events, column) or "",))
        if name in events.columns
    }


def values_and_measurements(path: Path) -> tuple[dict[str, Counter[str]], tuple[str, ...]]:
    """Return the counts of `count_values`, and the names of the columns that measure something in each event.

    Such a column holds numbers that are not all whole, as codes and samples are, and do not increase, as times do.
    """
    events = _read(path)
    others = [str(name) for name in events.columns if name not in ("onset", "duration", *VALUE_COLUMNS)]
    return count_values(events), tuple(name for name in others if _is_measurement(events[name]))


def _is_measurement(column: Iterable[str]) -> bool:
    cells = [cell for cell in column if not is_missing(cell)]
    numbers = [number for cell in cells if (number := parse_number(cell)) is not None and np.isfinite(number)]
    if not numbers or len(numbers) < len(cells) or all(number.is_integer() for number in numbers):
        return False
    return not (len(numbers) >= MIN_CLOCK and all(a <= b for a, b in pairwise(numbers)))


def read_column_names(path: Path) -> list[str]:
    """Return the names of the columns of an events file; none if it cannot be read."""
    try:
        return [str(name) for name in _read(path).columns]
    except UnreadableRecordingError:
        return []


def find_spellings(cells: Iterable[str], wanted: Sequence[str]) -> dict[str, str]:
    """Return the wanted value of each distinct cell that is a spelling of one."""
    distinct = dict.fromkeys(cells)
    found: dict[str, str] = {}
    for value in wanted:
        exact = [cell for cell in distinct if cell == normalize("NFC", value)]
        number = parse_number(value)
        equal = [cell for cell in distinct if number is not None and parse_number(cell) == number]
        folded = [cell for cell in distinct if cell.casefold() == normalize("NFC", value).casefold()]
        others = {name.casefold() for name in wanted if name != value}
        same = exact + equal or (folded if len(folded) == 1 and value.casefold() not in others else [])
        for cell in same:
            found.setdefault(cell, value)
    return found


def _read(path: Path) -> pd.DataFrame:
    """Read a table of events as text, with the names of columns that BIDS gives them."""
    if not path.is_file():
        raise UnreadableRecordingError(f"{path}: no such file; the target needs the recording's events")
    events = read_tsv(path)
    names = {find_column(events, name): name for name in ("onset", "duration", *VALUE_COLUMNS)}
    events = events.rename(columns={old: new for old, new in names.items() if old is not None})
    if "onset" not in events.columns:
        raise UnreadableRecordingError(missing_column(path, "onset", events))
    return events


def _no_value(path: Path, events: pd.DataFrame) -> str:
    """Return the message for a table without a column of values."""
    for name in reversed(VALUE_COLUMNS):
        message = missing_column(path, name, events)
        if "did you mean" in message or "separated" in message:
            break
    return message.replace(f"no column '{name}'", f"no column '{VALUE_COLUMNS[0]}' or '{VALUE_COLUMNS[1]}'")


def _onset(path: Path, cell: str) -> float:
    number = parse_number(cell)
    if number is None and not is_missing(cell):
        raise UnreadableRecordingError(f"{path}: column 'onset' is not a number of seconds ('{cell}')")
    return float("nan") if number is None else number
