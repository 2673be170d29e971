"""The interface of a target, which places windows in recordings and reads their targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from raypipe.core.errors import UserError, nearest
from raypipe.core.metrics import Kind
from raypipe.core.record import FrozenModel
from raypipe.recordings.recording import Recording

_ROUNDING = 1e-6
"""Seconds by which a window may reach beyond its recording: times are rounded."""


Value = float | tuple[float, ...]
"""Target of a window: a value, the place of its class, or several values."""


class TargetSpec(FrozenModel):
    """What is to be predicted, as it is asked for."""

    target: str
    """Specification; see `raypipe.data.targets`."""
    bids_task: tuple[str, ...] = ()
    """BIDS tasks whose recordings are used; empty for all, or for those that the target itself names."""
    events_from: str | None = None
    """Column of events.tsv that values of events are read from; None for ``value`` or ``trial_type``."""
    select: str | None = None
    """Condition that events must satisfy (`raypipe.recordings.event_query`); None for all."""


@dataclass(frozen=True)
class WindowTiming:
    """Length and placement of windows, in seconds."""

    window: float
    stride: float
    """Time from one window to the next, where windows are consecutive."""
    tmin: float
    """Time from an event to the start of its window."""


@dataclass(frozen=True)
class Labels:
    """The kind of a target, and those that belong to subjects."""

    kind: Kind
    classes: tuple[str, ...] = ()
    """Names of the classes; a target is an index into them. Empty for regression."""
    by_subject: Mapping[str, Value] | None = None
    """Target of each subject, where all windows of a subject share one. Subjects without a target are missing."""
    by_recording: Mapping[str, Value] | None = None
    """Target of each recording by its key, where those of a subject may differ. Recordings without one are missing."""
    by_onset: Mapping[str, Mapping[float, Value]] | None = None
    """Targets of a recording's events by their onset (s), by the recording's key, where a table gives them."""
    notes: tuple[str, ...] = field(default=(), repr=False, compare=False)
    """Sentences on how the values were taken."""
    outputs: tuple[str, ...] = field(default=(), repr=False)
    """Names of the values, where a target has several; it is then a regression."""

    def target_of(self, recording: Recording) -> Value:
        """Return the target that all windows of a recording share; NaN where it has none."""
        by_subject, by_recording = self.by_subject or {}, self.by_recording or {}
        return by_recording.get(recording.key, by_subject.get(recording.subject, float("nan")))

    def has(self, recording: Recording) -> bool:
        """Return whether a recording has targets; those that its own events give are not looked at."""
        tables = (
            (self.by_subject, recording.subject),
            (self.by_recording, recording.key),
            (self.by_onset, recording.key),
        )
        return all(table is None or name in table for table, name in tables)

    def of(self, recording: Recording) -> Labels:
        """Return what the windows of a recording depend on: the labels without targets of others."""
        by_subject, by_recording, by_onset = self.by_subject, self.by_recording, self.by_onset
        return Labels(
            self.kind,
            self.classes,
            None if by_subject is None else {recording.subject: by_subject[recording.subject]},
            None if by_recording is None else {recording.key: by_recording[recording.key]},
            None if by_onset is None else {recording.key: by_onset[recording.key]},
            outputs=self.outputs,
        )


@dataclass(frozen=True)
class Segment:
    """Onset and target of a window, before its signal is read."""

    onset: float
    """Start in seconds from the recording's start."""
    target: Value = float("nan")
    """Value or values, or index of the class; NaN where unknown."""
    mark: str = ""
    """Text for the table's column `mark`."""


@dataclass
class Segments:
    """The windows of one recording, and the number of those left out for each reason."""

    segments: list[Segment]
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Target(ABC):
    """What is predicted, and where its windows are. `raypipe.data.targets.parse_target` makes it."""

    spec: str
    """The specification."""
    bids_tasks: tuple[str, ...] = ()
    """BIDS tasks whose recordings are used; empty for all."""
    joined_on: tuple[str, ...] = ()
    """Columns that a table of labels is joined on; empty for other targets."""

    default_window: ClassVar[float] = 2.0
    """Seconds."""
    default_tmin: ClassVar[float] = 0.0
    """Seconds."""
    default_stride: ClassVar[float | None] = None
    """Seconds; None for windows that do not overlap."""
    event_locked: ClassVar[bool] = False
    """Windows are placed at events; otherwise they are consecutive."""
    target_is_offset: ClassVar[bool] = False
    """The target is the start of the crop in its window (s); the targets that `segment` returns are not used."""
    target_is_time: ClassVar[bool] = False
    """The target is a time within the window, so that windows must not be shifted."""
    selects_recordings: ClassVar[bool] = False
    """The target itself decides the BIDS tasks, so that none may be named."""
    scorer_crops: ClassVar[bool] = False
    """Evaluated crops start where the challenge's scorer draws them (`challenge.scorer_offsets`)."""

    def default_crop(self, window: float) -> float | None:
        """Return the seconds of a window that a model sees at a time; None for the whole window."""
        return window / 2 if self.target_is_offset else None

    def select(self, recordings: Sequence[Recording]) -> list[Recording]:
        """Return the recordings of the target's BIDS tasks.

        Raises
        ------
        UserError
            No recording has one of the BIDS tasks.
        """
        if not self.bids_tasks:
            return list(recordings)
        present = sorted({r.task for r in recordings if r.task})
        for name in self.bids_tasks:
            if name not in present:
                raise UserError(f"target '{self.spec}': no recording of BIDS task '{name}'; {nearest(name, present)}")
        return [r for r in recordings if r.task in self.bids_tasks]

    def exclude(self, recordings: Sequence[Recording]) -> dict[Recording, str]:
        """Return the recordings that the data set marks as unusable, with the reason."""
        return {}

    def extra_files(self, recording: Recording) -> list[Path]:
        """Return the files of other recordings that this recording's windows depend on."""
        return []

    def read_labels(self, recordings: Sequence[Recording]) -> Labels:
        """Read the kind of the targets and their classes from the data.

        Raises
        ------
        UserError
            The data lacks a column, an event or a value that the target needs.
        """
        return Labels("regression")

    @abstractmethod
    def segment(self, recording: Recording, duration: float, timing: WindowTiming, labels: Labels | None) -> Segments:
        """Place the windows of one recording.

        Parameters
        ----------
        recording
            The recording. Its events may be read, but not its signal.
        duration
            Length of the recording in seconds.
        timing
            Length and placement of the windows.
        labels
            Result of `read_labels`. None for prediction: targets are NaN.
        """


def segments_side_by_side(duration: float, timing: WindowTiming, target: Value) -> Segments:
    """Place as many windows as fit, from the recording's start on."""
    count = int(np.floor((duration - timing.window + _ROUNDING) / timing.stride)) + 1
    if count < 1:
        return Segments([], Counter({"recordings shorter than a window": 1}))
    return Segments([Segment(i * timing.stride, target) for i in range(count)])


def segments_of_subject(recording: Recording, duration: float, timing: WindowTiming, labels: Labels | None) -> Segments:
    """Place consecutive windows, with the target of the recording or its subject; NaN without labels or target."""
    return segments_side_by_side(duration, timing, labels.target_of(recording) if labels else float("nan"))


def split_names(spec: str, argument: str, at_least: int) -> tuple[str, ...]:
    """Return the names in a text that separates them by commas.

    Raises
    ------
    UserError
        There are fewer than `at_least`, or a name is repeated.
    """
    names = tuple(name.strip() for name in argument.split(",") if name.strip())
    if len(names) < at_least:
        raise UserError(f"target '{spec}': needs at least {at_least} name{'s' * (at_least > 1)}, separated by commas")
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise UserError(f"target '{spec}': '{repeated[0]}' is given twice")
    return names
