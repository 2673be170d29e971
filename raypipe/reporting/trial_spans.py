"""Find when each trial of a run was requested and trained, and when no trial was trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

from raypipe.storage.records import TrialResult
from raypipe.storage.run_store import RunStore
from raypipe.storage.trial_log import START_ENTRY, read_log

Interval = tuple[float, float]
"""Start and end, Unix times."""

_GROUP_SECONDS = 20.0
"""Time within which all workers of a group start a trial."""
_MIN_PAUSE_SHARE, _MIN_PAUSE_SECONDS = 0.02, 1.0
"""Share of the run's duration, and time, that a pause must have to be reported."""


@dataclass(frozen=True)
class TrialSpan:
    """Times of a trial that has ended."""

    result: TrialResult
    requested: float
    """Unix time, as are all others."""
    trained: list[Interval]
    """Intervals in which workers trained it, separated by interruptions. The log does not have the time of an
    interruption: an interrupted interval ends after the seconds of its epochs."""
    workers: int
    """Workers at a time; 0 if the log does not have their number."""

    @property
    def finished(self) -> float:
        """Return the time of its end."""
        return max(self.requested, self.result.finished)

    @property
    def resumed(self) -> list[float]:
        """Return the times at which it was resumed after interruptions."""
        return [start for start, _ in self.trained[1:]]


@dataclass
class _Start:
    """A start of a trial by a worker group, from the log."""

    time: float
    after_epoch: int
    """Last epoch of the checkpoint that it resumes from; 0 at the first start."""
    workers: set[str]


def trial_spans(run: RunStore, results: Sequence[TrialResult]) -> list[TrialSpan]:
    """Return the times of every trial that has ended and has a record, by number."""
    recorded = set(run.numbers())
    return [_trial_span(run, result) for result in results if result.number in recorded]


def _trial_span(run: RunStore, result: TrialResult) -> TrialSpan:
    requested = run.started(result.number)
    finished = max(requested, result.finished)
    starts = _read_starts(run, result.number, requested, finished)
    if not starts:
        return TrialSpan(result, requested, [(requested, finished)], 0)
    if starts[0].after_epoch:  # the log has lost its first lines
        starts.insert(0, _Start(requested, 0, starts[0].workers))
    trained = _interrupted_intervals(run, result.number, starts) if len(starts) > 1 else []
    trained.append((starts[-1].time, finished))
    return TrialSpan(result, requested, trained, max(len(start.workers) for start in starts))


def _read_starts(run: RunStore, number: int, earliest: float, latest: float) -> list[_Start]:
    """Read the starts of a trial from its log; starts of several workers at about the same time are one."""
    starts: list[_Start] = []
    for line in read_log(run.folder, number, epochs=False):
        found = START_ENTRY.search(line)
        if not found:
            continue
        time = datetime.strptime(line[:19], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC).timestamp()
        time, worker = min(max(time, earliest), latest), line[21:].partition(":")[0]
        if starts and time - starts[-1].time < _GROUP_SECONDS and worker not in starts[-1].workers:
            starts[-1].workers.add(worker)
        else:
            starts.append(_Start(time, int(found[1] or 0), {worker}))
    return starts


def _interrupted_intervals(run: RunStore, number: int, starts: Sequence[_Start]) -> list[Interval]:
    """Return the intervals of training before each restart."""
    history = run.history(number)
    intervals = []
    for start, restart in pairwise(starts):
        epochs = [epoch for epoch in history if start.after_epoch < epoch.epoch <= restart.after_epoch]
        seconds = sum(epoch.seconds for epoch in epochs) / len(start.workers)
        intervals.append((start.time, min(restart.time, start.time + seconds)))
    return intervals


def merge_intervals(intervals: Iterable[Interval]) -> list[Interval]:
    """Return intervals in order, merged where they touch or overlap."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((start, end))
    return merged


def find_pauses(spans: Sequence[TrialSpan]) -> list[Interval]:
    """Return the intervals in which no trial was trained, without short ones."""
    busy = merge_intervals(interval for span in spans for interval in span.trained)
    if not busy:
        return []
    shortest = max(_MIN_PAUSE_SECONDS, _MIN_PAUSE_SHARE * (busy[-1][1] - busy[0][0]))
    return [(end, start) for (_, end), (start, _) in pairwise(busy) if start - end > shortest]
