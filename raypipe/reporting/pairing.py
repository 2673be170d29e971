"""Compare the predictions of two runs on the windows, or subjects, that both predict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypipe.core.bootstrap import MIN_SUBJECTS, Scored, difference_of
from raypipe.core.levels import Level, within_folds
from raypipe.core.metrics import get_metric
from raypipe.ensembles.decisions import decide
from raypipe.ensembles.scores import EvaluationSet


@dataclass(frozen=True)
class Predictions:
    """A run's predictions of some windows of its store."""

    keys: NDArray[np.str_]
    """(N,) names of the windows that are the same in every store (`raypipe.data.named_stores.window_keys`).

    A window that is predicted in several repeats of the folds is there once for each.
    """
    evaluation_set: EvaluationSet
    predictions: NDArray[Any]
    """(N, outputs): the value in target units, or class probabilities."""
    level: Level
    """That of the run: some of its people may happen to have one class each."""
    weights: NDArray[Any] | None = None
    """(N, K) weights of classes, by which metrics of predicted classes decide; None for the most probable class."""

    @property
    def n_subjects(self) -> int:
        """Return the number of subjects."""
        return len(np.unique(self.evaluation_set.subjects))

    @property
    def n_keys(self) -> int:
        """Return the number of windows, each counted once."""
        return len(np.unique(self.keys))

    def subjects_of(self, keys: NDArray[np.str_]) -> NDArray[Any]:
        """Return the subject of each of some keys (K,), all of which are known."""
        return self.evaluation_set.subjects[self._first(keys)]

    def units_of(self, keys: NDArray[np.str_]) -> NDArray[Any]:
        """Return the group of each key's subject, or the subject (K,)."""
        return self.evaluation_set.units[self._first(keys)]

    def _first(self, keys: NDArray[np.str_]) -> NDArray[np.int64]:
        known, first = np.unique(self.keys, return_index=True)
        return np.asarray(first[np.searchsorted(known, keys)])

    def scored(self, metric: str, keys: NDArray[np.str_], units: NDArray[Any]) -> Scored:
        """Return the rows of some keys (K,), sorted, within their folds; `units` (K,) are resampled."""
        order = np.argsort(self.keys, kind="stable")  # whatever the order in the store
        rows = order[np.isin(self.keys[order], keys)]
        predictions, side = self.predictions[rows], self.evaluation_set
        if get_metric(metric).reads == "classes":
            predictions = decide(predictions, None if self.weights is None else self.weights[rows])
        within = within_folds(metric, side.folds[rows])
        return Scored(within, side.targets[rows], predictions, units[np.searchsorted(keys, self.keys[rows])])


@dataclass(frozen=True)
class PairedDifference:
    """Difference between the scores of two runs on the same subjects."""

    predictor: str
    """Predictor and subjects: best trial or ensemble, out of fold or held out."""
    scores: tuple[float, float]
    """Score of the first and of the other run, each within its own folds, of what both predict."""
    difference: float
    """Score of the other run minus that of the first."""
    low: float
    high: float
    """95 % bootstrap interval over subjects, or groups, both runs on the same resamples; NaN where there is none."""
    subjects: int
    units: int
    """Groups of these subjects in the run with fewer of them; as many as subjects where they share none."""
    windows: int
    """Windows compared; 0 where mean predictions of subjects are compared."""
    mismatched: int
    """Windows, or subjects, with different targets in the two runs, which are left out."""
    subjects_of: tuple[int, int]
    """Subjects that each run predicts."""
    windows_of: tuple[int, int]
    """Windows that each run predicts; 0 where mean predictions of subjects are compared."""

    def describe(self, metric: str) -> str:
        """Return what the interval shows about the other run."""
        better = -get_metric(metric).sign
        low, high = sorted((better * self.low, better * self.high))
        if np.isnan(self.low) and self.units >= MIN_SUBJECTS:
            return "not compared: the interval is undefined"
        if np.isnan(self.low):
            counted = "subjects" if self.units == self.subjects else "groups of subjects"
            return f"not compared: fewer than {MIN_SUBJECTS} {counted} in both"
        if low <= 0 <= high:
            return "no detectable difference (95 % CI includes 0)"
        return "better" if low > 0 else "worse"


def paired_difference(predictor: str, metric: str, first: Predictions, other: Predictions) -> PairedDifference | None:
    """Compare two runs on the windows, or subjects, that both predict.

    Each run's score is that of its own predictions, in all repeats of its own folds: what it is called elsewhere, where
    the runs have the same subjects.

    Parameters
    ----------
    predictor
        Name of the predictor that is compared.
    metric
        Metric of both runs.
    first, other
        Their predictions. If each subject has one target, mean predictions of subjects are compared, so that the runs
        may have different windows. Otherwise, predictions of the same windows are compared.

    Returns
    -------
    PairedDifference or None
        None where the runs have nothing in common.
    """
    by_subject = first.level == other.level == "person"
    if by_subject:
        first, other = _by_subject(first), _by_subject(other)
    both, mismatched = _in_both(first, other)
    if len(both) == 0:
        return None
    units = min((each.units_of(both) for each in (first, other)), key=lambda units_K: len(np.unique(units_K)))
    one, two = (each.scored(metric, both, units) for each in (first, other))
    trained_on = first.evaluation_set.cross_validated or other.evaluation_set.cross_validated
    interval = difference_of(two, one, cross_validated=trained_on)
    return PairedDifference(
        predictor,
        scores=(one.score, two.score),
        difference=two.score - one.score,
        low=interval.low,
        high=interval.high,
        subjects=len(np.unique(first.subjects_of(both))),
        units=len(np.unique(units)),
        windows=0 if by_subject else len(both),
        mismatched=mismatched,
        subjects_of=(first.n_subjects, other.n_subjects),
        windows_of=(0, 0) if by_subject else (first.n_keys, other.n_keys),
    )


def _in_both(first: Predictions, other: Predictions) -> tuple[NDArray[np.str_], int]:
    """Return the keys that both have with the same target, in order, and the number of those with other targets."""
    keys, a, b = np.intersect1d(first.keys, other.keys, return_indices=True)
    one, two = (each.evaluation_set.targets[rows].astype(float) for each, rows in ((first, a), (other, b)))
    same = np.isclose(one, two, rtol=1e-5)
    same = same if same.ndim == 1 else same.all(axis=1)
    return keys[same], int(np.sum(~same))


def _by_subject(predictions: Predictions) -> Predictions:
    known, weights = predictions.evaluation_set, predictions.weights
    side = known.per_subject()
    means = known.mean_per_subject(predictions.predictions)
    return Predictions(
        side.subjects.astype(str), side, means, "person", None if weights is None else weights[known.first_windows]
    )
