"""What a search has cost, and what to do next: from its trials' scores and where in their ranges the best lie.

The held-out subjects are not looked at: what is advised here may be followed without spending them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from raypipe.core.search_space import silence_optuna
from raypipe.search.reruns import is_rerun
from raypipe.search.warm_start import is_warm
from raypipe.storage.files import read_json
from raypipe.storage.journal import STUDY_NAME, open_journal
from raypipe.storage.lease import read_lease
from raypipe.storage.records import OPTIONS
from raypipe.storage.remote import without_settings
from raypipe.storage.run_store import RunStore, TrialResult

EDGE = 0.1
"""Share of a range, on its own scale, that counts as its edge."""
FEWEST = 3
"""Best trials that an edge is told from, at least."""
TRIALS_OF_TREND = 6
"""Complete trials that a trend is told from, at least."""


@dataclass(frozen=True)
class RangeEdge:
    """A parameter whose best values press against an end of its range."""

    name: str
    low: float
    high: float
    lower: bool
    inside: int
    """Of the best trials, how many lie at this end."""
    best: int
    """How many those are."""

    def __str__(self) -> str:
        end, wider = ("lowest", f"below {self.low:g}") if self.lower else ("highest", f"above {self.high:g}")
        return (
            f"{self.name}: {self.inside} of the {self.best} best trials lie in the {end} {EDGE:.0%} of {self.low:g} "
            f"to {self.high:g}; a space that goes {wider} may hold better ones"
        )


@dataclass(frozen=True)
class Advice:
    """A word at the end of a search."""

    cost: str
    trend: str
    edges: list[RangeEdge]
    step: str

    @property
    def lines(self) -> list[str]:
        """All of it, a line each."""
        return [self.cost, self.trend, *map(str, self.edges), f"next: {self.step}"]


def advise(run: RunStore, name: str | None = None) -> Advice:
    """Cost, trend, edges and the next step of a run's search; in commands, it goes by `name`, or by where it lies."""
    results = run.results()
    # Reruns draw nothing new; an invalid draw, which was never recorded, has failed.
    drawn = [each for each in results if each.state != "failed" and run.rerun_of(each.number) is None]
    trend, hopeful = _trend(run, drawn)
    found = range_edges(run)
    where = name or without_settings(run.where)
    if not run.ranked(results):
        step = f"no trial is complete; see why: raypipe status {where}"
    elif found:
        names = " and ".join(edge.name for edge in found[:2])
        step = f"widen {names} in the search space, and name a new run with --warm-start {where}"
    elif hopeful:
        step = f"raypipe resume {where} --trials {2 * max(1, len(run.numbers()))}"
    else:
        step = f"raypipe rerun {where} (how much of the best score was luck?), then raypipe ensemble {where}"
    return Advice(_cost(run, results), trend, found, step)


def _cost(run: RunStore, results: Sequence[TrialResult]) -> str:
    worker = sum(result.seconds for result in results) / 3600
    lease = read_lease(run.folder)
    options = read_json(run.folder, OPTIONS) if run.folder.exists(OPTIONS) else {}
    parts = [f"{len(results)} trial{'s' * (len(results) != 1)}, {_hours(worker)} of workers' time"]
    if gpus := float(options.get("gpus_per_worker") or 0):
        held = lease.gpu_hours if lease else 0.0  # what --gpu-hours limits: workers that wait hold theirs too
        parts.append(f"{gpus * worker:.1f} GPU-hours" + (f" of {held:.1f} held" if held else ""))
    if lease:
        parts.append(f"driven for {_hours(lease.spent / 3600)}")
    return "cost: " + ", ".join(parts)


def _hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def _trend(run: RunStore, results: Sequence[TrialResult]) -> tuple[str, bool]:
    """Whether more trials are likely to help, in words and at all: what the last third brought, beside chance."""
    complete = {result.number: result for result in run.ranked(results)}
    ended = sorted(results, key=lambda r: (r.finished, r.number))
    if len(complete) < TRIALS_OF_TREND:
        return f"trend: {len(complete)} complete trial(s) are too few to tell whether more would help", True
    before = {r.number for r in ended[: len(ended) - len(ended) // 3]}
    best = next(iter(complete.values()))
    assert best.score is not None
    first = next((number for number in complete if number in before), None)
    if first is None:
        return "trend: the first complete trials have only just come in; more are likely to help", True
    old = complete[first].score
    assert old is not None
    gain, last = abs(old - best.score), len(ended) // 3
    if first == best.number or gain == 0.0:
        return (
            f"trend: none of the last {last} trials was better than trial {best.number} ({best.score:.4f}); more of "
            "the same are unlikely to help"
        ), False
    moved = f"trend: the last {last} trials moved the best from {old:.4f} to {best.score:.4f}"
    if gain > (noise := _noise(run, best)):
        return f"{moved}; more are likely to help", True
    return f"{moved}, less than its folds differ by chance ({noise:.4f}); more would change little", False


def _noise(run: RunStore, best: TrialResult) -> float:
    """Standard error of a trial's score, from its folds'."""
    scores = [s for s in run.history(best.number)[best.best_epoch - 1].fold_scores if s is not None]
    return statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else 0.0


def range_edges(run: RunStore) -> list[RangeEdge]:
    """Parameters whose best values, the best trial's among them, lie mostly at one end of their range.

    The best are a quarter of the complete trials, three at least, reruns left out; a parameter that fewer than three of
    them have is passed over.
    """
    with silence_optuna():
        storage = open_journal(run, mend=False)
        if STUDY_NAME not in optuna.get_all_study_names(storage):
            return []
        study = optuna.load_study(study_name=STUDY_NAME, storage=storage)
        own = {
            trial.number: trial
            for trial in study.get_trials(deepcopy=False)
            if not is_warm(trial) and not is_rerun(trial)
        }
    ranked = [own[result.number] for result in run.ranked() if result.number in own]
    best = ranked[: max(FEWEST, math.ceil(len(ranked) / 4))]
    found = []
    for name in sorted({name for trial in best for name in trial.distributions}):
        having = [trial for trial in best if name in trial.distributions]
        asked = having[0].distributions[name]
        if len(having) < FEWEST or isinstance(asked, CategoricalDistribution) or asked.single():
            continue
        places = [_place(trial.params[name], asked) for trial in having]
        for lower in (True, False):
            inside = [place <= EDGE if lower else place >= 1.0 - EDGE for place in places]
            if inside[0] and having[0] is best[0] and sum(inside) > len(inside) / 2:
                found.append(RangeEdge(name, float(asked.low), float(asked.high), lower, sum(inside), len(inside)))
    return found


def _place(value: float, asked: FloatDistribution | IntDistribution) -> float:
    """Where in its range a value lies, 0 to 1, on the range's own scale."""
    low, high, at = float(asked.low), float(asked.high), float(value)
    if asked.log:
        low, high, at = math.log(low), math.log(high), math.log(at)
    return (at - low) / (high - low)
