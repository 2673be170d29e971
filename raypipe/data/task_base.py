"""What every task is: where its windows lie in a recording, and what their targets are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from raypipe.core.errors import UserError, nearest
from raypipe.data.bids import Recording

Kind = Literal["regression", "classification"]


@dataclass(frozen=True)
class Layout:
    """Shape of windows, in seconds."""

    window: float
    stride: float
    """From one window to the next, where windows lie side by side."""
    tmin: float
    """From an event to the start of its window."""


@dataclass(frozen=True)
class Labels:
    """What the data says about a task's targets."""

    kind: Kind
    classes: tuple[str, ...] = ()
    """Names of the classes; a target is an index into them. Empty for regression."""
    by_subject: dict[str, float] | None = None
    """Target of each subject, where it is one for all of a subject's windows; subjects without one are missing."""


@dataclass(frozen=True)
class Span:
    """A window before it is read."""

    onset: float
    """Start in seconds from the recording's start."""
    target: float = float("nan")
    """Value, or index of the class; NaN where unknown."""
    mark: str = ""
    """What a task notes about a window, for the table's column `mark`."""


@dataclass
class Cut:
    """Windows of one recording, and how many were left out for which reason."""

    spans: list[Span]
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Task(ABC):
    """One kind of target. Made by `parse_task`."""

    spec: str
    bids_tasks: tuple[str, ...] = ()
    """Recordings of these BIDS tasks only; empty for all."""

    default_window: ClassVar[float] = 2.0
    default_tmin: ClassVar[float] = 0.0
    event_locked: ClassVar[bool] = False
    """Windows lie at events; otherwise side by side."""
    target_is_offset: ClassVar[bool] = False
    """The target is where in its window a crop begins, whatever `windows` says."""

    default_stride: ClassVar[float | None] = None
    """Seconds from one window to the next; None for windows that do not overlap."""
    scorer_crops: ClassVar[bool] = False
    """Crops that are evaluated lie where the challenge's scorer draws them (`challenge.scorer_offsets`)."""

    def default_crop(self, window: float) -> float | None:
        """Seconds of a window that a model sees at a time; None for all of it."""
        return window / 2 if self.target_is_offset else None

    def select(self, recordings: Sequence[Recording]) -> list[Recording]:
        """Keep the recordings that the task is about.

        Raises
        ------
        UserError
            A BIDS task that no recording is of.
        """
        if not self.bids_tasks:
            return list(recordings)
        there = sorted({r.task for r in recordings if r.task})
        for name in self.bids_tasks:
            if name not in there:
                raise UserError(f"task '{self.spec}': no recording of BIDS task '{name}'; {nearest(name, there)}")
        return [r for r in recordings if r.task in self.bids_tasks]

    def sift(self, recordings: Sequence[Recording]) -> tuple[list[Recording], Counter[str]]:
        """Leave out what the data set itself says is of no use, and count it."""
        return list(recordings), Counter()

    def beside(self, recording: Recording) -> list[Path]:
        """Files, other than its own, that the windows of a recording depend on."""
        return []

    def bind(self, recordings: Sequence[Recording]) -> Labels:
        """Look up kind and classes in the data.

        Raises
        ------
        UserError
            The data lacks what the task names.
        """
        return Labels("regression")

    @abstractmethod
    def windows(self, recording: Recording, duration: float, layout: Layout, labels: Labels | None) -> Cut:
        """Lay the windows of one recording.

        Parameters
        ----------
        duration
            Length of the recording in seconds.
        labels
            What `bind` found. None to lay windows for prediction: targets are NaN and need not be known.
        """


def side_by_side(duration: float, layout: Layout, target: float) -> Cut:
    """Lay windows from the recording's start on, as many as fit in."""
    # A microsecond of grace: a window that ends with the recording is not lost to rounding.
    count = int(np.floor((duration - layout.window + 1e-6) / layout.stride)) + 1
    if count < 1:
        return Cut([], Counter({"recordings shorter than a window": 1}))
    return Cut([Span(i * layout.stride, target) for i in range(count)])


def split_names(spec: str, argument: str, at_least: int) -> tuple[str, ...]:
    """Names that are separated by commas.

    Raises
    ------
    UserError
        They are too few, or one is there twice.
    """
    names = tuple(name.strip() for name in argument.split(",") if name.strip())
    if len(names) < at_least:
        raise UserError(f"task '{spec}': needs at least {at_least} name{'s' * (at_least > 1)}, separated by commas")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"task '{spec}': '{twice[0]}' is there twice")
    return names
