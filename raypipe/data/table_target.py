"""Targets from a table of labels, joined to the recordings, or to their events, by the columns that it has."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from raypipe.core.errors import UserError
from raypipe.core.metrics import Kind
from raypipe.data.column_labels import column_labels, split_kind
from raypipe.data.event_targets import EventTarget
from raypipe.data.several_columns import named_columns, read_each_column, split_columns
from raypipe.data.table_rows import KEYS, Row, join_rows, note_on_shared_rows, read_rows, refuse_shared_rows
from raypipe.data.target_base import Labels, Segment, Segments, Target, WindowTiming, segments_of_subject
from raypipe.recordings.events import selected_events
from raypipe.recordings.participants import missing_spellings, typed_column
from raypipe.recordings.recording import Recording
from raypipe.recordings.signal import UnreadableRecordingError
from raypipe.recordings.tables import (
    find_column,
    list_columns,
    list_some,
    parse_number,
    read_table,
)

if TYPE_CHECKING:
    import pandas as pd

MAX_DISTANCE = 0.001
"""Largest difference (s) between the onset of an event and of its row."""
_ROUNDING = 1e-6
"""Share of it that rounding may add."""


@dataclass(frozen=True)
class _OfTable(Target):
    """A target whose values are in a table of labels."""

    file: str = ""
    columns: tuple[str, ...] = ()
    kind: Kind | None = None

    @property
    def column(self) -> str:
        """Return the first column."""
        return self.columns[0]

    def read_labels(self, recordings: Sequence[Recording]) -> Labels:
        return read_each_column(
            self.spec, self.columns, self.kind, lambda name: replace(self, columns=(name,))._read(recordings)
        )

    @abstractmethod
    def _read(self, recordings: Sequence[Recording]) -> Labels:
        """Read the labels of the first column."""


@dataclass(frozen=True)
class LabelTable(_OfTable):
    """Predict a column, or several, of a table with a row for each subject or recording, from consecutive windows."""

    def _read(self, recordings: Sequence[Recording]) -> Labels:
        rows = read_rows(self.file, self.column, self.joined_on)
        matched = join_rows(self.file, self.joined_on, rows, recordings)
        is_person = self.joined_on == ("participant_id",)
        owner: Callable[[Recording], str] = (lambda r: r.subject) if is_person else (lambda r: r.key)
        joined = [row for _, found in matched for row in found]
        missing = _missing(self, joined)
        cells = {owner(recording): _one_of(self, found, missing) for recording, found in matched}
        labels = _labels(self, {name: row.cell for name, row in cells.items()}, "subject" if is_person else "recording")
        note = _note(self, rows, joined, missing)
        note += "" if is_person else note_on_shared_rows(matched)
        targets = labels.by_subject
        labels = replace(labels, notes=(note, *labels.notes))
        return labels if is_person else replace(labels, by_subject=None, by_recording=targets)

    def segment(self, recording: Recording, duration: float, timing: WindowTiming, labels: Labels | None) -> Segments:
        return segments_of_subject(recording, duration, timing, labels)


@dataclass(frozen=True)
class EventTable(_OfTable, EventTarget):
    """Predict a column, or several, of a table that has a row for each event, from the windows after the events.

    A row is that of the event whose onset differs by at most a millisecond. For prediction, windows are at all events
    that `query` takes.
    """

    def _read(self, recordings: Sequence[Recording]) -> Labels:
        rows = read_rows(self.file, self.column, self.joined_on)
        of_recordings = join_rows(self.file, self.joined_on, rows, recordings)
        matched = [(recording, _events_of(recording, own)) for recording, own in of_recordings]
        joined = [row for _, pairs in matched for _, row in pairs]
        missing = _missing(self, joined)
        found = {recording.key: _row_of_each(self, recording, pairs, missing) for recording, pairs in matched}
        known = [
            (recording, [row for _, row in pairs if row.cell.lower() not in missing]) for recording, pairs in matched
        ]
        refuse_shared_rows(self.file, known)
        used = {row.line: row for by_onset in found.values() for row in by_onset.values()}
        labels = _labels(self, {f"line {line}": row.cell for line, row in used.items()}, "row that matches")
        targets = labels.by_subject or {}
        by_onset = {
            key: {onset: targets[f"line {row.line}"] for onset, row in of.items() if f"line {row.line}" in targets}
            for key, of in found.items()
        }
        note = _note(self, rows, joined, missing)
        return Labels(labels.kind, labels.classes, by_onset=by_onset, notes=(note, *labels.notes))

    def segment(self, recording: Recording, duration: float, timing: WindowTiming, labels: Labels | None) -> Segments:
        events, left_out = selected_events(recording.sidecar("events.tsv"), self.query)
        onsets = list(dict.fromkeys(float(onset) for onset in events["onset"]))
        if labels is None:
            return Segments([Segment(onset + timing.tmin) for onset in onsets], left_out)
        targets = (labels.by_onset or {}).get(recording.key, {})
        left_out["events without a target in the table"] += sum(onset not in targets for onset in onsets)
        segments = [Segment(onset + timing.tmin, targets[onset]) for onset in onsets if onset in targets]
        return Segments(segments, left_out)


def parse_table(spec: str, argument: str, joined_on: tuple[str, ...] = ()) -> LabelTable | EventTable:
    """Make the target of a table from ``FILE:COLUMN`` or ``FILE:COLUMN:KIND``.

    Parameters
    ----------
    joined_on
        Columns that the table was joined on, which is then not read; empty to find them in the table.

    Raises
    ------
    UserError
        There is no such table, or it lacks the column or ``participant_id``.
    """
    place, kind = split_kind(argument)
    file, named = _file_and_columns(place)
    columns = split_columns(spec, f"{named}:{kind}" if kind else named)[0] if named else ()
    if not (file and columns):
        raise UserError(f"target '{spec}': needs a file and a column, such as table:labels.csv:score")
    if not joined_on:
        table = read_table(Path(file).expanduser())
        columns = named_columns(columns, named, lambda name: find_column(table, name) is not None)
        joined_on = _keys_in(file, table, columns)
    chosen = EventTable if "onset" in joined_on else LabelTable
    return chosen(spec, joined_on=joined_on, file=file, columns=columns, kind=kind)


def without_file(spec: str) -> str:
    """Return the specification of a target, of a table without its file, whose path may be spelt in several ways.

    Nothing is read. Stores of a run and recipes of a bundle are of one target if this is the same.
    """
    name, _, argument = spec.strip().partition(":")
    if name != "table":
        return spec
    place, kind = split_kind(argument)
    columns = ",".join(column.strip() for column in place.rpartition(":")[2].split(","))
    return f"table:{columns}" + (f":{kind}" if kind else "")


def _file_and_columns(place: str) -> tuple[str, str]:
    """Divide ``FILE:COLUMN`` after the first part that is a file, since either name may have colons."""
    parts = place.split(":")
    for n in range(1, len(parts)):
        if Path(":".join(parts[:n])).expanduser().is_file():
            return ":".join(parts[:n]), ":".join(parts[n:])
    file, _, named = place.rpartition(":")
    return file, named


def _keys_in(file: str, table: pd.DataFrame, columns: Sequence[str]) -> tuple[str, ...]:
    """Return the columns that a table can be joined on, by their names in `KEYS`."""
    path = Path(file).expanduser()
    targets = {name: find_column(table, name) for name in columns}
    for name, found in targets.items():
        if found is None:
            raise UserError(f"{path}: no column '{name}' ({list_columns(table)})")
    none = (None, *targets.values())
    present = {key for key, names in KEYS.items() if any(find_column(table, name) not in none for name in names)}
    if "participant_id" not in present:
        raise UserError(f"{path}: no column 'participant_id', the subject of each row ({list_columns(table)})")
    return tuple(key for key in KEYS if key in present)


def _missing(target: _OfTable, rows: Sequence[Row]) -> frozenset[str]:
    """Return the spellings of a missing value in the joined rows: ``none`` may be a class of text."""
    return missing_spellings([row.cell for row in rows], as_text=target.kind == "classification")


def _one_of(target: LabelTable, rows: Sequence[Row], missing: frozenset[str]) -> Row:
    """Return one of the rows of a subject or recording that have a value, or of all if none has.

    Raises
    ------
    UserError
        Their values differ.
    """
    known = [row for row in rows if row.cell.lower() not in missing]
    for row in known[1:]:
        if not _agree(row, known[0]):
            lacking = ", ".join(key for key in KEYS if key not in target.joined_on)
            raise UserError(
                f"{target.file}: lines {known[0].line} and {row.line} give one {_whose(target)} two values of "
                f"'{target.column}', '{known[0].cell}' and '{row.cell}'; keep one, or add a column that "
                f"distinguishes them ({lacking})"
            )
    return (known or list(rows))[0]


def _whose(target: LabelTable) -> str:
    return "subject" if target.joined_on == ("participant_id",) else "recording"


def _agree(one: Row, other: Row) -> bool:
    number = parse_number(one.cell)
    return one.cell == other.cell or (number is not None and number == parse_number(other.cell))


def _events_of(recording: Recording, rows: Sequence[Row]) -> list[tuple[float, Row]]:
    """Return the rows that are those of an event of a recording, each with the event's onset (s)."""
    try:
        events, _ = selected_events(recording.sidecar("events.tsv"), None)
    except UnreadableRecordingError:
        return []  # reported when this recording itself is read
    onsets = sorted({float(onset) for onset in events["onset"]})
    nearest = [(min(onsets, key=lambda onset: abs(onset - row.onset), default=float("nan")), row) for row in rows]
    return [(onset, row) for onset, row in nearest if abs(onset - row.onset) <= MAX_DISTANCE * (1 + _ROUNDING)]


def _row_of_each(
    target: EventTable, recording: Recording, pairs: Sequence[tuple[float, Row]], missing: frozenset[str]
) -> dict[float, Row]:
    """Return the row of each event by its onset, one with a value where there is one.

    Raises
    ------
    UserError
        Rows of one event differ.
    """
    found: dict[float, Row] = {}
    for onset, row in pairs:
        other = found.get(onset)
        if other is None or other.cell.lower() in missing:
            found[onset] = row
        elif row.cell.lower() not in missing and not _agree(row, other):
            raise UserError(
                f"{target.file}: lines {other.line} and {row.line} give one event ({recording.key}, {onset:g} s) two "
                f"values of '{target.column}', '{other.cell}' and '{row.cell}'; keep one"
            )
    return found


def _labels(target: _OfTable, cells: Mapping[str, str], each: str) -> Labels:
    """Return the labels of the joined cells, by their owners."""
    where = f"{target.file}: column '{target.column}'"
    if not cells:
        what = "an event of a recording" if isinstance(target, EventTable) else "a recording"
        raise UserError(f"{target.file}: no row matches {what} (joined on {', '.join(target.joined_on)})")
    column = typed_column(cells, where, as_text=target.kind == "classification")
    return column_labels(column.values, where, target.kind, is_numeric=column.is_numeric, each=each)


def _note(target: _OfTable, rows: Sequence[Row], used: Sequence[Row], missing: frozenset[str]) -> str:
    """Return a sentence on the rows that were joined, and the others."""
    lines = {row.line for row in used}
    others = [row.line for row in rows if row.line not in lines]
    n_missing = sum(row.cell.lower() in missing for row in rows if row.line in lines)
    text = f"{target.file}, joined on {', '.join(target.joined_on)}: {len(lines)} of {len(rows)} rows match"
    text += f", not line{'s' * (len(others) > 1)} {list_some(map(str, others))}" if others else ""
    return f"{text}; {n_missing} of them {'is' if n_missing == 1 else 'are'} n/a." if n_missing else f"{text}."
