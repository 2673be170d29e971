"""What is predicted: where a task's windows lie in a recording and what their targets are.

A specification is ``NAME:ARGUMENT[@BIDS-TASK,...]``; what follows ``@`` keeps recordings of these BIDS tasks only.

=============================================  =====================================================================
``participants:COLUMN[:KIND][@...]``           a column of participants.tsv, from windows side by side. KIND is
                                               ``regression`` or ``classification``; without it, text is classes,
                                               and so are numbers if three or more subjects share two values; other
                                               numbers are regressed on
``bids-task:A,B,...``                          which BIDS task a recording is of, from windows side by side
``events:A,B,...[@...]``                       which of these values an event has, from the window after it
``latency:A[,B...][@...]``                     the offset (s) at which a crop begins in the window after such an event
``challenge1[:OPTION,...]``                    response time in HBN-EEG's contrast-change detection. Options:
                                               ``drop-duplicates`` (trials of a block that an earlier run of the
                                               subject holds already), ``mark-early`` (the table's column `mark` says
                                               ``early`` where a button was pressed before the target) and those of
                                               ``challenge2``
``challenge2[:OPTION,...][@...]``              externalizing, of contrast-change recordings or those after the @.
                                               Options: ``with-excluded`` (keep the nine subjects that the start kit
                                               leaves out), ``no-caution`` (leave out recordings so marked)
=============================================  =====================================================================

A new task is a class with `windows` and, where the data decides on kind or classes, `bind`, entered in `TASKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import pandas as pd

from raypipe.core.errors import UserError, nearest
from raypipe.data.bids import Recording, UnreadableRecordingError, read_events, read_participants
from raypipe.data.challenge import CONTRAST_TASK, Challenge2, contrast_trials, parse_challenge1, parse_challenge2
from raypipe.data.task_base import Cut, Kind, Labels, Layout, Span, Task, side_by_side, split_names

__all__ = ["CONTRAST_TASK", "TASKS", "Cut", "Kind", "Labels", "Layout", "Span", "Task", "contrast_trials", "parse_task"]


@dataclass(frozen=True)
class Participants(Task):
    """A column of participants.tsv."""

    column: str = ""
    kind: Kind | None = None

    def bind(self, recordings: Sequence[Recording]) -> Labels:
        roots = list({r.root: None for r in recordings})
        tables = []
        for root in roots:
            here = read_participants(root)
            if self.column not in here.columns:
                raise UserError(
                    f"{root / 'participants.tsv'}: no column '{self.column}'; {nearest(self.column, here.columns)}"
                )
            tables.append(here[[self.column]])
        table = tables[0] if len(tables) == 1 else pd.concat(tables)
        table = table[~table.index.duplicated()]  # several folders, each with all subjects' rows
        where = f"{roots[0] / 'participants.tsv'}: column '{self.column}'"
        subjects = {r.subject for r in recordings}
        values = table[self.column][table.index.isin(subjects)].dropna()
        if values.empty:
            raise UserError(f"{where} is n/a for every subject that has recordings")
        names = [str(s) for s in values.index]
        distinct = sorted(values.unique().tolist())
        numeric = values.dtype.kind in "iuf"
        # Two subjects of two ages are no classes yet.
        binary = len(distinct) == 2 < len(values)
        kind = self.kind or ("regression" if numeric and not binary else "classification")
        if len(distinct) < 2:
            raise UserError(f"{where} is {distinct[0]} for every subject; there is nothing to predict")
        if kind == "regression":
            if not numeric:
                raise UserError(f"{where} holds text ('{distinct[0]}'); regression needs numbers")
            return Labels(kind, (), dict(zip(names, map(float, values), strict=True)))
        if len(distinct) == len(values):
            raise UserError(f"{where} is different for every subject; classes need subjects that share one")
        index = {value: float(i) for i, value in enumerate(distinct)}
        classes = tuple(f"{value:g}" if numeric else str(value) for value in distinct)
        return Labels(kind, classes, dict(zip(names, map(index.__getitem__, values.tolist()), strict=True)))

    def windows(self, recording: Recording, duration: float, layout: Layout, labels: Labels | None) -> Cut:
        known = (labels.by_subject or {}) if labels else {}
        return side_by_side(duration, layout, known.get(recording.subject, float("nan")))


@dataclass(frozen=True)
class BidsTask(Task):
    """The BIDS task a recording is of."""

    def bind(self, recordings: Sequence[Recording]) -> Labels:
        return Labels("classification", self.bids_tasks)

    def windows(self, recording: Recording, duration: float, layout: Layout, labels: Labels | None) -> Cut:
        target = labels.classes.index(recording.task or "") if labels else float("nan")
        return side_by_side(duration, layout, float(target))


@dataclass(frozen=True)
class Events(Task):
    """The value of an event."""

    values: tuple[str, ...] = ()

    default_window: ClassVar[float] = 1.0
    event_locked: ClassVar[bool] = True

    def bind(self, recordings: Sequence[Recording]) -> Labels:
        _check_values(self, self.values, recordings)
        return Labels("classification", self.values)

    def windows(self, recording: Recording, duration: float, layout: Layout, labels: Labels | None) -> Cut:
        events = read_events(recording)
        found = events[events["value"].isin(self.values)]
        index = {value: float(i) if labels else float("nan") for i, value in enumerate(self.values)}
        return Cut([Span(o + layout.tmin, index[v]) for o, v in zip(found["onset"], found["value"], strict=True)])


@dataclass(frozen=True)
class Latency(Events):
    """Where in the window after an event a crop begins: a regression that any event-locked data can pose."""

    target_is_offset: ClassVar[bool] = True

    def bind(self, recordings: Sequence[Recording]) -> Labels:
        _check_values(self, self.values, recordings)
        return Labels("regression")

    def windows(self, recording: Recording, duration: float, layout: Layout, labels: Labels | None) -> Cut:
        return super().windows(recording, duration, layout, None)


def _check_values(task: Task, values: Iterable[str], recordings: Sequence[Recording]) -> None:
    missing = set(values)
    seen: set[str] = set()
    for recording in recordings:
        try:
            here = set(read_events(recording)["value"])
        except UnreadableRecordingError:
            continue  # the turn of the recording itself will tell
        seen |= here
        missing -= here
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
"""Name of a task to the function that makes it from the whole specification and its argument."""


def parse_task(spec: str) -> Task:
    """Read a task's specification (see the module's table).

    Raises
    ------
    UserError
        An unknown task, with the nearest right name, or an argument that it cannot take.
    """
    text, at, only = spec.strip().partition("@")
    name, _, argument = text.partition(":")
    if name not in TASKS:
        raise UserError(f"task '{spec}': unknown task '{name}'; {nearest(name, TASKS)}")
    task = TASKS[name](spec.strip(), argument.strip())
    if not at:
        return task
    if task.bids_tasks and not isinstance(task, Challenge2):
        raise UserError(f"task '{spec}': {name} itself says which recordings it is about; leave out '@{only}'")
    return replace(task, bids_tasks=split_names(spec, only, 1))
