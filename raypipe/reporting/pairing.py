"""Compare the predictions of two runs on the windows, or subjects, that both predict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypipe.core.bootstrap import MIN_SUBJECTS
from raypipe.core.levels import Level
from raypipe.core.metrics import get_metric
from raypipe.ensembles.decisions import decide
from raypipe.ensembles.scores import EvaluationSet, difference_interval


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
    weights: NDArray[Any] | None = None
    """(N, K) weights of classes, by which metrics of predicted classes decide; None for the most probable class."""
    level: Level | None = None
    """That of the run: some of its people may happen to have one class each. None for `level_of` these windows."""

    @property
    def by_subject(self) -> bool:
        """Return whether mean predictions of subjects are compared."""
        return self.evaluation_set.has_subject_targets and self.level != "window"

    def decided(self, metric: str) -> NDArray[Any]:
        """Return what a metric reads: predicted classes with probability 1, or the predictions."""
        return decide(self.predictions, self.weights) if get_metric(metric).reads == "classes" else self.predictions


@dataclass(frozen=True)
class PairedDifference:
    """Difference between the scores of two runs on the same subjects."""

    predictor: str
    """Predictor and subjects: best trial or ensemble, out of fold or held out."""
    scores: tuple[float, float]
    """Score of the first and of the other run."""
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
    by_subject = first.by_subject and other.by_subject
    if by_subject:
        first, other = _by_subject(first), _by_subject(other)
    _, a, b = np.intersect1d(_numbered(first.keys), _numbered(other.keys), return_indices=True)
    same = np.isclose(
        first.evaluation_set.targets[a].astype(float), other.evaluation_set.targets[b].astype(float), rtol=1e-5
    )
    same = same if same.ndim == 1 else same.all(axis=1)
    mismatched = len(np.unique(first.keys[a[~same]]))
    a, b = a[same], b[same]
    if len(a) == 0:
        return None
    one_folds, two_folds = first.evaluation_set.folds[a], other.evaluation_set.folds[b]
    both = np.unique(np.stack([one_folds, two_folds]), axis=1, return_inverse=True)[1]  # one network in either run
    sides = (first.evaluation_set.units[a], other.evaluation_set.units[b])
    units = min(sides, key=lambda units_N: len(np.unique(units_N)))
    known = first.evaluation_set
    trained_on = known.cross_validated or other.evaluation_set.cross_validated
    side = EvaluationSet(known.targets[a], known.subjects[a], both.reshape(-1), units, trained_on)
    one, two = first.decided(metric)[a], other.decided(metric)[b]
    scores = (side.score(metric, one), side.score(metric, two))
    interval = difference_interval(metric, side, two, one)
    return PairedDifference(
        predictor,
        scores,
        difference=scores[1] - scores[0],
        low=interval.low,
        high=interval.high,
        subjects=len(np.unique(side.subjects)),
        units=len(np.unique(units)),
        windows=0 if by_subject else len(np.unique(first.keys[a])),
        mismatched=mismatched,
    )


def _numbered(keys: NDArray[np.str_]) -> NDArray[np.str_]:
    """Return keys with a counter of equal ones: each repeat of the folds is paired with one of the other run."""
    import pandas as pd

    nth_N = pd.Series(keys).groupby(keys).cumcount()
    return np.array([f"{key}~{nth}" for key, nth in zip(keys, nth_N, strict=True)])


def _by_subject(predictions: Predictions) -> Predictions:
    known, weights = predictions.evaluation_set, predictions.weights
    side = known.per_subject()
    means = known.mean_per_subject(predictions.predictions)
    return Predictions(
        side.subjects.astype(str), side, means, None if weights is None else weights[known.first_windows]
    )
