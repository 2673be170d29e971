"""Suggest targets that `prepare` accepts for the recordings of a data set."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from raypipe.core.errors import UserError, first_line
from raypipe.data.challenge import CONTRAST_TASK, FACTOR, TRIAL_START
from raypipe.data.facts import RecordingFacts
from raypipe.data.plan import Header, make_plan, parse_settings
from raypipe.data.table_facts import NO_TARGET, ColumnFacts, EventValue, fold_value, participants_spec
from raypipe.data.target_base import Labels, Segment, Target, TargetSpec, Value, WindowTiming
from raypipe.data.targets import parse_target
from raypipe.recordings.recording import Recording
from raypipe.recordings.signal import Span
from raypipe.storage.remote import shell_quoted

MIN_SHARE = 0.5
"""Share of people with events who must have a value that is suggested."""
MAX_VALUES = 4
"""Values of events that one suggestion names; of more, it names the two most frequent."""
MAX_FOLDER_LENGTH = 30
"""Characters of the name of a folder for windows."""
MIN_PEOPLE_PER_CLASS = 2.0
"""Mean number of people of a class in columns that are suggested."""
ROUNDING_SECONDS = 1e-6
"""Seconds by which a window may reach beyond its recording: times are rounded."""

Pairs = Sequence[tuple[Recording, RecordingFacts]]


@dataclass(frozen=True)
class Suggestion:
    """A target that `prepare` accepts."""

    spec: str
    """Specification of the target."""
    events_from: str | None
    """Column of events.tsv that its values must be read from; None where no other could be meant."""
    sfreq: float | None
    """Sampling rate in Hz that `prepare` must be given, because recordings differ in theirs; None for their own."""
    skip_unreadable: bool
    """Some recordings of the target cannot be read and must be left out."""

    def command(self, folders: Sequence[str]) -> str:
        """Return the command line of `prepare`."""
        words = [
            "raypipe",
            "prepare",
            *(shell_quoted(folder) for folder in folders),
            "--target",
            shell_quoted(self.spec),
        ]
        words += [] if self.events_from is None else ["--events-from", shell_quoted(self.events_from)]
        words += [] if self.sfreq is None else ["--sfreq", f"{self.sfreq:.12g}"]
        words += ["--skip-unreadable"] if self.skip_unreadable else []
        return " ".join([*words, "--out", self.folder()])

    def folder(self) -> str:
        """Return the name of a folder for the windows."""
        kind, _, argument = self.spec.partition(":")
        words = re.findall(
            r"[A-Za-z0-9]+", argument if kind == "participants" else f"{self.spec} {self.events_from or ''}"
        )
        while len("-".join(words)) > MAX_FOLDER_LENGTH and len(words) > 1:
            words.pop()
        return f"windows/{'-'.join(words)[:MAX_FOLDER_LENGTH] or kind}"


def suggest_targets(
    recordings: Sequence[Recording],
    facts: Sequence[RecordingFacts],
    values: Sequence[EventValue],
    columns: Sequence[ColumnFacts],
) -> tuple[list[Suggestion], dict[str, str]]:
    """Find the targets that could be asked, the most specific to the data first.

    Each is checked as `prepare` would: labels, sampling rates, common channels, and windows of more than one person
    and of every class. Whether signals can be read is not known.

    Returns
    -------
    suggestions, refused
        The targets that `prepare` accepts, and the messages for other targets by specification.
    """
    pairs = list(zip(recordings, facts, strict=True))
    suggestions: list[Suggestion] = []
    refused: dict[str, str] = {}
    checker = _Checker(pairs, columns)
    for asked in _candidates(pairs, values, columns):
        try:
            suggestions.append(checker.check(asked))
        except UserError as error:
            refused[asked.target] = first_line(error)
    return suggestions, refused


def _candidates(pairs: Pairs, values: Sequence[EventValue], columns: Sequence[ColumnFacts]) -> Iterator[TargetSpec]:
    """Yield what is worth a check."""
    targets = [column for column in columns if column.kind != NO_TARGET]
    yield from (TargetSpec(target=spec) for spec in _recording_targets(pairs, values, targets))
    for column, same in groupby(values, key=lambda each: each.column):
        names = _common_values(list(same))
        elsewhere = {fold_value(each.value) for each in values if each.column != column}
        if len(names) > 1:
            is_twofold = not elsewhere.isdisjoint(map(fold_value, names))
            yield TargetSpec(target=f"events:{','.join(names)}", events_from=column if is_twofold else None)
    yield from (TargetSpec(target=f"events-column:{name}") for name in _measurements(pairs))
    yield from (TargetSpec(target=participants_spec(column.name)) for column in targets if _has_large_classes(column))


def _measurements(pairs: Pairs) -> list[str]:
    """Return the columns of events.tsv that measure something for many of the people who have events."""
    people = {recording.subject for recording, each in pairs if each.events}
    by_column: dict[str, set[str]] = {}
    for recording, each in pairs:
        for name in each.measurements:
            by_column.setdefault(name, set()).add(recording.subject)
    return [name for name, having in by_column.items() if len(having) >= MIN_SHARE * len(people)]


def _recording_targets(pairs: Pairs, values: Sequence[EventValue], targets: Sequence[ColumnFacts]) -> Iterator[str]:
    """Yield the challenge's targets and the BIDS tasks."""
    tasks = sorted({recording.task for recording, _ in pairs if recording.task})
    if CONTRAST_TASK in tasks:
        yield from ["challenge1"] if any(each.value == TRIAL_START for each in values) else []
        yield from ["challenge2"] if any(column.name == FACTOR for column in targets) else []
    if len(tasks) > 1:
        yield f"bids-task:{','.join(tasks)}"


def _has_large_classes(column: ColumnFacts) -> bool:
    """Return whether the classes of a column have enough people; numbers have no classes."""
    return sum(column.classes.values()) >= MIN_PEOPLE_PER_CLASS * len(column.classes)


def _common_values(values: Sequence[EventValue]) -> list[str]:
    """Return the most frequent values that many people have, in the order of their names."""
    common = [
        each.value
        for each in values
        if "," not in each.value and len(each.by_person) >= MIN_SHARE * (len(each.by_person) + len(each.lacking))
    ]
    return sorted(common if len(common) <= MAX_VALUES else common[:2])


class _Checker:
    """Check targets as `prepare` would.

    Parameters
    ----------
    pairs
        All recordings, with their facts.
    columns
        Columns of participants.tsv, whose targets are known already.
    """

    def __init__(self, pairs: Pairs, columns: Sequence[ColumnFacts]) -> None:
        self._recordings = [recording for recording, _ in pairs]
        self._facts = {recording.key: each for recording, each in pairs}
        self._labels = {participants_spec(column.name): column.labels for column in columns}
        self._rates: dict[tuple[object, ...], float | None] = {}

    def check(self, asked: TargetSpec) -> Suggestion:
        """Return the suggestion of a target.

        Raises
        ------
        UserError
            `prepare` would refuse it.
        """
        target = parse_target(asked)
        recordings = target.select(self._recordings)
        excluded = target.exclude(recordings)
        recordings = [recording for recording in recordings if recording not in excluded]
        labels = self._labels.get(asked.target) or target.read_labels(recordings)
        chosen = [(r, self._facts[r.key]) for r in recordings if labels.has(r)]
        readable = [pair for pair in chosen if pair[1].header]
        sfreq = self._rate_for(target, readable)
        used = [pair for pair in readable if not (target.event_locked and pair[1].events_problem)]
        _check_windows(target, labels, used)
        return Suggestion(asked.target, asked.events_from, sfreq, skip_unreadable=len(used) < len(chosen))

    def _rate_for(self, target: Target, readable: Pairs) -> float | None:
        """Return the sampling rate that `prepare` must be given; None if it needs none.

        Raises
        ------
        UserError
            No plan can be made.
        """
        key = (target.default_window, target.default_stride, *(recording.key for recording, _ in readable))
        if key not in self._rates:
            self._rates[key] = _find_rate(target, readable)
        return self._rates[key]


def _find_rate(target: Target, readable: Pairs) -> float | None:
    recordings = [recording for recording, _ in readable]
    headers = [each.header for _, each in readable if each.header is not None]
    if not headers:
        raise UserError(f"target '{target.spec}': none of its recordings can be read")
    lowest = min(rate for header in headers for rate in header.rates)
    try:
        _plan(target, None, recordings, headers)
    except UserError:
        _plan(target, lowest, recordings, headers)
        return lowest
    return None


def _plan(target: Target, sfreq: float | None, recordings: Sequence[Recording], headers: Sequence[Header]) -> None:
    unset = dict.fromkeys(("channels", "window", "crop", "stride", "tmin"))
    make_plan(target, parse_settings(target=target.spec, sfreq=sfreq, dtype="float32", **unset), recordings, headers)


def _check_windows(target: Target, labels: Labels, readable: Pairs) -> None:
    """Check that there are windows of two people and of every class; recordings are read until there are.

    Raises
    ------
    UserError
        There are not.
    """
    timing = WindowTiming(target.default_window, target.default_stride or target.default_window, target.default_tmin)
    people: set[str] = set()
    missing = {float(number) for number in range(len(labels.classes))}
    for recording, each in readable:
        targets = _targets(target, labels, recording, each, timing)
        people |= {recording.subject} if targets else set()
        missing -= targets
        if len(people) > 1 and not missing:
            return
    length = f"windows of {timing.window:g} s"
    if missing:
        raise UserError(f"target '{target.spec}': no {length} of class '{labels.classes[int(min(missing))]}'")
    raise UserError(f"target '{target.spec}': {length} of {len(people)} people; subject folds need at least three")


def _targets(
    target: Target, labels: Labels, recording: Recording, facts: RecordingFacts, timing: WindowTiming
) -> set[Value]:
    """Return the targets of a recording's windows, without a look at its signal."""
    spans = facts.spans or (Span(0.0, math.inf if target.event_locked else timing.window),)
    if not target.event_locked:  # one window shows the target of all
        longest = max(span.duration for span in spans)
        segments = target.segment(recording, min(longest, timing.window), timing, labels).segments
        return {each.target for each in segments}
    segments = target.segment(recording, spans[-1].onset + spans[-1].duration, timing, labels).segments
    return {each.target for each in segments if any(_fits(each, span, timing.window) for span in spans)}


def _fits(segment: Segment, span: Span, window: float) -> bool:
    start = segment.onset - span.onset
    return -ROUNDING_SECONDS <= start <= span.duration - window + ROUNDING_SECONDS
