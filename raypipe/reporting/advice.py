"""Summarise the cost of a search and recommend the next step, from its trials' scores and the ranges of its space.

No held-out subject is used, so following the advice keeps their scores valid.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from raypipe.core.gpu_share import reserved_gpu_share
from raypipe.core.text import format_duration
from raypipe.search.distributions import unpack_distributions
from raypipe.storage.lease import read_lease
from raypipe.storage.records import TrialResult, read_options
from raypipe.storage.remote import without_settings
from raypipe.storage.run_store import RunStore

EDGE = 0.1
"""Share of a range, on its own scale, that counts as its edge."""
MIN_BEST_TRIALS = 3
"""Trials that are needed to say that the best are at an edge."""
MIN_TREND_TRIALS = 6
"""Complete trials that are needed to say whether scores still improve."""


class _Drawn(NamedTuple):
    """The parameters of a trial, and their ranges."""

    params: Mapping[str, Any]
    distributions: Mapping[str, Any]


@dataclass(frozen=True)
class RangeEdge:
    """A parameter whose best values are at one edge of its range."""

    name: str
    low: float
    high: float
    lower: bool
    """True for the lower edge, False for the upper one."""
    at_edge: int
    """Number of best trials at this edge."""
    best: int
    """Number of best trials that have the parameter."""

    def __str__(self) -> str:
        edge, wider = ("lowest", f"below {self.low:g}") if self.lower else ("highest", f"above {self.high:g}")
        return (
            f"{self.name}: {self.at_edge} of the {self.best} best trials are in the {edge} {EDGE:.0%} of {self.low:g} "
            f"to {self.high:g}; values {wider} may be better"
        )


@dataclass(frozen=True)
class Trend:
    """Change of the best score over the last trials."""

    text: str
    more_trials: bool
    """More trials are likely to improve it further."""


@dataclass(frozen=True)
class Advice:
    """Cost of a search and the recommended next step."""

    cost: str
    trend: str
    edges: list[RangeEdge]
    step: str

    @property
    def lines(self) -> list[str]:
        """Return cost, trend, range edges and next step as lines."""
        return [self.cost, self.trend, *map(str, self.edges), f"next: {self.step}"]


def advise(run: RunStore, name: str | None = None) -> Advice:
    """Return cost, trend, range edges and the next step of a search.

    Parameters
    ----------
    run
        The run.
    name
        Name of the run in commands; None for its path or URI.
    """
    results = run.results()
    trend = _trend(run, results)
    edges = range_edges(run)
    where = name or without_settings(run.where)
    if not run.ranked(results):
        step = f"no trial is complete; find out why with: raypipe status {where}"
    elif edges:
        names = " and ".join(edge.name for edge in edges[:2])
        step = f"widen the range of {names} in the search space, and start a new run with --warm-start {where}"
    elif trend.more_trials:
        step = f"raypipe resume {where} --trials {2 * max(1, len(run.numbers()))}"
    else:
        step = f"raypipe rerun {where} (how much of the best score was luck?), then raypipe ensemble {where}"
    return Advice(_cost(run, results), trend.text, edges, step)


def _cost(run: RunStore, results: Sequence[TrialResult]) -> str:
    seconds = sum(result.seconds for result in results)
    lease = read_lease(run.folder)
    options = read_options(run.folder, run.run_id)
    parts = [
        f"{len(results)} trial{'s' * (len(results) != 1)}, compute {format_duration(seconds)} (summed over workers)"
    ]
    if gpus := reserved_gpu_share(float(options.get("gpus_per_worker") or 0)):
        reserved = lease.gpu_hours if lease else 0.0  # limited by --gpu-hours; waiting workers count too
        parts.append(f"{gpus * seconds / 3600:.1f} GPU-hours" + (f" of {reserved:.1f} reserved" if reserved else ""))
    if lease:
        parts.append(f"wall-clock {format_duration(lease.spent)}")
    return "cost: " + ", ".join(parts)


def _trend(run: RunStore, results: Sequence[TrialResult]) -> Trend:
    """Compare the best score before and after the last third of the trials."""
    # Reruns draw no new configuration; an invalid configuration has no record and counts as failed.
    drawn = [each for each in results if each.state != "failed" and run.rerun_of(each.number) is None]
    complete = run.ranked(drawn)
    if len(complete) < MIN_TREND_TRIALS:
        return Trend(f"trend: {len(complete)} complete trial(s) are too few to say whether more would help", True)
    ended = sorted(drawn, key=lambda r: (r.finished, r.number))
    last = len(ended) // 3
    early = {r.number for r in ended[: len(ended) - last]}
    best, first = complete[0], next((result for result in complete if result.number in early), None)
    if first is None:
        return Trend("trend: the first complete trials have just ended; more are likely to help", True)
    assert best.score is not None and first.score is not None
    gain = abs(first.score - best.score)
    if gain == 0.0:
        text = f"none of the last {last} trials was better than trial {best.number} ({best.score:z.4f})"
        return Trend(f"trend: {text}; more of the same are unlikely to help", False)
    improved = f"trend: the last {last} trials improved the best score from {first.score:z.4f} to {best.score:z.4f}"
    error = _standard_error(run, best)
    if gain > error:
        return Trend(f"{improved}; more are likely to help", True)
    return Trend(f"{improved}, less than the standard error over folds ({error:.4f}); more would change little", False)


def _standard_error(run: RunStore, result: TrialResult) -> float:
    """Return the standard error of a trial's score over its folds."""
    scores = [s for s in run.history(result.number)[result.best_epoch - 1].fold_scores if s is not None]
    return statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else 0.0


def range_edges(run: RunStore) -> list[RangeEdge]:
    """Return the parameters of which most of the best trials, the very best included, are at one edge of the range.

    The best trials are a quarter of the complete ones, but at least three, without reruns. A parameter that fewer than
    three of them have is left out.
    """
    best = _best_trials(run)
    names = sorted({name for trial in best for name in trial.distributions})
    edges = (_range_edge(name, best, lower) for name in names for lower in (True, False))
    return [edge for edge in edges if edge is not None]


def _best_trials(run: RunStore) -> list[_Drawn]:
    """Return what the best trials drew that this search drew, best first."""
    records = [run.record(result.number) for result in run.ranked()]
    drawn = [
        _Drawn(record.params, unpack_distributions(record.distributions))
        for record in records
        if record.rerun_of is None
    ]
    return drawn[: max(MIN_BEST_TRIALS, math.ceil(len(drawn) / 4))]


def _range_edge(name: str, best: Sequence[_Drawn], lower: bool) -> RangeEdge | None:
    """Return the edge of a parameter's range if most of the best trials, the very best included, are at it."""
    trials = [trial for trial in best if name in trial.distributions]
    range_ = trials[0].distributions[name]
    if len(trials) < MIN_BEST_TRIALS or isinstance(range_, CategoricalDistribution) or range_.single():
        return None
    positions = [_position(trial.params[name], range_) for trial in trials]
    at_edge = [position <= EDGE if lower else position >= 1.0 - EDGE for position in positions]
    if trials[0] is not best[0] or not at_edge[0] or sum(at_edge) <= len(at_edge) / 2:
        return None
    return RangeEdge(name, float(range_.low), float(range_.high), lower, sum(at_edge), len(at_edge))


def _position(value: float, range_: FloatDistribution | IntDistribution) -> float:
    """Return the position of a value in its range, 0 to 1, on the range's own scale."""
    low, high, at = float(range_.low), float(range_.high), float(value)
    if range_.log:
        low, high, at = math.log(low), math.log(high), math.log(at)
    return (at - low) / (high - low)
