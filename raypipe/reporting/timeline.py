"""A run's trials on the clock: when each was asked for, when workers had it in hand, and when nobody was at work."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING

from raypipe.reporting import html as page
from raypipe.reporting.figures import BLUE, GREY, INK, ORANGE, figure, legend_above, shade, unit_of
from raypipe.reporting.importance import parameters
from raypipe.storage.lease import read_lease
from raypipe.storage.run_store import RunStore, TrialResult
from raypipe.storage.trial_log import read_log

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    driver = read_lease(run.folder)
    known = [span for span in found if span.workers]
    held = sum(span.workers * (end - begin) for span in known for begin, end in span.pieces)
    trained = sum(span.result.seconds for span in known)
    return Account(wall, busy, driver.spent if driver else None, max(held, trained), trained)


STATES = {"complete": BLUE, "stopped": "#56B4E9", "pruned": GREY, "failed": ORANGE}
MEANING = (
    "Complete: trained to its end or until it stopped improving. Pruned: taken off early by successive halving. "
    "Stopped: time budget or GPU-hours were used up."
)
TICKS = 16
"""Trials that have a number beside their bar at most."""


def course_section(run: RunStore, results: Sequence[TrialResult], found: Sequence[Span]) -> list[str]:
    """Sections of the report: parameters, halving, timeline. Those without anything to say are left out."""
    parts = [parameters(run), _halving(run, results), _timeline(found)]
    return [part for part in parts if part]


def saved(run: RunStore, results: Sequence[TrialResult]) -> tuple[int, int, float]:
    """What halving left out: epochs that its trials trained, epochs they were planned for beyond, and seconds of those.

    An epoch that was not trained is reckoned at the mean of its own trial's.
    """
    trained = left = 0
    seconds = 0.0
    for result in results:
        if result.state == "pruned" and result.epochs:
            more = max(0, run.config(result.number).epochs - result.epochs)
            trained, left = trained + result.epochs, left + more
            seconds += more * result.seconds / result.epochs
    return trained, left, seconds


def _halving(run: RunStore, results: Sequence[TrialResult]) -> str:
    stopped = [result for result in results if result.state == "pruned"]
    if not stopped:
        return ""
    trained, left, seconds = saved(run, results)
    spent = sum(result.seconds for result in results)
    words = (
        f"Successive halving stopped {len(stopped)} of {len(results)} trials early, after {trained} epochs of the "
        f"{trained + left} that they were planned for. At their own pace the rest would have taken up to "
        f"{page.duration(seconds)} of a worker ({seconds / (spent + seconds):.0%} of a search without halving); less, "
        "where a trial would have stopped by itself."
    )
    return page.section("What halving saved", f"<p>{page.text(words)}</p>")


def _timeline(found: Sequence[Span]) -> str:
    if not found:
        return ""
    again = sum(bool(span.taken_up) for span in found)
    failed = sum(span.result.state == "failed" for span in found)
    said = f"{failed} failed; {again} were interrupted and went on from a checkpoint"
    caption = f"From when a trial was asked for (thin) and taken in hand by workers (thick) to its end. {said}."
    if breaks(found):
        caption += " Shaded: nobody was at work on any trial."
    return page.section(
        "When the trials ran",
        page.picture(lambda: timeline(found), f"Timeline of {len(found)} trials: {said}", caption),
    )


def timeline(found: Sequence[Span]) -> Figure:
    """A bar a trial, where workers had it in hand, over the time since the first was asked for."""
    first, last = min(span.asked for span in found), max(span.finished for span in found)
    made, (axes,) = figure(8.4, min(7.0, 1.2 + 0.16 * len(found)))
    unit, name = unit_of(last - first)
    axes.hlines(
        [span.result.number for span in found],
        [(span.asked - first) / unit for span in found],
        [(span.finished - first) / unit for span in found],
        color="#c4c9d2",
        lw=1.5,
        zorder=0.5,
    )
    for state, colour in STATES.items():
        pieces = [(span.result.number, *piece) for span in found if span.result.state == state for piece in span.pieces]
        if pieces:
            numbers, begins, ends = zip(*pieces, strict=True)
            lefts = [(begin - first) / unit for begin in begins]
            widths = [(end - begin) / unit for begin, end in zip(begins, ends, strict=True)]
            axes.barh(numbers, widths, left=lefts, height=0.7, color=colour, label=state)
    marks = [((at - first) / unit, span.result.number) for span in found for at in span.taken_up]
    if marks:
        axes.plot(*zip(*marks, strict=True), "D", color=INK, ms=4, ls="none", label="went on after an interruption")
    shade(axes, breaks(found), first, unit)
    every = [span.result.number for span in found]
    axes.set_yticks(every[:: -(-len(every) // TICKS)])
    axes.set_ylim(max(every) + 0.6, min(every) - 0.6)
    axes.set(xlabel=f"{name} since the first trial was asked for", ylabel="trial")
    legend_above(axes)
    return made


def ends(run: RunStore, results: Sequence[TrialResult]) -> str:
    """How the trials ended, and why where they did not end as they should."""
    ended = {result.number for result in results}
    counts: Counter[str] = Counter(result.state for result in results)
    open_ones = [number for number in run.numbers() if number not in ended]
    words = [f"{counts[state]} {state}" for state in STATES if counts[state]]
    words += [f"{len(open_ones)} not ended (interrupted or still running)"] if open_ones else []
    blocks = [f"<p>{page.text(', '.join(words) or 'No trial has been started')}.</p>", f'<p class="note">{MEANING}</p>']
    odd = [result for result in results if result.state in ("failed", "stopped")]
    if odd:
        rows = [[str(r.number), r.state, r.failure or "", str(r.epochs), r.reason] for r in odd]
        blocks.append(page.table(["trial", "state", "kind", "epochs", "why"], rows, words={1, 2, 4}))
    return page.section("How the trials ended", *blocks)


def effort(run: RunStore, results: Sequence[TrialResult], found: Sequence[Span]) -> str:
    """Where the time went: on the clock, in workers' hands, and by kind of trial; empty before a trial has ended."""
    if not results:
        return ""
    total = sum(result.seconds for result in results)
    groups: dict[str, list[TrialResult]] = {}
    for result in results:
        sam = run.config(result.number).sam.name
        kind = f"{result.state}, {'plain steps' if sam == 'none' else sam.upper() + ' steps'}"
        groups.setdefault(kind, []).append(result)
    rows = []
    for name, group in sorted(groups.items(), key=lambda item: -sum(r.seconds for r in item[1])):
        seconds, epochs = sum(r.seconds for r in group), sum(r.epochs for r in group)
        each = f"{seconds / epochs:.2f} s" if epochs else ""
        rows.append([name, str(len(group)), str(epochs), page.duration(seconds), _share(seconds, total), each])
    head = ["trials that", "trials", "epochs", "training time", "share", "one epoch"]
    note = "Training and predicting, summed over the folds (the time of one worker); waiting is not in it."
    return page.section(
        "Where the time went", *_clock(run, found), page.table(head, rows), f'<p class="note">{note}</p>'
    )


def _clock(run: RunStore, found: Sequence[Span]) -> list[str]:
    if not found:
        return []
    spent = account(run, found)
    idle = max(0.0, spent.wall - spent.busy)
    rows = [
        ["wall time, from the first trial asked for to the last end", page.duration(spent.wall), ""],
        ["of it, workers had a trial in hand", page.duration(spent.busy), _share(spent.busy, spent.wall)],
        ["of it, none had: start-up, waiting, breaks", page.duration(idle), _share(idle, spent.wall)],
    ]
    if spent.driven is not None:
        rows.append(["the run was driven, by all drivers, breaks left out", page.duration(spent.driven), ""])
    if spent.held:
        rest = spent.held - spent.trained
        rows += [
            ["workers' time with a trial in hand, summed", page.duration(spent.held), ""],
            ["of it, training and predicting", page.duration(spent.trained), _share(spent.trained, spent.held)],
            [
                "of it, the rest: loading, checkpoints, waiting for one another",
                page.duration(rest),
                _share(rest, spent.held),
            ],
        ]
    note = "From the times at which trials were asked for, taken in hand (their logs say when) and ended."
    return [page.table(["", "time", "share"], rows), f'<p class="note">{note}</p>']


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if whole else ""
