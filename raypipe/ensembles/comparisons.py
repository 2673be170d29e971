"""Sentences of a verdict that compare: with the best classical baseline, and held-out scores with nested ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from raypipe.core.bootstrap import MAX_CHANCE
from raypipe.core.metrics import get_metric
from raypipe.ensembles.labels import metric_label
from raypipe.ensembles.outcome import ChosenBaseline, Outcome, side_of
from raypipe.ensembles.scores import ENSEMBLE


class BaselineComparison(NamedTuple):
    """What is shipped, beside the best classical baseline."""

    side: int
    """1 if what is shipped is better by an interval and worse by none; -1 if it is worse by any; else 0."""
    sentence: str


class Pair(NamedTuple):
    """Scores on the same subjects, and how what is shipped differs."""

    where: str
    baseline: float
    shipped: float
    value: float
    low: float
    high: float
    level: float = 0.95
    """Of the interval."""
    note: str = ""
    """What the score of what is shipped is of, if that is not plain."""

    def text(self, label: str, sign: int) -> str:
        """Return the two scores and the difference; `sign` is -1 for the baseline minus what is shipped."""
        low, high = sorted((sign * self.low, sign * self.high))
        pair = [f"{self.shipped:z.3f}{self.note}", f"{self.baseline:z.3f}"]
        first, second = pair if sign > 0 else reversed(pair)
        interval = f"{100 * self.level:.3g} % CI {low:+z.3f} to {high:+z.3f}"
        difference = "no interval" if math.isnan(low) else interval
        return f"{self.where} {label} {first} against {second} (difference {sign * self.value:+z.3f}, {difference})"


def compare_with_baseline(outcome: Outcome) -> BaselineComparison | None:
    """Compare what is shipped with the best classical baseline; None where no score of it is defined.

    The baseline is chosen out of fold, where its scores are compared with nested ones of the ensemble. Differences are
    paired, with intervals over subjects or their groups. That of the nested scores, by which the baseline is chosen,
    is widened for the choice (`level_of_best`).
    """
    baseline = outcome.baseline
    pairs = _pairs(outcome, baseline) if baseline is not None else []
    if baseline is None or not pairs:
        return None
    return describe_pairs(pairs, outcome.metric, baseline.name, outcome.shipped_name)


def describe_pairs(
    pairs: Sequence[Pair], metric: str, name: str, shipped: str, shipped_is: str = "It is"
) -> BaselineComparison:
    """Return which is better by some pairs of scores, and a sentence with these.

    Parameters
    ----------
    pairs, metric
        The scores, and what they are of.
    name, shipped
        The baseline, and what is compared with it.
    shipped_is
        The latter in a sentence that follows one on it, and a verb.
    """
    sides = [0 if math.isnan(pair.low) else side_of(metric, pair.low, pair.high) for pair in pairs]
    side, disagree = min(sides) or max(sides), {1, -1} <= set(sides)
    texts = "; ".join(pair.text(metric_label(metric), -1 if side < 0 and not disagree else 1) for pair in pairs)
    if disagree:
        found = f"Nested and held-out scores disagree on which is better, {shipped} or a classical baseline, {name}"
    elif side > 0:
        found = f"{shipped_is} better than the best classical baseline, {name}"
    elif side < 0:
        found = f"A classical baseline, {name}, is better than {shipped}"
    elif all(math.isnan(pair.low) for pair in pairs):
        found = f"Too few subjects to compare {shipped} with a classical baseline, {name}"
    else:
        found = f"No detectable difference between {shipped} and a classical baseline, {name} (the CI includes 0)"
    return BaselineComparison(side, f"{found}: {texts}.")


def level_of_best(choices: int) -> float:
    """Return the level of an interval of the best of several, of which each alone would have 95 %.

    Where nothing differs, one of them seems better by an interval at the rate that is promised of one (Dunn 1961,
    doi:10.1080/01621459.1961.10482090). Chosen anew for each part of the people by the others, the best would seem
    better almost as often as chosen by all: a cross-validated score of some people knows a little of the others'.
    """
    return 1.0 - 0.05 / max(1, choices)


def _pairs(outcome: Outcome, baseline: ChosenBaseline) -> list[Pair]:
    """Return the nested pair and the held-out pair of scores, as far as they are defined."""
    row, shipped, found = outcome.row(baseline.name), outcome.row(outcome.shipped), []
    # A single trial is shipped where no method is better by all people; some people may choose another.
    chosen = outcome.alone is not None and outcome.nested_scores is not None
    for where, score, to in (("nested", "nested", "nested_to_shipped"), ("held-out", "held_out", "to_shipped")):
        value, low, high, level = *(-row[to + end] for end in ("", "_low", "_high")), 0.95
        if where == "nested" and baseline.nested is not None:
            low, high, level = -baseline.nested.low, -baseline.nested.high, level_of_best(baseline.choices)
        if not math.isnan(value):
            low, high = sorted((low, high))
            note = " (the method chosen anew in each part)" if where == "nested" and chosen else ""
            found.append(Pair(where, row[score], shipped[score], value, low, high, level, note))
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
        f"The held-out score ({outer[0]:z.3f}) is {'better' if better else 'worse'} than the nested one "
        f"({inner[0]:z.3f})."
    )
    if row.get("smallest_chance", 0.0) > MAX_CHANCE:
        return [f"{text} Which {subjects} subjects were held out can explain that: they are few."]
    if abs(outer[0] - inner[0]) <= math.hypot((outer[2] - outer[1]) / 2, (inner[2] - inner[1]) / 2):
        few = (
            f"Which {subjects} subjects were held out can explain that: their interval is {outer[1]:z.3f} to "
            f"{outer[2]:z.3f}, the nested one {inner[1]:z.3f} to {inner[2]:z.3f}."
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
