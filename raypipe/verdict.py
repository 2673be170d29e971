"""Scores beside the answer of one who has seen no EEG, and what they say in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raypipe.metrics import (
    Interval,
    Kind,
    bootstrap_difference,
    bootstrap_subjects,
    constant_prediction,
    get_metric,
    score,
)

Array = NDArray[Any]

ENSEMBLE, EQUAL, BEST, DISTILLED = "ensemble", "equal weights", "best single trial", "distilled"
BASELINES: dict[str, str] = {"regression": "training mean", "classification": "class frequencies"}
"""What is predicted without any EEG, by kind of task."""

FEW = 20
"""Below this many subjects, a verdict says that the interval itself is rough."""

ENOUGH = 6
"""Fewer subjects prove nothing at 95 %, even if all agree: signs that agree in all of n have a chance of 2^(1 - n)."""

NAMES = {"auc": "AUC", "nrmse": "NRMSE", "balanced_accuracy": "balanced accuracy"}


@dataclass(frozen=True)
class Side:
    """Scored windows, or subjects: targets (N,), subjects (N,) and the fold of each (N,)."""

    targets: Array
    subjects: Array
    folds: Array

    def per_subject(self) -> Side:
        """One row a subject; its target is that of its first window."""
        names, first = np.unique(self.subjects, return_index=True)
        return Side(self.targets[first], names, self.folds[first])

    def mean(self, predictions: Array) -> Array:
        """Mean prediction of every subject (N, outputs) -> (S, outputs), subjects in sorted order."""
        names, index = np.unique(self.subjects, return_inverse=True)
        sums = np.zeros((len(names), predictions.shape[1]))
        np.add.at(sums, index, predictions)
        return np.asarray(sums / np.bincount(index)[:, None])


def target_per_subject(side: Side) -> bool:
    """Whether every subject has one target for all its windows, and some subject has more windows than one."""
    one = side.per_subject()
    index = np.searchsorted(one.subjects, side.subjects)
    return len(one.subjects) < len(side.subjects) and bool(np.all(one.targets[index] == side.targets))


def score_table(
    metric: str,
    kind: Kind,
    n_classes: int,
    predictions: Mapping[str, tuple[Array | None, Array]],
    search: Side,
    held_out: Side,
) -> pd.DataFrame:
    """Score each row's predictions on both sides, beside the predictor without EEG.

    Parameters
    ----------
    metric, kind, n_classes
        Of the task.
    predictions
        Row name to out-of-fold predictions (None of what has none) and predictions of the held-out windows, each
        (N, outputs).
    search, held_out
        The two sides.

    Returns
    -------
    pandas.DataFrame
        Rows as in `predictions`, then the baseline (out of fold: the constant of the other folds). Columns:
        ``oof``, ``held_out`` with its 95 % bootstrap interval over subjects ``low``, ``high``; ``difference`` to the
        baseline with ``difference_low``, ``difference_high`` (same resamples); ``subjects``, ``windows``. Where the
        target belongs to the subject, the same again with the prefix ``subject_`` for subjects' mean predictions.
    """
    kind_of = BASELINES[kind]
    table = _level(metric, kind, n_classes, dict(predictions), search, held_out, kind_of)
    table["subjects"] = len(np.unique(held_out.subjects))
    table["windows"] = len(held_out.targets)
    both = Side(*(np.concatenate(pair) for pair in zip(_parts(search), _parts(held_out), strict=True)))
    if target_per_subject(both):
        means = {
            name: (None if oof is None else search.mean(oof), held_out.mean(out))
            for name, (oof, out) in predictions.items()
        }
        inner = _level(metric, kind, n_classes, means, search.per_subject(), held_out.per_subject(), kind_of)
        table = table.join(inner.add_prefix("subject_"))
    return table


def _parts(side: Side) -> tuple[Array, Array, Array]:
    return side.targets, side.subjects, side.folds


def _level(
    metric: str,
    kind: Kind,
    n_classes: int,
    predictions: dict[str, tuple[Array | None, Array]],
    search: Side,
    held_out: Side,
    baseline: str,
) -> pd.DataFrame:
    oof_constant = np.zeros((len(search.targets), max(1, n_classes)))
    for fold in np.unique(search.folds):
        inside = search.folds == fold
        oof_constant[inside] = constant_prediction(kind, search.targets[~inside], int(inside.sum()), n_classes)
    constant = constant_prediction(kind, search.targets, len(held_out.targets), n_classes)
    rows = []
    for oof, out in [*predictions.values(), (oof_constant, constant)]:
        inner = interval(metric, held_out, out)
        apart = difference(metric, held_out, out, constant)
        value = score(metric, held_out.targets, out)
        rows.append(
            {
                "oof": float("nan") if oof is None else score(metric, search.targets, oof),
                "held_out": value,
                "low": inner.low,
                "high": inner.high,
                "difference": value - score(metric, held_out.targets, constant),
                "difference_low": apart.low,
                "difference_high": apart.high,
            }
        )
    return pd.DataFrame(rows, index=pd.Index([*predictions, baseline], name="predictor"))


def interval(metric: str, side: Side, predictions: Array) -> Interval:
    """Bootstrap interval over subjects; NaN where there is one subject only."""
    if len(np.unique(side.subjects)) < 2:
        return Interval(float("nan"), float("nan"), 0)
    return bootstrap_subjects(metric, side.targets, predictions, side.subjects)


def difference(metric: str, side: Side, a: Array, b: Array) -> Interval:
    """Bootstrap interval of ``score(a) - score(b)``; NaN where there is one subject only."""
    if len(np.unique(side.subjects)) < 2:
        return Interval(float("nan"), float("nan"), 0)
    return bootstrap_difference(metric, side.targets, a, b, side.subjects)


def spoken(metric: str) -> str:
    """A metric's name as people write it."""
    return NAMES.get(metric, metric)


def predicted(task: str) -> str:
    """What a task predicts, in words: ``participants:age`` to ``age``, ``events:A,B`` to ``A against B``."""
    kind, _, rest = task.partition("@")[0].partition(":")
    if kind == "challenge1":
        return "the response time"
    if kind == "challenge2":
        return "the externalizing factor"
    if kind == "latency":
        return f"the latency of {rest}"
    if kind == "participants":
        return rest.removesuffix(":regression").removesuffix(":classification")
    return " against ".join(part.strip() for part in rest.split(",")) or kind


def unit(task: str) -> str:
    """The unit of a task's target, where raypipe knows it."""
    kind, _, rest = task.partition("@")[0].partition(":")
    if kind in ("challenge1", "latency"):
        return "seconds"
    return "years" if kind == "participants" and rest.partition(":")[0] == "age" else "target units"


def oof_note(metric: str, constant: float) -> list[str]:
    """Why class frequencies, `constant` out of fold, look worse than chance; nothing where they do not."""
    if metric != "auc" or not constant < 0.4995:
        return []
    return [
        "Out of fold, class frequencies score below 0.5: each fold's constant comes from the other folds, so it is "
        "lowest where the class is most frequent."
    ]


Finding = Literal["carries", "sign", "none", "worse", "undefined"]
"""What held-out scores show: something that carries over to new people; a good sign, of too few people; no evidence;
worse than no EEG; or nothing, since there is no score or no interval."""


def finding(table: pd.DataFrame, metric: str) -> Finding:
    """What the ensemble's row of a `score_table` shows."""
    own = "subject_" if "subject_held_out" in table else ""
    row = dict(zip(table.columns, table.loc[ENSEMBLE].to_numpy(dtype=float).tolist(), strict=True))
    if np.isnan(row[own + "held_out"]) or np.isnan(row[own + "low"]):
        return "undefined"
    better = -1.0 if get_metric(metric).direction == "minimize" else 1.0
    low, high = sorted(better * row[own + "difference" + end] for end in ("_low", "_high"))
    if low > 0:
        return "carries" if row["subjects"] >= ENOUGH else "sign"
    return "worse" if high < 0 else "none"


def write_verdict(
    table: pd.DataFrame, metric: str, task: str, against_best: Interval | None, who: str = "the ensemble"
) -> str:
    """Say in words what the held-out scores show, and what they do not.

    Parameters
    ----------
    table
        From `score_table`.
    metric, task
        Of the run.
    against_best
        Interval of ensemble minus best single trial; None where they are the same.
    who
        What is shipped.

    Notes
    -----
    "Better than the baseline" means that the 95 % interval of the paired difference lies wholly on the better side.
    """
    own = "subject_" if "subject_held_out" in table else ""
    base = table.index[-1]
    row = dict(zip(table.columns, table.loc[ENSEMBLE].to_numpy(dtype=float).tolist(), strict=True))
    chance = float(table[own + "held_out"].iloc[-1])
    n = int(row["subjects"])
    better = -1.0 if get_metric(metric).direction == "minimize" else 1.0
    value, low, high = (row[own + name] for name in ("held_out", "low", "high"))
    apart, apart_low, apart_high = (row[own + "difference" + end] for end in ("", "_low", "_high"))
    people = "subject" if n == 1 else "subjects"
    unit_of = "one mean prediction a subject" if own else f"{int(row['windows'])} windows"
    what, article = predicted(task), "an" if spoken(metric)[0] in "AN" else "a"
    if np.isnan(value):
        return (
            f"On the {n} held-out {people} the score is undefined (their targets are all the same): "
            f"nothing can be said about {what}. Hold out more subjects in a new run."
        )
    out = [f"On {n} {people} that no choice has seen ({unit_of}) {who} reaches {article} {spoken(metric)} of "]
    if np.isnan(low):
        out[0] += f"{value:.3f}; {_ground(metric, base, chance)}."
        out.append("With one subject no interval can be given, so this says nothing about new people.")
        return " ".join(out)
    out[0] += f"{value:.3f} (95 % interval over subjects {low:.3f} to {high:.3f}); "
    out[0] += _ground(metric, base, chance)
    if metric == "nrmse":
        out[0] += f", and the difference to it is {apart:+.3f} ({apart_low:+.3f} to {apart_high:+.3f})"
        words = "the interval of the difference"
    else:
        words = "the interval"
    shows = finding(table, metric)
    if shows == "carries":
        out[0] += ": it has learned something that carries over to new people."
    elif shows == "sign":
        out[0] += (
            f". A good sign, but no evidence yet: that all of {n} {people} agree happens by luck alone in "
            f"{100 * 2.0 ** (1 - n):.0f} % of cases."
        )
    elif shows == "worse":
        out[0] += f": it is worse than no EEG at all; what it learned about {what} does not carry over to new people."
    else:
        nothing = "0" if metric == "nrmse" else f"chance ({chance:.3g})"
        out[0] += f": {words} contains {nothing}, so there is no evidence that it predicts {what}."
    if own:
        out.append(
            f"The target belongs to the person, so these {n} {people} are {n} data points, whatever the windows."
        )
    if ENOUGH <= n < FEW:
        out.append(f"{n} {people} are few: the interval itself is rough, and rather too narrow than too wide.")
    if against_best is not None and n >= ENOUGH and against_best.low < against_best.high:
        edges = sorted((better * against_best.low, better * against_best.high))
        span = f"(difference {against_best.low:+.3f} to {against_best.high:+.3f})"
        if edges[0] > 0:
            out.append(f"It is better than its best single trial {span}.")
        elif edges[1] < 0:
            out.append(f"It is worse than its best single trial {span}.")
        else:
            out.append(f"Whether it is better than its best single trial cannot be told from these subjects {span}.")
    return " ".join(out)


def _ground(metric: str, name: str, value: float) -> str:
    if metric == "auc":
        return "chance is 0.5"
    return f"the {name}, without any EEG, {'give' if name.endswith('s') else 'gives'} {value:.3f}"


def student_words(table: pd.DataFrame, ensemble: str, student: str, metric: str) -> str:
    """What is shipped where an ensemble was distilled, and what that costs."""
    column = "subject_held_out" if "subject_held_out" in table else "held_out"
    own, theirs = (float(table[column].to_dict()[row]) for row in (student, ensemble))
    return (
        f"What is shipped is one network, trained on all search subjects to answer as the ensemble does: its held-out "
        f"{spoken(metric)} is {own:.3f}, the ensemble's {theirs:.3f}. It has no out-of-fold score."
    )
