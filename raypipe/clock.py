"""A run's trials on the clock: when each was asked for, when workers had it in hand, and when nobody was at work."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

from raypipe.lease import current
from raypipe.logs import read_log
from raypipe.store import RunStore, TrialResult

Stretch = tuple[float, float]
"""Unix times of a beginning and an end."""

_TAKEN = re.compile(r": (?:starts|goes on after epoch (\d+))$")
_TOGETHER = 20.0
"""Seconds within which the workers of a group take a trial in hand."""
_LEAST = 0.02
"""Share of the run's whole time from which on a pause is called one."""


@dataclass(frozen=True)
class Span:
    """A trial that has ended, on the clock."""

    result: TrialResult
    asked: float
    """When it was first asked for; Unix time, as are all others."""
    pieces: list[Stretch]
    """When workers had it in hand. Where it was interrupted, the end before that is reckoned from its epochs."""
    workers: int
    """How many at a time; 0 where its log does not say."""

    @property
    def finished(self) -> float:
        """When it ended."""
        return max(self.asked, self.result.finished)

    @property
    def taken_up(self) -> list[float]:
        """When it went on after an interruption."""
        return [begun for begun, _ in self.pieces[1:]]


def spans(run: RunStore, results: Sequence[TrialResult]) -> list[Span]:
    """Every trial that has ended and was recorded, by number."""
    recorded = set(run.numbers())
    return [_span(run, result) for result in results if result.number in recorded]


def _span(run: RunStore, result: TrialResult) -> Span:
    asked = run.started(result.number)
    finished = max(asked, result.finished)
    taken: list[tuple[float, int, set[str]]] = []
    for line in read_log(run.folder, result.number):
        found = _TAKEN.search(line)
        if not found:
            continue
        at = datetime.strptime(line[:19], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC).timestamp()
        at, who = min(max(at, asked), finished), line[21:].partition(":")[0]
        if taken and at - taken[-1][0] < _TOGETHER and who not in taken[-1][2]:
            taken[-1][2].add(who)
        else:
            taken.append((at, int(found[1] or 0), {who}))
    if not taken:
        return Span(result, asked, [(asked, finished)], 0)
    if taken[0][1]:  # its beginning is no longer in the log
        taken.insert(0, (asked, 0, taken[0][2]))
    seconds = {epoch.epoch: epoch.seconds for epoch in run.history(result.number)} if len(taken) > 1 else {}
    pieces: list[Stretch] = []
    for (at, after, workers), (following, until, _) in zip(taken, [*taken[1:], (finished, 0, set())], strict=True):
        trained = sum(each for epoch, each in seconds.items() if after < epoch <= until) / len(workers)
        last = len(pieces) == len(taken) - 1
        pieces.append((at, following if last else min(following, at + trained)))
    return Span(result, asked, pieces, max(len(who) for _, _, who in taken))


def together(stretches: Iterable[Stretch]) -> list[Stretch]:
    """Stretches of time joined where they touch or overlap, in order."""
    joined: list[Stretch] = []
    for begin, end in sorted(stretches):
        if joined and begin <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        else:
            joined.append((begin, end))
    return joined


def breaks(found: Sequence[Span]) -> list[Stretch]:
    """Pauses between the first trial and the last in which no trial was in hand, the short ones left out."""
    busy = together(piece for span in found for piece in span.pieces)
    if not busy:
        return []
    least = _LEAST * (busy[-1][1] - busy[0][0])
    return [(a, b) for (_, a), (b, _) in pairwise(busy) if b - a > least]


@dataclass(frozen=True)
class Account:
    """Where a run's time went, in seconds."""

    wall: float
    """From the first trial that was asked for to the last end."""
    busy: float
    """Of it, while workers had a trial in hand."""
    driven: float | None
    """For how long the run was driven, by all its drivers; None where that was not kept."""
    held: float
    """Workers' time with a trial in hand, all workers summed; 0 where no log tells how many they were."""
    trained: float
    """Of it, training and predicting."""


def account(run: RunStore, found: Sequence[Span]) -> Account:
    """Where the time of trials that have ended went."""
    wall = max(span.finished for span in found) - min(span.asked for span in found)
    busy = sum(end - begin for begin, end in together(piece for span in found for piece in span.pieces))
    driver = current(run.folder)
    known = [span for span in found if span.workers]
    held = sum(span.workers * (end - begin) for span in known for begin, end in span.pieces)
    trained = sum(span.result.seconds for span in known)
    return Account(wall, busy, float(driver["spent"]) if driver else None, max(held, trained), trained)
