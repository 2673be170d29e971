"""Sentences of a verdict that compare: with the best classical baseline, and held-out scores with nested ones."""

from __future__ import annotations

import math
from typing import NamedTuple

from raypipe.core.bootstrap import MAX_CHANCE
from raypipe.core.metrics import get_metric
from raypipe.ensembles.labels import metric_label
from raypipe.ensembles.outcome import Outcome, side_of
from raypipe.ensembles.scores import ENSEMBLE


class BaselineComparison(NamedTuple):
    """What is shipped, beside the best classical baseline."""

    side: int
    """1 if what is shipped is better by an interval and worse by none; -1 if it is worse by any; else 0."""
    sentence: str


class _Pair(NamedTuple):
    """Scores on the same subjects, and how what is shipped differs."""

    where: str
    baseline: float
    shipped: float
    value: float
    low: float
    high: float

    def text(self, label: str, sign: int) -> str:
        """Return the two scores and the difference; `sign` is -1 for the baseline minus what is shipped."""
        low, high = sorted((sign * self.low, sign * self.high))
        first, second = (self.shipped, self.baseline) if sign > 0 else (self.baseline, self.shipped)
        difference = "no interval" if math.isnan(low) else f"95 % CI {low:+.3f} to {high:+.3f}"
        return (
            f"{self.where} {label} {first:.3f} against {second:.3f} (difference {sign * self.value:+.3f}, {difference})"
        )


def compare_with_baseline(outcome: Outcome) -> BaselineComparison | None:
    """Compare what is shipped with the best classical baseline; None where no score of it is defined.

    The baseline is chosen out of fold, where its scores are compared with nested ones of the ensemble. Differences are
    paired, with intervals over subjects or their groups.
    """
    pairs = _pairs(outcome) if outcome.baseline is not None else []
    if not pairs:
        return None
    sides = [0 if math.isnan(pair.low) else side_of(outcome.metric, pair.low, pair.high) for pair in pairs]
    side, disagree = min(sides) or max(sides), {1, -1} <= set(sides)
    name, shipped, label = outcome.baseline, outcome.shipped_name, metric_label(outcome.metric)
    texts = "; ".join(pair.text(label, -1 if side < 0 and not disagree else 1) for pair in pairs)
    if disagree:
        found = f"Nested and held-out scores disagree on which is better, {shipped} or a classical baseline, {name}"
        return BaselineComparison(side, f"{found}: {texts}.")
    if side > 0:
        return BaselineComparison(side, f"It is better than the best classical baseline, {name}: {texts}.")
    if side < 0:
        return BaselineComparison(side, f"A classical baseline, {name}, is better than {shipped}: {texts}.")
    if all(math.isnan(pair.low) for pair in pairs):
        found = f"Too few subjects to compare {shipped} with a classical baseline, {name}"
    else:
        found = f"No detectable difference between {shipped} and a classical baseline, {name} (95 % CI includes 0)"
    return BaselineComparison(side, f"{found}: {texts}.")


def _pairs(outcome: Outcome) -> list[_Pair]:
    """Return the nested pair and the held-out pair of scores, as far as they are defined."""
    row, shipped, found = outcome.row(str(outcome.baseline)), outcome.row(outcome.shipped), []
    for where, score, to in (("nested", "nested", "nested_to_shipped"), ("held-out", "held_out", "to_shipped")):
        value, low, high = (-row[to + end] for end in ("", "_low", "_high"))
        if not math.isnan(value):
            found.append(_Pair(where, row[score], shipped[score], value, *sorted((low, high))))
    return found


def gap_note(outcome: Outcome) -> list[str]:
    """Return a note if the held-out score is far from the nested one: in which direction, and what may explain it.

    Far means that either score is outside the other's interval.
    """
    row = outcome.row(ENSEMBLE)
    inner, outer = (
        tuple(row.get(column, math.nan) for column in (name, low, high))
        for name, low, high in (("nested", "nested_low", "nested_high"), ("held_out", "low", "high"))
    )
    if any(math.isnan(value) for value in (*inner, *outer)):
        return []
    if outer[1] <= inner[0] <= outer[2] and inner[1] <= outer[0] <= inner[2]:
        return []
    better = -get_metric(outcome.metric).sign * (outer[0] - inner[0]) > 0
    subjects = outcome.held_out.subjects
    text = (
        f"The held-out score ({outer[0]:.3f}) is {'better' if better else 'worse'} than the nested one "
        f"({inner[0]:.3f})."
    )
    if row.get("smallest_chance", 0.0) > MAX_CHANCE:
        return [f"{text} Which {subjects} subjects were held out can explain that: they are few."]
    if abs(outer[0] - inner[0]) <= math.hypot((outer[2] - outer[1]) / 2, (inner[2] - inner[1]) / 2):
        few = (
            f"Which {subjects} subjects were held out can explain that: their interval is {outer[1]:.3f} to "
            f"{outer[2]:.3f}, the nested one {inner[1]:.3f} to {inner[2]:.3f}."
        )
        return [f"{text} {few}"]
    if better:
        why = (
            "The held-out subjects may be easier to predict. They are also predicted by the networks of all folds "
            "together, a search subject by those of one fold."
        )
    else:
        why = (
            "The held-out subjects may differ from the others, for example in site, age or recording. Which "
            "configurations were drawn was also decided by scores of the search subjects."
        )
    return [f"{text} That is more than the intervals explain. {why}"]
