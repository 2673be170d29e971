"""The tasks, and the specifications that name them.

A specification is ``NAME:ARGUMENT[@BIDS-TASK,...]``. The part after ``@`` selects the recordings of these BIDS tasks.

=============================================  =====================================================================
``participants:COLUMN[:KIND][@...]``           a column of participants.tsv, from windows side by side. KIND is
                                               ``regression`` or ``classification``. Without it, text is classes,
                                               and so are numbers if three or more subjects share two values; other
                                               numbers are regressed on
``bids-task:A,B,...``                          the BIDS task of a recording, from windows side by side
``events:A,B,...[@...]``                       the value of an event (one of these), from the window after it
``latency:A[,B...][@...]``                     the offset (s) at which a crop starts in the window after such an event
``challenge1[:OPTION,...]``                    response time in HBN-EEG's contrast-change detection. Options:
                                               ``drop-duplicates`` (leave out trials that are copies of trials of an
                                               earlier run), ``mark-early`` (write ``early`` in the table's column
                                               `mark` if a button was pressed before the target) and those of
                                               ``challenge2``
``challenge2[:OPTION,...][@...]``              externalizing, of contrast-change recordings or those after the @.
                                               Options: ``with-excluded`` (keep the nine subjects that the start kit
                                               leaves out), ``no-caution`` (leave out recordings marked ``caution``)
=============================================  =====================================================================

To add a task, write a subclass of `Task` with `segment` and, if the targets' kind or classes depend on the data,
`read_labels`. Add it to `TASKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pandas as pd

from raypipe.core.errors import UserError, nearest
from raypipe.core.metrics import Kind
from raypipe.data.bids import Recording, UnreadableRecordingError
from raypipe.data.bids_tables import missing_column, read_events, read_participants
from raypipe.data.challenge import parse_challenge1, parse_challenge2
from raypipe.data.task_base import (
    Labels,
    Segment,
    Segments,
    Task,
    WindowTiming,
    segments_of_subject,
    segments_side_by_side,
    split_names,
)


@dataclass(frozen=True)
class Participants(Task):
    """Predict a column of participants.tsv."""

    column: str = ""
    kind: Kind | None = None

    def read_labels(self, recordings: Sequence[Recording]) -> Labels:
        where = f"{recordings[0].root / 'participants.tsv'}: column '{self.column}'"
        values = self._read_column(recordings)
        if values.empty:
            raise UserError(f"{where} is n/a for every subject that has recordings")
        distinct = sorted(values.unique().tolist())
        if len(distinct) < 2:
            raise UserError(f"{where} is {distinct[0]} for every subject; there is nothing to predict")
        subjects = [str(subject) for subject in values.index]
        numeric = values.dtype.kind in "iuf"
        if self._is_regression(numeric, len(distinct), len(values)):
            if not numeric:
                raise UserError(f"{where} holds text ('{distinct[0]}'); regression needs numbers")
            return Labels("regression", (), dict(zip(subjects, map(float, values), strict=True)))
        if len(distinct) == len(values):
            raise UserError(f"{where} is different for every subject; classes need subjects that share one")
        index = {value: float(i) for i, value in enumerate(distinct)}
        classes = tuple(f"{value:g}" if numeric else str(value) for value in distinct)
        targets = [index[value] for value in values.tolist()]
        return Labels("classification", classes, dict(zip(subjects, targets, strict=True)))

    def _is_regression(self, numeric: bool, n_distinct: int, n_subjects: int) -> bool:
        if self.kind is not None:
            return self.kind == "regression"
        is_binary = n_distinct == 2 < n_subjects  # two subjects with two ages are no two classes
        return numeric and not is_binary

    def _read_column(self, recordings: Sequence[Recording]) -> pd.Series[Any]:
        """Return the values of the subjects that have recordings, by subject; missing ones are left out."""
        columns = []
        for root in {r.root: None for r in recordings}:
            table = read_participants(root)
            if self.column not in table.columns:
                raise UserError(missing_column(root / "participants.tsv", self.column, table))
            columns.append(table[self.column])
        column = columns[0] if len(columns) == 1 else pd.concat(columns)
        column = column[~column.index.duplicated()]  # every release folder may list all subjects
        return column[column.index.isin({r.subject for r in recordings})].dropna()

    def segment(self, recording: Recording, duration: float, timing: WindowTiming, labels: Labels | None) -> Segments:
        return segments_of_subject(recording, duration, timing, labels)


@dataclass(frozen=True)
class BidsTask(Task):
    """Predict the BIDS task of a recording."""

    selects_recordings: ClassVar[bool] = True

    def read_labels(self, recordings: Sequence[Recording]) -> Labels:
        return Labels("classification", self.bids_tasks)

    def segment(self, recording: Recording, duration: float, timing: WindowTiming, labels: Labels | None) -> Segments:
        target = labels.classes.index(recording.task or "") if labels else float("nan")
        return segments_side_by_side(duration, timing, float(target))


@dataclass(frozen=True)
class Events(Task):
    """Predict the value of an event from the window after it."""

    values: tuple[str, ...] = ()

    default_window: ClassVar[float] = 1.0
    event_locked: ClassVar[bool] = True

    def read_labels(self, recordings: Sequence[Recording]) -> Labels:
        _check_values(self, self.values, recordings)
        return Labels("classification", self.values)

    def segment(self, recording: Recording, duration: float, timing: WindowTiming, labels: Labels | None) -> Segments:
        events = read_events(recording)
        found = events[events["value"].isin(self.values)]
        target = {value: float(i) if labels else float("nan") for i, value in enumerate(self.values)}
        pairs = zip(found["onset"], found["value"], strict=True)
        return Segments([Segment(onset + timing.tmin, target[value]) for onset, value in pairs])


@dataclass(frozen=True)
class Latency(Events):
    """Predict the offset of a crop in the window after an event: a regression for any event-locked data."""

    target_is_offset: ClassVar[bool] = True

    def read_labels(self, recordings: Sequence[Recording]) -> Labels:
        _check_values(self, self.values, recordings)
        return Labels("regression")

    def segment(self, recording: Recording, duration: float, timing: WindowTiming, labels: Labels | None) -> Segments:
        return super().segment(recording, duration, timing, None)


def _check_values(task: Task, values: Iterable[str], recordings: Sequence[Recording]) -> None:
    missing = set(values)
    seen: set[str] = set()
    for recording in recordings:
        try:
            present = set(read_events(recording)["value"])
        except UnreadableRecordingError:
            continue  # reported when this recording itself is read
        seen |= present
        missing -= present
        if not missing:
            return
    name = sorted(missing)[0]
    raise UserError(f"task '{task.spec}': no event has the value '{name}'; {nearest(name, sorted(seen))}")


def _parse_participants(spec: str, argument: str) -> Task:
    column, _, last = argument.rpartition(":")
    if column and last in ("regression", "classification"):
        return Participants(spec, column=column, kind="regression" if last == "regression" else "classification")
    if not argument:
        raise UserError(f"task '{spec}': needs a column of participants.tsv, such as participants:age")
    return Participants(spec, column=argument)


TASKS: dict[str, Callable[[str, str], Task]] = {
    "participants": _parse_participants,
    "bids-task": lambda spec, argument: BidsTask(spec, bids_tasks=split_names(spec, argument, 2)),
    "events": lambda spec, argument: Events(spec, values=split_names(spec, argument, 2)),
    "latency": lambda spec, argument: Latency(spec, values=split_names(spec, argument, 1)),
    "challenge1": parse_challenge1,
    "challenge2": parse_challenge2,
}
"""Functions that make a task from its whole specification and its argument, by the task's name."""


def parse_task(spec: str) -> Task:
    """Return the task of a specification (see the table above).

    Raises
    ------
    UserError
        The task is unknown (names the nearest one), or does not take the argument.
    """
    text, at, only = spec.strip().partition("@")
    name, _, argument = text.partition(":")
    if name not in TASKS:
        raise UserError(f"task '{spec}': unknown task '{name}'; {nearest(name, TASKS)}")
    task = TASKS[name](spec.strip(), argument.strip())
    if not at:
        return task
    if task.selects_recordings:
        raise UserError(f"task '{spec}': {name} already selects its recordings; leave out '@{only}'")
    return replace(task, bids_tasks=split_names(spec, only, 1))
