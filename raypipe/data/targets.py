"""The targets, and the specifications ``NAME:ARGUMENT`` that name them.

=============================================  =====================================================================
``participants:COLUMN[:KIND]``                a column of participants.tsv, from consecutive windows. KIND is
                                               ``regression`` or ``classification``. Without it, text is classes,
                                               and so are the codes 0 and 1, 1 and 2, or -1 and 1 if three or more
                                               subjects have them; other numeric columns are regression targets
``bids-task:A,B,...``                          the BIDS task of a recording, from consecutive windows
``events:A,B,...``                            the value of an event (one of these), from the window after it
``events-column:COLUMN[:KIND]``                a column of events.tsv, from the window after each event with a value.
                                               Numbers are regression targets, text is classes; KIND as above
``table:FILE:COLUMN[:KIND]``                   a column of a CSV or TSV file, joined on participant_id, and on session,
                                               task, run and onset where it has them: from consecutive windows, or with
                                               an onset from the windows after events
``latency:A[,B...]``                          the offset (s) at which a crop starts in the window after such an event
``challenge1[:OPTION,...]``                    response time in HBN-EEG's contrast-change detection. Options:
                                               ``drop-duplicates`` (leave out trials that are copies of trials of an
                                               earlier run), ``mark-early`` (write ``early`` in the table's column
                                               `mark` if a button was pressed before the target) and those of
                                               ``challenge2``
``challenge2[:OPTION,...]``                   externalizing, of contrast-change recordings or those of ``--bids-task``.
                                               Options: ``with-excluded`` (keep the nine subjects that the start kit
                                               leaves out), ``no-caution`` (leave out recordings marked ``caution``)
=============================================  =====================================================================

``participants``, ``events-column`` and ``table`` take several columns of numbers, separated by commas: a regression of
several values, which leaves out people or windows that lack one of them.

To add a target, write a subclass of `Target` with `segment` and, if the targets' kind or classes depend on the data,
`read_labels`. Add it to `TARGETS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar
from unicodedata import normalize

from raypipe.core.errors import UserError, nearest
from raypipe.core.metrics import Kind
from raypipe.data.challenge import parse_challenge1, parse_challenge2
from raypipe.data.column_labels import column_labels
from raypipe.data.event_targets import Events, EventsColumn, EventTarget, Latency
from raypipe.data.given_target import FUNCTIONS, GivenTarget
from raypipe.data.manifest import Plan
from raypipe.data.person_column import other_tables, read_person_column
from raypipe.data.several_columns import named_columns, read_each_column, split_columns
from raypipe.data.table_target import parse_table
from raypipe.data.target_base import (
    Labels,
    Segments,
    Target,
    TargetSpec,
    WindowTiming,
    segments_of_subject,
    segments_side_by_side,
    split_names,
)
from raypipe.recordings.event_query import parse_query
from raypipe.recordings.participants import participants_table
from raypipe.recordings.recording import Recording
from raypipe.recordings.tables import find_column


@dataclass(frozen=True)
class Participants(Target):
    """Predict a column of participants.tsv, or several of numbers."""

    columns: tuple[str, ...] = ()
    kind: Kind | None = None

    def read_labels(self, recordings: Sequence[Recording]) -> Labels:
        columns = named_columns(self.columns, self.spec.partition(":")[2], partial(_has_column, recordings))
        return read_each_column(self.spec, columns, self.kind, lambda name: self._read(recordings, name))

    def _read(self, recordings: Sequence[Recording], name: str) -> Labels:
        column = read_person_column(recordings, name, as_text=self.kind == "classification")
        labels = column_labels(column.values, column.where, self.kind, is_numeric=column.is_numeric)
        others = other_tables(recordings[0], name)
        twice = [f"'{name}' is read from participants.tsv; {file} has it too{use}." for file, use in others]
        return replace(labels, notes=(*labels.notes, *twice))

    def segment(self, recording: Recording, duration: float, timing: WindowTiming, labels: Labels | None) -> Segments:
        return segments_of_subject(recording, duration, timing, labels)


@dataclass(frozen=True)
class BidsTask(Target):
    """Predict the BIDS task of a recording."""

    selects_recordings: ClassVar[bool] = True

    def read_labels(self, recordings: Sequence[Recording]) -> Labels:
        return Labels("classification", self.bids_tasks)

    def segment(self, recording: Recording, duration: float, timing: WindowTiming, labels: Labels | None) -> Segments:
        target = labels.classes.index(recording.task or "") if labels else float("nan")
        return segments_side_by_side(duration, timing, float(target))


def _has_column(recordings: Sequence[Recording], column: str) -> bool:
    """Return whether a participants.tsv has a column."""
    tables = [participants_table(root) for root in {recording.root for recording in recordings}]
    return any(table is not None and find_column(table, column) is not None for table in tables)


def _parse_participants(spec: str, argument: str) -> Target:
    columns, kind = split_columns(spec, argument)
    if not columns:
        raise UserError(f"target '{spec}': needs a column of participants.tsv, such as participants:age")
    return Participants(spec, columns=columns, kind=kind)


def _parse_events_column(spec: str, argument: str) -> Target:
    columns, kind = split_columns(spec, argument)
    if not columns:
        raise UserError(f"target '{spec}': needs a column of events.tsv, such as events-column:response_time")
    if "onset" in map(str.casefold, columns):
        raise UserError(f"target '{spec}': the onset is when the event is; name a column of what is to be predicted")
    return EventsColumn(spec, columns=columns, kind=kind)


TARGETS: dict[str, Callable[[str, str], Target]] = {
    "participants": _parse_participants,
    "bids-task": lambda spec, argument: BidsTask(spec, bids_tasks=split_names(spec, argument, 2)),
    "events": lambda spec, argument: Events(spec, values=split_names(spec, argument, 2)),
    "events-column": _parse_events_column,
    "latency": lambda spec, argument: Latency(spec, values=split_names(spec, argument, 1)),
    "table": parse_table,
    "challenge1": parse_challenge1,
    "challenge2": parse_challenge2,
    **{name: (lambda spec, argument: GivenTarget(spec)) for name in FUNCTIONS},
}
"""Functions that make a target from its whole specification and its argument, by the target's name."""


def parse_target(asked: TargetSpec | str) -> Target:
    """Return the target of a specification (see the table above).

    Parameters
    ----------
    asked
        The specification, alone or with the BIDS tasks whose recordings are used.

    Raises
    ------
    UserError
        The target is unknown (names the nearest one), or does not take the argument or BIDS tasks.
    """
    if isinstance(asked, str):
        asked = TargetSpec(target=asked)
    spec = asked.target.strip()
    name, _, argument = normalize("NFC", spec).partition(":")
    if name not in TARGETS:
        if name in ("event", "metadata"):
            raise UserError(f"target '{spec}': for --epochs only; recordings take events:A,B or events-column:COLUMN")
        known = [each for each in TARGETS if each not in FUNCTIONS]
        raise UserError(f"target '{spec}': unknown target '{name}'; {nearest(name, known)}")
    if name == "table" and isinstance(asked, Plan):  # perhaps of a bundle, which must not name files to read
        target: Target = parse_table(spec, argument.strip(), asked.joined_on or ("participant_id",))
    else:
        target = TARGETS[name](spec, argument.strip())
    target = _with_events(target, asked)
    if not asked.bids_task:
        return target
    if target.selects_recordings:
        raise UserError(f"target '{spec}': it selects its recordings by their BIDS task; leave out --bids-task")
    return replace(target, bids_tasks=_named_bids_tasks(asked.bids_task))


def _with_events(target: Target, asked: TargetSpec) -> Target:
    """Return the target at the events that are asked for."""
    if asked.events_from is not None:
        if not isinstance(target, Events):
            raise UserError(f"target '{target.spec}': it reads no values of events; leave out --events-from")
        if not asked.events_from.strip():
            raise UserError("--events-from: names no column")
        target = replace(target, events_from=asked.events_from.strip())
    if asked.select is None:
        return target
    if not isinstance(target, EventTarget):
        raise UserError(f"target '{target.spec}': no events can be chosen for its windows; leave out --select")
    return replace(target, query=parse_query(asked.select))


def _named_bids_tasks(names: Sequence[str]) -> tuple[str, ...]:
    given = tuple(normalize("NFC", name.strip()) for name in names)
    if not all(given):
        raise UserError("--bids-task: a name is empty")
    repeated = [name for name in given if given.count(name) > 1]
    if repeated:
        raise UserError(f"--bids-task: '{repeated[0]}' is given twice")
    return given
