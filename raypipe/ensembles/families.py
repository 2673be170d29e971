"""What each family of models brings to an ensemble: its score alone, its errors, its weight, the loss without it."""

from __future__ import annotations

import numpy as np

from raypipe.core.metrics import get_metric
from raypipe.ensembles.calibration import scored_rows
from raypipe.ensembles.candidates import Candidates
from raypipe.ensembles.choice import FittedMethods, ShippedMembers
from raypipe.ensembles.family_record import Family
from raypipe.ensembles.methods import METHODS
from raypipe.ensembles.nested_cv import error_correlations, run_nested_cv
from raypipe.ensembles.oof import Floats
from raypipe.ensembles.scores import EvaluationSet, difference_interval, score_interval
from raypipe.ensembles.trial_pool import TrialPool

EQUAL = "equal"
"""Method that any members can be combined by."""


def describe_families(candidates: Candidates, fits: FittedMethods, shipped: ShippedMembers) -> list[Family]:
    """Return a row for each family of a run's trials, best score first; none where all are of one family."""
    best = _best_members(candidates)  # a family without a whole trial has no weights to ship
    if len(best) < 2:
        return []
    comparison = _Comparison(candidates, fits)
    largest = _largest_correlations(candidates, list(best.values()))
    weights = dict.fromkeys(best, 0.0)
    for member, weight in zip(shipped.members, shipped.weights, strict=True):
        weights[candidates.pool.family_of(member.trial)] += float(weight)
    rows = [
        comparison.row(name, best=str(candidates.members[place]), correlation=correlation, weight=weights[name])
        for (name, place), correlation in zip(best.items(), largest, strict=True)
    ]
    sign = get_metric(candidates.run.info.metric).sign
    return sorted(rows, key=lambda row: np.inf if row.score is None else sign * row.score)


def _best_members(candidates: Candidates) -> dict[str, int]:
    """Return the place of the best candidate of each family, best first."""
    found: dict[str, int] = {}
    for place, member in enumerate(candidates.members):
        found.setdefault(candidates.pool.family_of(member.trial), place)
    return found


def _largest_correlations(candidates: Candidates, places: list[int]) -> list[float | None]:
    """Return for each of several members the largest correlation of its errors with those of another one."""
    r_MM = error_correlations(candidates.predictions.select_members(places))
    np.fill_diagonal(r_MM, -np.inf)
    return [float(value) for value in r_MM.max(axis=1)]


class _Comparison:
    """Nested scores with and without families, at the level of the verdict.

    `whole` is the ensemble as the score table has it, whose choice of a method is repeated in each part. To repeat it
    without each family too would take minutes, so a family is left out under the shipped method. The score of that
    method on the people who chose it is optimistic: it is compared with its own without the family, and nothing else.
    """

    def __init__(self, candidates: Candidates, fits: FittedMethods) -> None:
        self.pool, self.max_members = candidates.pool, candidates.max_members
        self.method = fits.chosen if fits.chosen in METHODS else EQUAL  # a soup averages networks of one family
        self.metric, self.windows = candidates.run.info.metric, candidates.search
        self.by_person = candidates.run.info.level == "person"
        self.rows: EvaluationSet = self.windows.per_subject() if self.by_person else self.windows
        self.by_method = {
            name: self._at_level(predictions)
            for name, predictions in fits.nested.predictions.items()
            if name in (self.method, EQUAL)
        }
        chosen = fits.chosen in METHODS
        self.whole = self._at_level(fits.nested_predictions) if chosen else self.by_method[self.method]

    def row(self, name: str, *, best: str, correlation: float | None, weight: float) -> Family:
        """Return what a family brings."""
        own = self.pool.of_families([name])
        others = self.pool.of_families([other for other in self.pool.families() if other != name])
        (alone, _), (without, method) = self._nested(own, "best"), self._nested(others, self.method)
        inner = score_interval(self.metric, self.rows, alone)
        loss, loss_low, loss_high = self._advantage(self.by_method[method], without)
        gain, gain_low, gain_high = self._advantage(self.whole, alone)
        return Family(
            name=name,
            trials=len(own.trials),
            best=best,
            score=self._score(alone),
            low=_finite(inner.low),
            high=_finite(inner.high),
            correlation=correlation,
            weight=weight,
            without=self._score(without),
            loss=loss,
            loss_low=loss_low,
            loss_high=loss_high,
            gain=gain,
            gain_low=gain_low,
            gain_high=gain_high,
        )

    def _nested(self, pool: TrialPool, method: str) -> tuple[Floats, str]:
        """Return the nested predictions (rows, outputs) of a method, or of equal weights where it cannot be used.

        The second value is the name of the one that it is.
        """
        predictions = run_nested_cv(pool, [method, EQUAL], max_members=self.max_members).predictions
        used = method if method in predictions else EQUAL
        return self._at_level(predictions[used]), used

    def _at_level(self, predictions: Floats) -> Floats:
        """Return predictions (rows, outputs) as the score table scores them."""
        return scored_rows(self.pool.windows_like, predictions, "person" if self.by_person else "window").predictions

    def _score(self, predictions: Floats) -> float | None:
        return _finite(self.rows.score(self.metric, predictions))

    def _advantage(self, ensemble: Floats, other: Floats) -> tuple[float | None, float | None, float | None]:
        """Return how much better an ensemble is than other predictions, with a 95 % interval over people."""
        a, b = (other, ensemble) if get_metric(self.metric).sign > 0 else (ensemble, other)
        interval = difference_interval(self.metric, self.rows, a, b)
        value = self.rows.score(self.metric, a) - self.rows.score(self.metric, b)
        return _finite(value), _finite(interval.low), _finite(interval.high)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
