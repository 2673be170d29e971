"""Targets whose windows are placed at events: their value, a column of theirs, or a time."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from raypipe.core.errors import UserError, nearest
from raypipe.core.metrics import Kind
from raypipe.data.column_labels import column_labels, shown
from raypipe.data.several_columns import named_columns, read_each_column
from raypipe.data.target_base import Labels, Segment, Segments, Target, WindowTiming
from raypipe.recordings.event_query import EventQuery
from raypipe.recordings.events import (
    columns_with,
    count_values,
    event_column,
    match_events,
    read_column_names,
    selected_events,
    taken_events,
)
from raypipe.recordings.participants import missing_spellings, participants_table, typed_column
from raypipe.recordings.recording import Recording
from raypipe.recordings.signal import UnreadableRecordingError
from raypipe.recordings.tables import MISSING_NUMBER, find_column, is_missing, parse_number

if TYPE_CHECKING:
    import pandas as pd

NO_EVENT = "recordings without an event of the target"
NO_VALUE = "events whose '{}' is n/a"
"""Reasons for leaving recordings and events out."""


@dataclass(frozen=True)
class EventTarget(Target):
    """A target whose windows are placed at events of events.tsv."""

    query: EventQuery | None = None
    """Condition that events must satisfy."""

    default_window: ClassVar[float] = 1.0
    event_locked: ClassVar[bool] = True


@dataclass(frozen=True)
class Events(EventTarget):
    """Predict the value of an event from the window after it."""

    values: tuple[str, ...] = ()
    events_from: str | None = None
    """Column that values are read from; None for ``value`` or ``trial_type``."""

    def read_labels(self, recordings: Sequence[Recording]) -> Labels:
        _check_values(self, recordings)
        return Labels("classification", self.values)

    def segment(self, recording: Recording, duration: float, timing: WindowTiming, labels: Labels | None) -> Segments:
        found = match_events(recording.sidecar("events.tsv"), self.values, self.events_from, self.query)
        target = {value: float(i) if labels else float("nan") for i, value in enumerate(self.values)}
        pairs = zip(found.onsets, found.values, strict=True)
        segments = [Segment(onset + timing.tmin, target[value]) for onset, value in pairs]
        if not segments:
            found.left_out[NO_EVENT] += 1
        else:
            absent = sorted(set(self.values) - set(found.values))
            found.left_out.update(f"recordings without an event '{name}'" for name in absent)
        return Segments(segments, found.left_out)


@dataclass(frozen=True)
class Latency(Events):
    """Predict the offset of a crop in the window after an event: a regression for any event-locked data."""

    target_is_offset: ClassVar[bool] = True
    target_is_time: ClassVar[bool] = True

    def read_labels(self, recordings: Sequence[Recording]) -> Labels:
        _check_values(self, recordings)
        return Labels("regression")

    def segment(self, recording: Recording, duration: float, timing: WindowTiming, labels: Labels | None) -> Segments:
        return super().segment(recording, duration, timing, None)


@dataclass(frozen=True)
class EventsColumn(EventTarget):
    """Predict a column of events.tsv, such as the response time, from the window after each event that has a value.

    Of several columns, an event needs a value in each.

    For prediction, windows are at the events that have a value, and in files without the column at all events that
    `query` takes.
    """

    columns: tuple[str, ...] = ()
    kind: Kind | None = None

    def read_labels(self, recordings: Sequence[Recording]) -> Labels:
        return read_each_column(
            self.spec, self._columns_of(recordings), self.kind, lambda name: self._read(recordings, name)
        )

    def _columns_of(self, recordings: Sequence[Recording]) -> tuple[str, ...]:
        """Return the columns: one whose name has commas where an events.tsv has it, else each."""

        def is_column(name: str) -> bool:
            files = (recording.sidecar("events.tsv") for recording in recordings)
            return any(name.casefold() in map(str.casefold, read_column_names(file)) for file in files)

        return named_columns(self.columns, self.spec.partition(":")[2], is_column)

    def _read(self, recordings: Sequence[Recording], name: str) -> Labels:
        first: dict[str, str] = {}
        counts: Counter[str] = Counter()
        taken, first_file = 0, None
        refused: list[tuple[Path, UnreadableRecordingError]] = []
        for recording in recordings:
            path = recording.sidecar("events.tsv")
            try:
                events, _ = selected_events(path, self.query)
                cells = events[event_column(path, events, name)]
            except UnreadableRecordingError as error:
                refused.append((path, error))
                continue  # reported when this recording itself is read
            first_file = first_file or path
            taken += len(events)
            known = [(row, cell) for row, cell in cells.items() if not is_missing(cell)]
            for row, cell in known:
                counts[cell] += 1
                first.setdefault(cell, f"{recording.key}, row {int(str(row)) + 1}")
        if first_file is None:
            raise _no_column(self, name, refused, recordings[0].root)
        if self.query and not taken:
            raise UserError(_takes_no_event(self, self.query))
        where = f"{first_file}: column '{name}'"
        as_text = self.kind == "classification"
        column = typed_column({place: cell for cell, place in first.items()}, where, as_text=as_text)
        count = sum(counts[cell] for cell, place in first.items() if place in column.values)
        labels = column_labels(column.values, where, self.kind, is_numeric=column.is_numeric, each="event", count=count)
        return Labels(labels.kind, labels.classes, notes=labels.notes)

    def segment(self, recording: Recording, duration: float, timing: WindowTiming, labels: Labels | None) -> Segments:
        path = recording.sidecar("events.tsv")
        events, left_out = selected_events(path, self.query)
        columns = self._columns_of([recording])
        if labels is None and any(find_column(events, name) is None for name in columns):
            segments = [Segment(onset + timing.tmin) for onset in events["onset"]]
        else:
            names = [event_column(path, events, name) for name in columns]
            segments = self._labelled(events, names, timing, labels, left_out)
        if not segments:
            left_out[NO_EVENT] += 1
        return Segments(segments, left_out)

    def _labelled(
        self,
        events: pd.DataFrame,
        names: list[str],
        timing: WindowTiming,
        labels: Labels | None,
        left_out: Counter[str],
    ) -> list[Segment]:
        """Return the windows of events with a value in each column; count the others."""
        segments = []
        spellings = [self._missing(events[name], labels) for name in names]
        for onset, *cells in events[["onset", *names]].itertuples(index=False, name=None):
            missing = [name for name, cell, odd in zip(names, cells, spellings, strict=True) if cell.lower() in odd]
            if missing:
                left_out[NO_VALUE.format("' and '".join(missing))] += 1
                continue
            values = tuple(_target(cell, labels) for cell in cells)
            segments.append(Segment(onset + timing.tmin, values if len(values) > 1 else values[0]))
        return segments

    def _missing(self, cells: pd.Series[str], labels: Labels | None) -> frozenset[str]:
        """Return the spellings of a missing value; without labels, the file's own cells say whether they are text."""
        if labels is None:
            return missing_spellings(cells, as_text=self.kind == "classification")
        return MISSING_NUMBER - {name.lower() for name in labels.classes}


def _target(cell: str, labels: Labels | None) -> float:
    """Return the value of a cell, or the index of its class; NaN without labels."""
    number = parse_number(cell)
    if labels is None or (labels.kind == "regression" and number is None):
        return float("nan")
    if labels.kind == "regression":
        return float(number or 0.0)
    return float(labels.classes.index(cell if cell in labels.classes or number is None else shown(number)))


def _no_column(target: EventsColumn, column: str, refused: Sequence[tuple[Path, UserError]], root: Path) -> UserError:
    """Return the error for a column that no table of events has; it names the columns, and the table that has it."""
    files = {file: names for file, _ in refused if (names := read_column_names(file))}
    if not files:
        return UserError(
            f"target '{target.spec}': no recording has an events.tsv that can be read (annotations inside the files "
            "are not read)"
        )
    if any(name.casefold() == column.casefold() for names in files.values() for name in names):
        return refused[0][1]
    file, names = next(iter(files.items()))
    problem = f"no events.tsv has the column '{column}' ({file.name}: {', '.join(names)})"
    people = participants_table(root)
    if people is not None and find_column(people, column):
        problem += f"; participants.tsv has it: --target participants:{column}"
    return UserError(f"target '{target.spec}': {problem}")


def _check_values(target: Events, recordings: Sequence[Recording]) -> None:
    """Check that every value is that of some event."""
    missing, files, problems = set(target.values), [], []
    for recording in recordings:
        try:
            files.append(recording.sidecar("events.tsv"))
            missing -= set(match_events(files[-1], target.values, target.events_from, target.query).values)
        except UnreadableRecordingError as error:
            problems.append(error)
            continue  # reported when this recording itself is read
        if not missing:
            return
    has_tables = not files or any(file.is_file() for file in files)
    if problems and len(problems) == len(recordings) and has_tables:
        raise problems[0]
    raise _no_event_of(sorted(missing)[0], target, files)


def _no_event_of(name: str, target: Events, files: Sequence[Path]) -> UserError:
    """Return the error for a value that no event has; it names similar values, or the columns that have it."""
    problem = f"target '{target.spec}': no event {'that --select takes ' * bool(target.query)}has the value '{name}'"
    if files and not any(file.is_file() for file in files):
        return UserError(f"{problem}; no recording has an events.tsv (annotations inside the files are not read)")
    tables = list(_tables_of(files, target.query))
    if target.query and not any(map(len, tables)):
        return UserError(_takes_no_event(target, target.query))
    for file in [] if target.query else files:
        if columns := columns_with(file, name):
            named = " and ".join(f"'{column}'" for column in columns)
            return UserError(f"{problem}; it stands in column {named} of {file}: --events-from {columns[0]}")
    counts = [count_values(events, target.events_from) for events in tables]
    seen = {value for count in counts for values in count.values() for value in values}
    return UserError(f"{problem}; {nearest(name, sorted(seen - {name}))}")


def _tables_of(files: Iterable[Path], query: EventQuery | None) -> Iterator[pd.DataFrame]:
    """Yield the events that a condition takes, of each file that can be read."""
    for file in files:
        with contextlib.suppress(UnreadableRecordingError):
            yield taken_events(file, query)


def _takes_no_event(target: EventTarget, query: EventQuery) -> str:
    return f"target '{target.spec}': --select '{query.text}' takes no event"
