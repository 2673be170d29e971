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
``challenge1``                                 response time in HBN-EEG's contrast-change detection
=============================================  =====================================================================

A new task is a class with `windows` and, where the data decides on kind or classes, `bind`, entered in `TASKS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from raypipe.errors import UserError, nearest
from raypipe.recordings import Recording, UnreadableError, read_events, read_participants

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["regression", "classification"]

CONTRAST_TASK = "contrastChangeDetection"
_TARGETS = ("left_target", "right_target")
_PRESSES = ("left_buttonPress", "right_buttonPress")


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


@dataclass(frozen=True)
class Participants(Task):
    """A column of participants.tsv."""

    column: str = ""
    kind: Kind | None = None

    def bind(self, recordings: Sequence[Recording]) -> Labels:
        root = recordings[0].root
        table = read_participants(root)
        where = f"{root / 'participants.tsv'}: column '{self.column}'"
        if self.column not in table.columns:
            raise UserError(
                f"{root / 'participants.tsv'}: no column '{self.column}'; {nearest(self.column, table.columns)}"
            )
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
        return _side_by_side(duration, layout, known.get(recording.subject, float("nan")))


@dataclass(frozen=True)
class BidsTask(Task):
    """The BIDS task a recording is of."""

    def bind(self, recordings: Sequence[Recording]) -> Labels:
        return Labels("classification", self.bids_tasks)

    def windows(self, recording: Recording, duration: float, layout: Layout, labels: Labels | None) -> Cut:
        target = labels.classes.index(recording.task or "") if labels else float("nan")
        return _side_by_side(duration, layout, float(target))


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


@dataclass(frozen=True)
class Challenge1(Task):
    """Response time after a contrast change, as the EEG Foundation Challenge 2025 defines it.

    Window from +0.5 s to +2.5 s after the target, response time in seconds from the target (`contrast_trials`).
    """

    bids_tasks: tuple[str, ...] = (CONTRAST_TASK,)

    default_tmin: ClassVar[float] = 0.5
    event_locked: ClassVar[bool] = True

    def windows(self, recording: Recording, duration: float, layout: Layout, labels: Labels | None) -> Cut:
        trials = contrast_trials(read_events(recording))
        shown = trials.dropna(subset=["stimulus"])
        usable = shown.dropna(subset=["rt"]) if labels else shown
        targets = usable["rt"] if labels else usable["rt"] * float("nan")
        cut = Cut([Span(s + layout.tmin, rt) for s, rt in zip(usable["stimulus"], targets, strict=True)])
        cut.left_out["trials without a target"] = len(trials) - len(shown)
        cut.left_out["trials without a response"] = len(shown) - len(usable)
        return cut


def contrast_trials(events: pd.DataFrame) -> pd.DataFrame:
    """Find stimulus and response of every contrast-change trial of a run.

    A trial goes from one ``contrastTrial_start`` to the next; the run's last start opens none. Its stimulus is the
    first target in it, its response the first button press of either side at or after the stimulus. Source: EEGDash,
    ``eegdash/hbn/windows.py``, the challenge organisers' code.

    Parameters
    ----------
    events
        Columns `onset` (s) and `value`.

    Returns
    -------
    pandas.DataFrame
        A row a trial: `start`, `stimulus`, `response` (s from the recording's start) and `rt` (response - stimulus,
        s); NaN where there is none.
    """
    import pandas as pd

    events = events.sort_values("onset", kind="stable")
    onset = events["onset"].to_numpy(float)
    value = events["value"].astype(str)
    starts = onset[(value == "contrastTrial_start").to_numpy()]
    stimuli = onset[value.isin(_TARGETS).to_numpy()]
    presses = onset[value.isin(_PRESSES).to_numpy()]
    stimulus = _first_in(stimuli, starts[:-1], starts[1:])
    response = _first_in(presses, stimulus, starts[1:])
    return pd.DataFrame(
        {"start": starts[:-1], "stimulus": stimulus, "response": response, "rt": response - stimulus}, dtype=float
    )


def _first_in(times: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """First of the sorted `times` in each half-open interval; NaN where there is none."""
    padded = np.append(times, np.inf)
    first = padded[np.searchsorted(times, begin)]
    return np.where(first < end, first, np.nan)


def _side_by_side(duration: float, layout: Layout, target: float) -> Cut:
    # A microsecond of grace: a window that ends with the recording is not lost to rounding.
    count = int(np.floor((duration - layout.window + 1e-6) / layout.stride)) + 1
    if count < 1:
        return Cut([], Counter({"recordings shorter than a window": 1}))
    return Cut([Span(i * layout.stride, target) for i in range(count)])


def _check_values(task: Task, values: Iterable[str], recordings: Sequence[Recording]) -> None:
    missing = set(values)
    seen: set[str] = set()
    for recording in recordings:
        try:
            here = set(read_events(recording)["value"])
        except UnreadableError:
            continue  # the turn of the recording itself will tell
        seen |= here
        missing -= here
        if not missing:
            return
    name = sorted(missing)[0]
    raise UserError(f"task '{task.spec}': no event has the value '{name}'; {nearest(name, sorted(seen))}")


def _names(spec: str, argument: str, at_least: int) -> tuple[str, ...]:
    names = tuple(name.strip() for name in argument.split(",") if name.strip())
    if len(names) < at_least:
        raise UserError(f"task '{spec}': needs at least {at_least} name{'s' * (at_least > 1)}, separated by commas")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"task '{spec}': '{twice[0]}' is there twice")
    return names


def _parse_participants(spec: str, argument: str) -> Task:
    column, _, last = argument.rpartition(":")
    if column and last in ("regression", "classification"):
        return Participants(spec, column=column, kind="regression" if last == "regression" else "classification")
    if not argument:
        raise UserError(f"task '{spec}': needs a column of participants.tsv, such as participants:age")
    return Participants(spec, column=argument)


def _parse_challenge1(spec: str, argument: str) -> Task:
    if argument:
        raise UserError(f"task '{spec}': challenge1 takes no argument")
    return Challenge1(spec)


TASKS: dict[str, Callable[[str, str], Task]] = {
    "participants": _parse_participants,
    "bids-task": lambda spec, argument: BidsTask(spec, bids_tasks=_names(spec, argument, 2)),
    "events": lambda spec, argument: Events(spec, values=_names(spec, argument, 2)),
    "latency": lambda spec, argument: Latency(spec, values=_names(spec, argument, 1)),
    "challenge1": _parse_challenge1,
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
    if task.bids_tasks:
        raise UserError(f"task '{spec}': {name} itself says which recordings it is about; leave out '@{only}'")
    return replace(task, bids_tasks=_names(spec, only, 1))
