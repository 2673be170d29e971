"""The score table of an ensemble: out-of-fold, nested and held-out scores with intervals over subjects.

Where subjects share groups (families, sites), intervals and tests are over groups: their members are not independent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raypipe.core.bootstrap import bootstrap_difference, bootstrap_subjects, smallest_chance
from raypipe.core.intervals import Interval
from raypipe.core.levels import Level, people_rows, rows_at_level, within_folds
from raypipe.core.metrics import Kind, constant_out_of_fold, constant_prediction, get_metric, score
from raypipe.ensembles.decisions import decide

Array = NDArray[Any]

ENSEMBLE, EQUAL, BEST, DISTILLED = "ensemble", "equal weights", "best single trial", "distilled"
"""Names of rows of the table."""
WINDOW = "window_"
"""Prefix of the columns of windows, where the primary level is the person's."""


class Scoring(NamedTuple):
    """How predictions of a target are scored."""

    metric: str
    kind: Kind
    n_classes: int
    """0 for regression."""
    level: Level
    """That of the run, for each of several values too: one of them may have one value per person, and others not."""


def baseline_name(scoring: Scoring) -> str:
    """Return the name of the last row, the predictor without EEG."""
    if scoring.kind == "classification":
        return "prior baseline"
    return "training median" if scoring.metric == "mae" else "training mean"


@dataclass(frozen=True)
class EvaluationSet:
    """Windows, or subjects, that predictions are scored on."""

    targets: Array
    """(N,), or (N, K) of several values."""
    subjects: Array
    """(N,)."""
    folds: Array
    """(N,)."""
    groups: Array | None = None
    """(N,) group of each subject; None where subjects share none."""
    cross_validated: bool = False
    """The networks that predict some rows were trained on the people of others: intervals are wider for it."""

    @property
    def units(self) -> Array:
        """Return what intervals and tests resample (N,): the group of each subject, or the subject itself."""
        return self.subjects if self.groups is None else self.groups

    def score(self, metric: str, predictions: Array) -> float:
        """Return the score of predictions (N, outputs), within folds for metrics that only rank."""
        return score(within_folds(metric, self.folds), self.targets, predictions)

    def of_output(self, k: int) -> EvaluationSet:
        """Return the set of one of several values."""
        return replace(self, targets=self.targets[:, k])

    def per_subject(self) -> EvaluationSet:
        """Return one row per subject and repeat of the folds, with the target of its first window."""
        first = self.first_windows
        groups = None if self.groups is None else self.groups[first]
        return EvaluationSet(self.targets[first], self.subjects[first], self.folds[first], groups, self.cross_validated)

    @property
    def first_windows(self) -> Array:
        """Return the index of a window of each row of `per_subject`."""
        return people_rows(self.subjects, self.folds)[0]

    def mean_per_subject(self, predictions: Array) -> Array:
        """Average the predictions (N, outputs) of each row of `per_subject`: (S, outputs)."""
        return rows_at_level("person", self.targets, self.subjects, self.folds, predictions).predictions


@dataclass(frozen=True)
class RowPredictions:
    """Predictions of one row of the score table, each (N, outputs).

    A network that was trained on all search subjects has held-out predictions only.
    """

    held_out: Array
    oof: Array | None = None
    """For the search subjects, by a combination that was fitted on these subjects: optimistic."""
    nested: Array | None = None
    """For the search subjects, by combinations that were fitted on other subjects."""
    weights: Array | None = None
    """(K,) of classes, for `held_out` and `oof`; None for the most probable class."""
    nested_weights: Array | None = None
    """(N, K) for `nested`, chosen on other subjects; None for the most probable class."""

    def of_output(self, k: int) -> RowPredictions:
        """Return the predictions of one of several values."""
        oof, nested = (None if each is None else each[:, k : k + 1] for each in (self.oof, self.nested))
        return RowPredictions(self.held_out[:, k : k + 1], oof, nested)

    def decided(self, metric: str) -> RowPredictions:
        """Return predicted classes, with probability 1, for a metric of classes; else the row itself."""
        if get_metric(metric).reads != "classes":
            return self
        return RowPredictions(
            decide(self.held_out, self.weights),
            None if self.oof is None else decide(self.oof, self.weights),
            None if self.nested is None else decide(self.nested, self.nested_weights),
        )


def score_table(
    scoring: Scoring, rows: Mapping[str, RowPredictions], search: EvaluationSet, held_out: EvaluationSet
) -> pd.DataFrame:
    """Score each row's predictions beside the predictor without EEG.

    Parameters
    ----------
    scoring
        Its metric, the kind of its targets, and the primary level.
    rows
        Predictions by name of the row; `BEST` is one of them.
    search, held_out
        Windows of the search subjects and of the held-out subjects.

    Returns
    -------
    pandas.DataFrame
        The given rows, then the predictor without EEG (out of fold: the constant of the other folds). All columns are
        at the primary level: of the mean prediction of each subject where each subject has one target, else of windows.

        - ``oof``, and ``held_out`` with its 95 % bootstrap interval over subjects, or their groups, ``low``, ``high``.
        - ``difference`` of the held-out score to the predictor without EEG.
        - ``subjects`` and ``windows`` that are held out, ``units``, the number of the subjects' groups (or of subjects
          where they share none), and their ``smallest_chance`` (`bootstrap.smallest_chance`).
        - ``nested`` with ``nested_low``, ``nested_high``, and ``optimism``, which is ``nested`` minus ``oof``.
        - ``nested_difference`` to the predictor without EEG; ``nested_to_best`` and, held out, ``to_best``, to the best
          single trial; ``nested_to_shipped`` and, held out, ``to_shipped``, to what is shipped: the distilled network,
          else the ensemble.
        - The first two with the prefix ``window_``, of windows, where the primary level is the subjects'.

        Every difference has an interval, ``_low`` and ``_high``, on paired resamples. It contains 0 unless a sign-flip
        test over subjects, or their groups, rejects 0 too.
    """
    counts = {
        "subjects": len(np.unique(held_out.subjects)),
        "windows": len(held_out.targets),
        "units": len(np.unique(held_out.units)),
        "smallest_chance": smallest_chance(held_out.targets, held_out.units, classes=scoring.kind == "classification"),
    }
    decided = {name: row.decided(scoring.metric) for name, row in rows.items()}
    by_window = None
    if scoring.level == "person":
        by_window = _plain_columns(scoring, decided, search, held_out).add_prefix(WINDOW)
        means = {name: mean_row(row, search, held_out) for name, row in rows.items()}
        decided = {name: row.decided(scoring.metric) for name, row in means.items()}
        search, held_out = search.per_subject(), held_out.per_subject()
    table = _plain_columns(scoring, decided, search, held_out).assign(**counts)
    constant = constant_out_of_fold(
        scoring.kind, search.targets, search.folds, search.subjects, scoring.n_classes, scoring.metric
    )
    naive = {str(name): float(value) for name, value in table["oof"].items()}
    table = table.join(_nested_columns(scoring, decided, constant, naive, search, held_out))
    return table if by_window is None else table.join(by_window)


def is_by_subject(table: pd.DataFrame) -> bool:
    """Return whether the primary level of a score table is the subjects', so that it has columns of windows too."""
    return f"{WINDOW}held_out" in table


def mean_row(row: RowPredictions, search: EvaluationSet, held_out: EvaluationSet) -> RowPredictions:
    """Return a row with one mean prediction per subject."""
    return RowPredictions(
        held_out.mean_per_subject(row.held_out),
        None if row.oof is None else search.mean_per_subject(row.oof),
        None if row.nested is None else search.mean_per_subject(row.nested),
        row.weights,
        None if row.nested_weights is None else row.nested_weights[search.first_windows],
    )


def _plain_columns(
    scoring: Scoring, rows: Mapping[str, RowPredictions], search: EvaluationSet, held_out: EvaluationSet
) -> pd.DataFrame:
    """Score rows, and the predictor without EEG, out of fold and held out."""
    metric, kind, n_classes, _ = scoring
    constant = constant_prediction(kind, search.targets, len(held_out.targets), n_classes, metric)
    inside = constant_out_of_fold(kind, search.targets, search.folds, search.subjects, n_classes, metric)
    without_eeg = RowPredictions(constant, inside)
    out = []
    for row in [*rows.values(), without_eeg]:
        inner = score_interval(metric, held_out, row.held_out)
        out.append(
            {
                "oof": float("nan") if row.oof is None else search.score(metric, row.oof),
                "held_out": held_out.score(metric, row.held_out),
                "low": inner.low,
                "high": inner.high,
                **_difference("difference", metric, held_out, row.held_out, constant),
            }
        )
    return pd.DataFrame(out, index=pd.Index([*rows, baseline_name(scoring)], name="predictor"))


def _nested_columns(
    scoring: Scoring,
    rows: Mapping[str, RowPredictions],
    constant: Array,
    naive: Mapping[str, float],
    search: EvaluationSet,
    held_out: EvaluationSet,
) -> pd.DataFrame:
    """Score nested predictions, and compare each row with the best single trial and with what is shipped.

    Parameters
    ----------
    scoring, rows, search, held_out
        See `score_table`.
    constant
        (N, outputs) out of fold, of the predictor without EEG.
    naive
        Out-of-fold score by row, the predictor without EEG last.
    """
    metric, best, shipped, out = scoring.metric, rows[BEST], rows.get(DISTILLED, rows[ENSEMBLE]), []
    outside = constant_prediction(
        scoring.kind, search.targets, len(held_out.targets), scoring.n_classes, scoring.metric
    )
    for name, oof_score in naive.items():
        row = rows.get(name, RowPredictions(outside, constant, constant))
        columns: dict[str, float] = {}
        if row.nested is not None and best.nested is not None:
            inner, value = score_interval(metric, search, row.nested), search.score(metric, row.nested)
            columns = {"nested": value, "nested_low": inner.low, "nested_high": inner.high}
            columns["optimism"] = value - oof_score
            columns |= _difference("nested_difference", metric, search, row.nested, constant)
            columns |= _difference("nested_to_best", metric, search, row.nested, best.nested)
        if row.nested is not None and shipped.nested is not None:
            columns |= _difference("nested_to_shipped", metric, search, row.nested, shipped.nested)
        if name in rows:
            columns |= _difference("to_best", metric, held_out, row.held_out, best.held_out)
        columns |= _difference("to_shipped", metric, held_out, row.held_out, shipped.held_out)
        out.append(columns)
    names = ("nested", "nested_to_best", "nested_to_shipped")  # also where no row has any
    found = pd.DataFrame(out, index=pd.Index(list(naive), name="predictor"))
    every = [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
    return found.reindex(columns=list(dict.fromkeys([*found.columns, *every])))


def _difference(name: str, metric: str, evaluation: EvaluationSet, a: Array, b: Array) -> dict[str, float]:
    found = difference_interval(metric, evaluation, a, b)
    value = evaluation.score(metric, a) - evaluation.score(metric, b)
    return {name: value, f"{name}_low": found.low, f"{name}_high": found.high}


def score_interval(metric: str, evaluation: EvaluationSet, predictions: Array) -> Interval:
    """Return the bootstrap interval of a score over subjects, or their groups; NaN if they are too few."""
    metric_of = within_folds(metric, evaluation.folds)
    return bootstrap_subjects(
        metric_of, evaluation.targets, predictions, evaluation.units, cross_validated=evaluation.cross_validated
    )


def difference_interval(metric: str, evaluation: EvaluationSet, a: Array, b: Array, *, level: float = 0.95) -> Interval:
    """Return the bootstrap interval of ``score(a) - score(b)``; NaN if subjects or groups are too few."""
    metric_of = within_folds(metric, evaluation.folds)
    return bootstrap_difference(
        metric_of, evaluation.targets, a, b, evaluation.units, level=level, cross_validated=evaluation.cross_validated
    )
