"""Rows of a table of labels, and the recordings that they are of, by the columns that both have."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from raypipe.core.errors import UserError
from raypipe.recordings.participants import match_labels
from raypipe.recordings.recording import Recording
from raypipe.recordings.tables import find_column, is_missing, list_some, parse_number, read_table

KEYS = {
    "participant_id": ("participant_id",),
    "session": ("session", "session_id"),
    "task": ("task", "task_id"),
    "run": ("run", "run_id"),
    "onset": ("onset",),
}
"""Columns that a table is joined on, and their spellings; the first is needed."""


class Row(NamedTuple):
    """A row of a table of labels."""

    line: int
    """In the file; its first line has the names."""
    labels: tuple[str, ...]
    """Of subject, session, task and run, as far as the table is joined on them; empty where missing."""
    onset: float
    """Seconds; NaN where the table has none."""
    cell: str


def read_rows(file: str, column: str, joined_on: Sequence[str]) -> list[Row]:
    """Read the rows of a table, with the cells of a column.

    Raises
    ------
    UserError
        An onset is no number.
    """
    path = Path(file).expanduser()
    table = read_table(path)
    columns = {key: next(filter(None, (find_column(table, name) for name in KEYS[key]))) for key in joined_on}
    cells = table[find_column(table, column)]
    rows = []
    for line in table.index:
        own = {key: str(table.at[line, name]) for key, name in columns.items()}
        onset = parse_number(own.get("onset", "nan"))
        if onset is None and not is_missing(own.get("onset", "")):
            raise UserError(f"{path}: line {line}: onset '{own['onset']}' is no number of seconds")
        labels = tuple(_label(cell) for key, cell in own.items() if key != "onset")
        rows.append(Row(int(line), labels, float("nan") if onset is None else onset, str(cells[line])))
    return rows


def _label(cell: str) -> str:
    """Return a label without its prefix, such as ``sub-``; empty where it is missing."""
    return "" if is_missing(cell) else re.sub(r"^(sub|ses|task|run)-", "", cell, flags=re.IGNORECASE)


def join_rows(
    file: str, joined_on: Sequence[str], rows: Sequence[Row], recordings: Sequence[Recording]
) -> list[tuple[Recording, list[Row]]]:
    """Return the recordings that have rows, with these. Labels are matched as those of participants.tsv are.

    Raises
    ------
    UserError
        No recording has one; names the first column in which none matches.
    """
    keys = [key for key in joined_on if key != "onset"]
    entities = [tuple(_entities(recording)[key] or "" for key in keys) for recording in recordings]
    row_labels = list(zip(*(row.labels for row in rows), strict=True))
    own_labels = list(zip(*entities, strict=True))
    spelt = [match_labels(own, dict.fromkeys(theirs)) for own, theirs in zip(own_labels, row_labels, strict=False)]
    by_labels: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        by_labels[row.labels].append(row)
    wanted = [tuple(names.get(label, "\0") for label, names in zip(own, spelt, strict=False)) for own in entities]
    joined = [(r, by_labels[labels]) for r, labels in zip(recordings, wanted, strict=True) if labels in by_labels]
    if rows and not joined:
        problem = f"{file}: no row matches a recording (joined on {', '.join(joined_on)})"
        columns = zip(keys, own_labels, row_labels, spelt, strict=True)
        odd = [_nothing_in_common(key, own, theirs) for key, own, theirs, names in columns if not names]
        raise UserError("; ".join([problem, *odd[:1]]))
    return joined


def _nothing_in_common(key: str, own: Sequence[str], in_table: Sequence[str]) -> str:
    """Return a clause on a column in which no row has the label of a recording."""
    present = sorted(set(own) - {""})
    if not present:
        return f"no recording has a {key}; leave this column out"
    return f"{key} is {list_some(sorted(set(in_table)))} in the table, {list_some(present)} of the recordings"


def _entities(recording: Recording) -> dict[str, str | None]:
    return {
        "participant_id": recording.subject,
        "session": recording.session,
        "task": recording.task,
        "run": recording.run,
    }


def refuse_shared_rows(file: str, matched: Sequence[tuple[Recording, Sequence[Row]]]) -> None:
    """Check that no row is that of events of several recordings, which have equal onsets where timing is fixed.

    Raises
    ------
    UserError
        One is; names the columns that would tell the recordings apart.
    """
    for row, one, other in _shared(matched):
        raise UserError(
            f"{file}: line {row.line} (onset {row.onset:g} s) is that of an event of {one.key} and of one of "
            f"{other.key}; add a column that distinguishes them ({_differing([(one, other)])})"
        )


def note_on_shared_rows(matched: Sequence[tuple[Recording, Sequence[Row]]]) -> str:
    """Return a sentence on rows that are those of several recordings; empty if there are none."""
    shared = _shared(matched)
    n = len({row.line for row, _, _ in shared})
    if not n:
        return ""
    differing = _differing([(one, other) for _, one, other in shared])
    return f" {n} of them {'is' if n == 1 else 'are'} of several recordings each, which differ in {differing}."


def _shared(matched: Sequence[tuple[Recording, Sequence[Row]]]) -> list[tuple[Row, Recording, Recording]]:
    """Return the rows that several recordings have, each with the first of these and another."""
    owners: dict[int, Recording] = {}
    found = []
    for recording, rows in matched:
        for row in rows:
            first = owners.setdefault(row.line, recording)
            if first.key != recording.key:
                found.append((row, first, recording))
    return found


def _differing(pairs: Sequence[tuple[Recording, Recording]]) -> str:
    """Return the names of the columns in which the recordings of any pair differ."""
    names = [key for key in KEYS if key != "onset"]
    different = [key for key in names if any(_entities(one)[key] != _entities(other)[key] for one, other in pairs)]
    return ", ".join(different or names[1:])
