"""How methods stand: nested and held-out scores side by side, with intervals over subjects and paired differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raypipe.core.metrics import (
    Interval,
    Kind,
    bootstrap_difference,
    bootstrap_subjects,
    constant_out_of_fold,
    constant_prediction,
    score,
)
from raypipe.ensembles.oof import Floats, Members

NESTED = ("nested", "nested_low", "nested_high")


def nested_columns(
    table: pd.DataFrame,
    members: Members,
    nested: Mapping[str, Floats],
    held_out: Mapping[str, Floats],
    side: Side,
    best: str,
    n_classes: int,
) -> pd.DataFrame:
    """Add to a table of `verdict.score_table` what nested cross-validation says.

    Parameters
    ----------
    table
        Its last row is the predictor without EEG.
    members
        Out-of-fold answers of all members.
    nested, held_out
        By row, (N, outputs) nested predictions of the search subjects' windows, and of the held-out windows.
    side
        The held-out windows.
    best
        Row of the best single trial.
    n_classes
        Classes of the task, or 0.

    Returns
    -------
    pandas.DataFrame
        With the columns ``nested``, ``nested_low``, ``nested_high`` (95 % bootstrap over subjects); ``optimism``
        (nested minus ``oof``: what was gained by choosing on the scored subjects alone); ``nested_difference`` to the
        predictor without EEG, ``nested_to_best`` and, held out, ``to_best``, to the best single trial: each with
        ``_low`` and ``_high``, on the same resamples.
    """
    metric = members.metric
    search = Side(members.targets, members.subjects, members.folds)
    constant_NO = constant_out_of_fold(members.kind, members.targets, members.folds, n_classes)
    rows = []
    naive = table["oof"].to_numpy(dtype=float).tolist()
    for name, before in zip(table.index, naive, strict=True):
        if str(name) in held_out and str(name) not in nested:  # a network that has learned from all these subjects
            rows.append(_apart("to_best", metric, side, held_out[str(name)], held_out[best]))
            continue
        predictions = nested.get(str(name), constant_NO)
        inner = interval(metric, search, predictions)
        value = score(metric, search.targets, predictions)
        row = {"nested": value, "nested_low": inner.low, "nested_high": inner.high}
        row["optimism"] = value - before
        row |= _apart("nested_difference", metric, search, predictions, constant_NO)
        row |= _apart("nested_to_best", metric, search, predictions, nested[best])
        if str(name) in held_out:
            row |= _apart("to_best", metric, side, held_out[str(name)], held_out[best])
        rows.append(row)
    return table.join(pd.DataFrame(rows, index=table.index))


def _apart(name: str, metric: str, side: Side, a: Floats, b: Floats) -> dict[str, float]:
    found = difference(metric, side, a, b)
    apart = score(metric, side.targets, a) - score(metric, side.targets, b)
    return {name: apart, f"{name}_low": found.low, f"{name}_high": found.high}


Array = NDArray[Any]


BASELINES: dict[str, str] = {"regression": "training mean", "classification": "class frequencies"}
"""What is predicted without any EEG, by kind of task."""


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


def _parts(side: Side) -> tuple[Array, Array, Array]:
    return side.targets, side.subjects, side.folds


def difference(metric: str, side: Side, a: Array, b: Array) -> Interval:
    """Bootstrap interval of ``score(a) - score(b)``; NaN where there is one subject only."""
    if len(np.unique(side.subjects)) < 2:
        return Interval(float("nan"), float("nan"), 0)
    return bootstrap_difference(metric, side.targets, a, b, side.subjects)


def interval(metric: str, side: Side, predictions: Array) -> Interval:
    """Bootstrap interval over subjects; NaN where there is one subject only."""
    if len(np.unique(side.subjects)) < 2:
        return Interval(float("nan"), float("nan"), 0)
    return bootstrap_subjects(metric, side.targets, predictions, side.subjects)


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


def target_per_subject(side: Side) -> bool:
    """Whether every subject has one target for all its windows, and some subject has more windows than one."""
    one = side.per_subject()
    index = np.searchsorted(one.subjects, side.subjects)
    return len(one.subjects) < len(side.subjects) and bool(np.all(one.targets[index] == side.targets))
