"""Find what the tables of a data set offer as targets: values of events, and columns of participants.tsv."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from unicodedata import normalize

from raypipe.core.errors import UserError, first_line
from raypipe.data.facts import RecordingFacts
from raypipe.data.target_base import Labels
from raypipe.data.targets import parse_target
from raypipe.recordings.events import find_spellings
from raypipe.recordings.participants import participant_rows, participants_table
from raypipe.recordings.recording import Recording
from raypipe.recordings.tables import parse_number

NUMBERS, CLASSES, NO_TARGET = "numbers", "classes", "not a target"
"""Kinds of columns of participants.tsv."""


@dataclass(frozen=True)
class EventValue:
    """A value of events, with its other spellings."""

    column: str
    """Column of events.tsv: ``value`` or ``trial_type``."""
    value: str
    """The most frequent spelling."""
    count: int
    """Events that `prepare` finds when it is asked for `value`."""
    by_person: Mapping[str, int]
    """Numbers of such events of the people who have any."""
    lacking: tuple[str, ...]
    """People with events, but without one that `prepare` finds."""
    spellings: Mapping[str, int] = field(default_factory=dict)
    """Numbers of events of other spellings that `prepare` takes for `value`."""
    unmatched: Mapping[str, int] = field(default_factory=dict)
    """Numbers of events of other spellings that `prepare` does not take for `value`."""


@dataclass(frozen=True)
class ColumnFacts:
    """A column of participants.tsv, as the target ``participants:COLUMN`` takes it."""

    name: str
    kind: str
    """One of `NUMBERS`, `CLASSES` and `NO_TARGET`."""
    values: tuple[float, ...] = ()
    """The numbers, ascending."""
    classes: Mapping[str, int] = field(default_factory=dict)
    """Numbers of people by class."""
    missing: tuple[str, ...] = ()
    """People with recordings whose value is missing."""
    problem: str = ""
    """Reason for which the column is not a target."""
    labels: Labels | None = field(default=None, repr=False, compare=False)
    """Of the column."""

    def describe(self) -> str:
        """Return the values in a few words."""
        if self.kind == NUMBERS:
            low, high = self.values[0], self.values[-1]
            return f"{low:.4g} to {high:.4g}, median {median(self.values):.4g}"
        if self.kind == CLASSES:
            return ", ".join(f"{name} ({count})" for name, count in self.classes.items())
        return self.problem


def find_event_values(recordings: Sequence[Recording], facts: Sequence[RecordingFacts]) -> list[EventValue]:
    """Return the values of events, by column and then by number of events.

    Values that differ in case, or as text but not as numbers, are one value.
    """
    tables: dict[str, list[tuple[str, Counter[str]]]] = defaultdict(list)
    for recording, each in zip(recordings, facts, strict=True):
        for column, counts in each.events.items():
            tables[column].append((recording.subject, counts))
    found = [value for column, of_column in tables.items() for value in _values_of(column, of_column)]
    return sorted(found, key=lambda each: (each.column != "value", -each.count, each.value))


def _values_of(column: str, tables: Sequence[tuple[str, Counter[str]]]) -> list[EventValue]:
    spelt: dict[str, Counter[str]] = defaultdict(Counter)
    of_key: dict[str, list[tuple[str, Counter[str]]]] = defaultdict(list)
    for person, counts in tables:
        for key in {fold_value(cell) for cell in counts}:
            of_key[key].append((person, counts))
        for cell, count in counts.items():
            spelt[fold_value(cell)][cell] += count
    people = {person for person, counts in tables if counts}
    return [_event_value(column, spellings, of_key[key], people) for key, spellings in spelt.items()]


def _event_value(
    column: str, spelt: Counter[str], tables: Sequence[tuple[str, Counter[str]]], people: set[str]
) -> EventValue:
    """Return the facts about one value, from the tables that hold it in some spelling."""
    value = spelt.most_common(1)[0][0]
    taken: Counter[str] = Counter()
    by_person: Counter[str] = Counter()
    for person, counts in tables:
        same = {cell: counts[cell] for cell in find_spellings(counts, [value])}
        taken.update(same)
        by_person[person] += sum(same.values())
    by_person = +by_person
    return EventValue(
        column=column,
        value=value,
        count=taken.total(),
        by_person=dict(sorted(by_person.items())),
        lacking=tuple(sorted(people - set(by_person))),
        spellings={cell: count for cell, count in taken.items() if cell != value},
        unmatched={cell: count for cell, count in (spelt - taken).items() if cell != value},
    )


def fold_value(cell: str) -> str:
    """Return what is equal for spellings of one value: text without case, or a number."""
    number = parse_number(cell)
    return normalize("NFC", cell).casefold() if number is None else f"{number:.15g}"


def describe_columns(recordings: Sequence[Recording]) -> list[ColumnFacts]:
    """Return the columns of participants.tsv, in file order, for the people who have recordings.

    Raises
    ------
    UserError
        A participants.tsv is damaged.
    """
    names: dict[str, None] = {}
    for root in {recording.root: None for recording in recordings}:
        table = participants_table(root)
        names |= {} if table is None else {str(name): None for name in table.columns}
    return [_describe_column(name, recordings) for name in names]


def _describe_column(name: str, recordings: Sequence[Recording]) -> ColumnFacts:
    people = {recording.subject for recording in recordings}
    try:
        labels = parse_target(participants_spec(name)).read_labels(recordings)
    except UserError as error:
        return ColumnFacts(name, NO_TARGET, problem=_without_place(first_line(error), name))
    targets = {person: target for person, target in (labels.by_subject or {}).items() if not isinstance(target, tuple)}
    missing = tuple(sorted(people - set(targets)))
    if labels.kind == "regression":
        return ColumnFacts(name, NUMBERS, values=tuple(sorted(targets.values())), missing=missing, labels=labels)
    counts = Counter(labels.classes[int(target)] for target in targets.values())
    classes = {each: counts[each] for each in labels.classes}
    return ColumnFacts(name, CLASSES, classes=classes, missing=missing, labels=labels)


def _without_place(message: str, name: str) -> str:
    """Return the message of an error about a column, without the column and what a reader of a table sees there."""
    path, lacks, _ = message.partition(f": no column '{name}'")
    if lacks:
        return f"not in {path}"
    return message.partition(f"column '{name}' ")[2].removesuffix("; there is nothing to predict") or message


def participants_spec(column: str) -> str:
    """Return the specification of the target that predicts a column."""
    return f"participants:{column}"


def people_without_row(recordings: Sequence[Recording]) -> list[str]:
    """Return the people with recordings but without a row in participants.tsv, where there is such a file."""
    rows = participant_rows(recordings)
    has_table = {root: participants_table(root) is not None for root in {r.root for r in recordings}}
    lacking = {r.subject for r in recordings if has_table[r.root] and (r.root, r.label) not in rows}
    return sorted(lacking)
