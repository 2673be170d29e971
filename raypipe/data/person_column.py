"""Read the targets that are a column of participants.tsv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from raypipe.core.errors import UserError
from raypipe.recordings.events import read_column_names
from raypipe.recordings.participants import participant_rows, participants_table, read_participants, typed_column
from raypipe.recordings.recording import Recording
from raypipe.recordings.signal import UnreadableRecordingError
from raypipe.recordings.tables import find_column, list_some, missing_column, read_tsv


@dataclass(frozen=True)
class PersonColumn:
    """The values of a column, without missing ones."""

    values: Mapping[str, float | str]
    """By subject: numbers if `is_numeric`, else text."""
    is_numeric: bool
    where: str
    """File and column, for messages."""


def read_person_column(recordings: Sequence[Recording], column: str, *, as_text: bool = False) -> PersonColumn:
    """Read a column of participants.tsv for the subjects that have recordings.

    Parameters
    ----------
    as_text
        Accept text in a column that is mostly numbers.

    Raises
    ------
    UserError
        A table or the column is missing, or the column mixes numbers and text.
    """
    names = {root: _column_of(root, column, recordings) for root in {r.root: None for r in recordings}}
    rows = participant_rows(recordings)
    cells: dict[str, str] = {}
    for recording in recordings:
        row = rows.get((recording.root, recording.label))
        if row is not None:  # a release of HBN-EEG may list the subjects of all
            cells.setdefault(recording.subject, row[names[recording.root]])
    if not cells:
        raise UserError(_no_row(recordings))
    first, *others = [str(root / "participants.tsv") for root in names]
    where = f"{first}{f' (or {list_some(others)})' if others else ''}: column '{names[recordings[0].root]}'"
    found = typed_column(cells, where, as_text=as_text)
    return PersonColumn(found.values, found.is_numeric, where)


def _no_row(recordings: Sequence[Recording]) -> str:
    """Return the message for tables whose rows are of other subjects than the recordings."""
    root = recordings[0].root
    rows = list_some(read_participants(root).index)
    labels = list_some(sorted({recording.label for recording in recordings}))
    return f"{root / 'participants.tsv'}: no row is of a subject with recordings (rows: {rows}; subjects: {labels})"


def _column_of(root: Path, column: str, recordings: Sequence[Recording]) -> str:
    table = participants_table(root)
    if table is None:
        table = read_participants(root)  # says that there is none
    name = find_column(table, column)
    if name is None:
        others = other_tables(next(recording for recording in recordings if recording.root == root), column)
        hint = "".join(f"; {file} has it{use}" for file, use in others)
        raise UserError(f"{missing_column(root / 'participants.tsv', column, table)}{hint}")
    return name


def other_tables(recording: Recording, column: str) -> list[tuple[str, str]]:
    """Return the names of other tables of a recording that have a column, each with what asks for it."""
    sessions = recording.root / f"sub-{recording.label}" / f"sub-{recording.label}_sessions.tsv"
    try:
        events = recording.sidecar("events.tsv")
    except UnreadableRecordingError:
        return []  # reported when the recording is read
    tables = (
        (events, read_column_names(events), f": --target events-column:{column}"),
        (
            sessions,
            _columns_of(sessions),
            ", a value for each session: --target table:FILE reads such a table",
        ),
    )
    found = [(file.name, use, [name.casefold() for name in names]) for file, names, use in tables]
    return [(name, use) for name, use, names in found if column.casefold() in names]


def _columns_of(path: Path) -> list[str]:
    try:
        return [str(name) for name in read_tsv(path).columns] if path.is_file() else []
    except UserError:
        return []
