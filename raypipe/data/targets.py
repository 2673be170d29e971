"""The targets, and the specifications ``NAME:ARGUMENT`` that name them.

=============================================  =====================================================================
``participants:COLUMN[:KIND]``                a column of participants.tsv, from consecutive windows. KIND is
                                               ``regression`` or ``classification``. Without it, text is classes,
                                               and so are the codes 0 and 1, 1 and 2, or -1 and 1 if three or more
                                               subjects have them; other numeric columns are regression targets
``bids-task:A,B,...``                          the BIDS task of a recording, from consecutive windows
``events:A,B,...``                            the value of an event (one of these), from the window after it
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

To add a target, write a subclass of `Target` with `segment` and, if the targets' kind or classes depend on the data,
`read_labels`. Add it to `TARGETS`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar
from unicodedata import normalize

from raypipe.core.errors import UserError, nearest
from raypipe.core.metrics import Kind
from raypipe.data.challenge import parse_challenge1, parse_challenge2
from raypipe.data.given_target import FUNCTIONS, GivenTarget
from raypipe.data.person_column import read_person_column
from raypipe.data.target_base import (
    Labels,
    Segment,
    Segments,
    Target,
    TargetSpec,
    WindowTiming,
    segments_of_subject,
    segments_side_by_side,
    split_names,
)
from raypipe.recordings.events import VALUE_COLUMNS, columns_with, event_values, match_events
from raypipe.recordings.recording import Recording
from raypipe.recordings.signal import UnreadableRecordingError

NO_EVENT = "recordings without an event of the target"
"""Reason for leaving recordings out."""


@dataclass(frozen=True)
class Participants(Target):
    """Predict a column of participants.tsv."""

    column: str = ""
    kind: Kind | None = None

    def read_labels(self, recordings: Sequence[Recording]) -> Labels:
        column = read_person_column(recordings, self.column, as_text=self.kind == "classification")
        where, values = column.where, column.values
        if not values:
            raise UserError(f"{where} is n/a for every subject that has recordings")
        distinct = sorted(set(values.values()))
        if len(distinct) < 2:
            raise UserError(f"{where} is {_shown(distinct[0])} for every subject; there is nothing to predict")
        if self._is_regression(column.is_numeric, distinct, len(values)):
            if not column.is_numeric:
                raise UserError(f"{where} holds text ('{distinct[0]}'); regression needs numbers")
            return Labels("regression", (), {subject: float(value) for subject, value in values.items()})
        if len(distinct) == len(values):
            raise UserError(f"{where} is different for every subject; classes need subjects that share one")
        index = {value: float(number) for number, value in enumerate(distinct)}
        targets = {subject: index[value] for subject, value in values.items()}
        return Labels("classification", tuple(_shown(value) for value in distinct), targets)

    def _is_regression(self, numeric: bool, distinct: Sequence[float | str], n_subjects: int) -> bool:
        if self.kind is not None:
            return self.kind == "regression"
        return numeric and not _are_codes(distinct, n_subjects)

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


@dataclass(frozen=True)
class Events(Target):
    """Predict the value of an event from the window after it."""

    values: tuple[str, ...] = ()

    default_window: ClassVar[float] = 1.0
    event_locked: ClassVar[bool] = True

    def read_labels(self, recordings: Sequence[Recording]) -> Labels:
        _check_values(self, self.values, recordings)
        return Labels("classification", self.values)

    def segment(self, recording: Recording, duration: float, timing: WindowTiming, labels: Labels | None) -> Segments:
        found = match_events(recording.sidecar("events.tsv"), self.values)
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
        _check_values(self, self.values, recordings)
        return Labels("regression")

    def segment(self, recording: Recording, duration: float, timing: WindowTiming, labels: Labels | None) -> Segments:
        return super().segment(recording, duration, timing, None)


def _are_codes(values: Sequence[float | str], n_subjects: int) -> bool:
    """Return whether numbers are the codes of two classes (0 and 1, 1 and 2, -1 and 1) that subjects share."""
    return len(values) == 2 < n_subjects and tuple(values) in ((0, 1), (1, 2), (-1, 1))


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.15g}"


def _check_values(target: Target, values: Sequence[str], recordings: Sequence[Recording]) -> None:
    """Check that every value is that of some event; the error names similar values, or the column that has it."""
    missing, files = set(values), []
    for recording in recordings:
        try:
            files.append(recording.sidecar("events.tsv"))
            missing -= set(match_events(files[-1], values).values)
        except UnreadableRecordingError:
            continue  # reported when this recording itself is read
        if not missing:
            return
    name = sorted(missing)[0]
    seen = dict.fromkeys(value for file in files for value in _values_in(file))
    problem = f"target '{target.spec}': no event has the value '{name}'"
    if files and not any(file.is_file() for file in files):
        raise UserError(f"{problem}; no recording has an events.tsv (annotations inside the files are not read)")
    for file in files:
        columns = columns_with(file, name)
        if columns:
            raise UserError(f"{problem}; it stands in column '{columns[0]}' of {file}, values in {VALUE_COLUMNS[1]}")
    raise UserError(f"{problem}; {nearest(name, sorted(seen))}")


def _values_in(file: Path) -> Iterator[str]:
    with contextlib.suppress(UnreadableRecordingError):
        for counts in event_values(file).values():
            yield from counts


def _parse_participants(spec: str, argument: str) -> Target:
    column, _, last = argument.rpartition(":")
    if column and last in ("regression", "classification"):
        return Participants(spec, column=column, kind="regression" if last == "regression" else "classification")
    if not argument:
        raise UserError(f"target '{spec}': needs a column of participants.tsv, such as participants:age")
    return Participants(spec, column=argument)


TARGETS: dict[str, Callable[[str, str], Target]] = {
    "participants": _parse_participants,
    "bids-task": lambda spec, argument: BidsTask(spec, bids_tasks=split_names(spec, argument, 2)),
    "events": lambda spec, argument: Events(spec, values=split_names(spec, argument, 2)),
    "latency": lambda spec, argument: Latency(spec, values=split_names(spec, argument, 1)),
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
        raise UserError(f"target '{spec}': unknown target '{name}'; {nearest(name, TARGETS)}")
    target = TARGETS[name](spec, argument.strip())
    if not asked.bids_task:
        return target
    if target.selects_recordings:
        raise UserError(f"target '{spec}': it selects its recordings by their BIDS task; leave out --bids-task")
    return replace(target, bids_tasks=_named_bids_tasks(asked.bids_task))


def _named_bids_tasks(names: Sequence[str]) -> tuple[str, ...]:
    given = tuple(normalize("NFC", name.strip()) for name in names)
    if not all(given):
        raise UserError("--bids-task: a name is empty")
    repeated = [name for name in given if given.count(name) > 1]
    if repeated:
        raise UserError(f"--bids-task: '{repeated[0]}' is given twice")
    return given
