"""What each family of models brings to an ensemble: its score alone, its errors, its weight, the loss without it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raypipe.core.levels import mean_per_person
from raypipe.core.metrics import get_metric
from raypipe.ensembles.calibration import EVEN, decide
from raypipe.ensembles.candidates import Candidates
from raypipe.ensembles.choice import FittedMethods, ShippedMembers
from raypipe.ensembles.family_record import Family
from raypipe.ensembles.methods import METHODS
from raypipe.ensembles.nested_cv import run_nested_cv
from raypipe.ensembles.oof import Floats
from raypipe.ensembles.scores import EvaluationSet, difference_interval, score_interval
from raypipe.ensembles.trial_pool import TrialPool
from raypipe.storage.records import Member


def describe_families(candidates: Candidates, fits: FittedMethods, shipped: ShippedMembers) -> list[Family]:
    """Return a row for each family of a run's trials, best score first; none where all are of one family."""
    pool = candidates.pool
    names = list(_best_members(candidates))  # a family without a whole trial has no weights to ship
    if len(names) < 2:
        return []
    method = fits.chosen if fits.chosen in METHODS else "equal"  # a soup averages networks of one family
    scored = _Scored(candidates)
    whole = scored.nested(pool, method)
    families = [_describe(candidates, shipped, scored, whole, name, method) for name in names]
    sign = get_metric(candidates.run.info.metric).sign
    return sorted(families, key=lambda each: np.inf if each.score is None else sign * each.score)


class _Scored:
    """Nested scores at the level of the verdict."""

    def __init__(self, candidates: Candidates) -> None:
        self.metric, self.max_members = candidates.run.info.metric, candidates.max_members
        search = candidates.search
        self.by_person = search.joined(candidates.held_out).has_subject_targets
        self.subjects = search.subjects
        self.rows: EvaluationSet = search.per_subject() if self.by_person else search

    def nested(self, pool: TrialPool, method: str) -> Floats:
        """Return the nested predictions (rows, outputs) of a method, as classes where the metric is one of classes."""
        found = run_nested_cv(pool, [method], max_members=self.max_members).predictions[method]
        rows = mean_per_person(self.subjects, found) if self.by_person else found
        return decide(rows, EVEN) if get_metric(self.metric).reads == "classes" else rows

    def advantage(self, ours: Floats, other: Floats) -> tuple[float | None, float | None, float | None]:
        """Return how much better predictions are than others (positive: better), with a 95 % interval over people."""
        a, b = (other, ours) if get_metric(self.metric).sign > 0 else (ours, other)
        interval = difference_interval(self.metric, self.rows, a, b)
        value = self.rows.score(self.metric, a) - self.rows.score(self.metric, b)
        return _finite(value), _finite(interval.low), _finite(interval.high)


def _describe(
    candidates: Candidates, shipped: ShippedMembers, scored: _Scored, whole: Floats, name: str, method: str
) -> Family:
    pool = candidates.pool
    own = pool.of_families([name])
    alone = scored.nested(own, "best")
    without = scored.nested(pool.of_families([other for other in pool.families() if other != name]), method)
    inner = score_interval(scored.metric, scored.rows, alone)
    loss, loss_low, loss_high = scored.advantage(whole, without)
    gain, gain_low, gain_high = scored.advantage(whole, alone)
    return Family(
        name=name,
        trials=len(own.trials),
        best=_best_members(candidates)[name],
        score=_finite(scored.rows.score(scored.metric, alone)),
        low=_finite(inner.low),
        high=_finite(inner.high),
        correlation=_finite(_correlation(candidates, name)),
        weight=sum(
            float(weight)
            for member, weight in zip(shipped.members, shipped.weights, strict=True)
            if family_of(candidates, member) == name
        ),
        without=_finite(scored.rows.score(scored.metric, without)),
        loss=loss,
        loss_low=loss_low,
        loss_high=loss_high,
        gain=gain,
        gain_low=gain_low,
        gain_high=gain_high,
    )


def family_of(candidates: Candidates, member: Member) -> str:
    """Return the family of a member."""
    return next(trial.family for trial in candidates.pool.trials if trial.number == member.trial)


def _best_members(candidates: Candidates) -> dict[str, str]:
    """Return the name of the best candidate of each family."""
    found: dict[str, str] = {}
    for member in candidates.members:
        found.setdefault(family_of(candidates, member), str(member))
    return found


def _correlation(candidates: Candidates, name: str) -> float:
    """Return the largest correlation of a family's best member's errors with those of another family's."""
    best = _best_members(candidates)
    members = candidates.predictions.select_members(_places(candidates, list(best.values())))
    errors_MX = (members.predictions - members.encoded_targets).reshape(len(best), -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation_M = np.atleast_2d(np.corrcoef(errors_MX))[list(best).index(name)]
    return float(np.nanmax(np.delete(correlation_M, list(best).index(name))))


def _places(candidates: Candidates, names: Sequence[str]) -> list[int]:
    return [[str(member) for member in candidates.members].index(name) for name in names]


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
