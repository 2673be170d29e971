"""Two runs' predictions of the same people, side by side: which windows or subjects both have, and how far apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raypipe.metrics import get_metric, score
from raypipe.verdict import ENOUGH, Side, difference, target_per_subject

if TYPE_CHECKING:
    from raypipe.windows import WindowStore


@dataclass(frozen=True)
class Answers:
    """Predictions of some windows of a store."""

    keys: NDArray[np.str_]
    """(N,) what a window is called in any store that has it (`window_keys`)."""
    side: Side
    predictions: NDArray[Any]
    """(N, outputs): the value in target units, or class probabilities."""


@dataclass(frozen=True)
class Pair:
    """How two runs answer for the same people."""

    what: str
    """Whose predictions: the best trial's or the ensemble's, out of fold or held out."""
    scores: tuple[float, float]
    """Of the first run and of the other, on what both have."""
    difference: float
    """The other's score minus the first's."""
    low: float
    high: float
    """95 % bootstrap interval over subjects, both runs on the same resamples; NaN where there is none."""
    subjects: int
    windows: int
    """Windows compared; 0 where a subject's mean prediction counts."""
    odd: int
    """Windows, or subjects, that both have with different targets: left out."""

    def words(self, metric: str) -> str:
        """What the interval says of the other run."""
        better = -1.0 if get_metric(metric).direction == "minimize" else 1.0
        low, high = sorted((better * self.low, better * self.high))
        if np.isnan(self.low):
            return "no interval: too few subjects in both"
        if low <= 0 <= high:
            return "cannot be told apart"
        word = "better" if low > 0 else "worse"
        return word if self.subjects >= ENOUGH else f"{word}, but {self.subjects} subjects prove nothing"


def window_keys(windows: WindowStore) -> NDArray[np.str_]:
    """What each window (N,) is called in any store: its recording, its onset to the millisecond, its place there."""
    part = windows.table[["recording", "onset"]].assign(onset=windows.table["onset"].round(3))
    place = part.groupby(["recording", "onset"]).cumcount()
    names = zip(part["recording"], part["onset"], place, strict=True)
    return np.array([f"{recording}@{onset:.3f}#{nth}" for recording, onset, nth in names])


def pair(what: str, metric: str, first: Answers, other: Answers) -> Pair | None:
    """Compare two runs on what both have predicted.

    Parameters
    ----------
    what
        Name of the comparison.
    metric
        Of both runs.
    first, other
        Their predictions. Where targets belong to subjects, a subject's mean prediction is compared, whatever its
        windows are in each store; else window with window.

    Returns
    -------
    Pair or None
        None where they have nothing in common.
    """
    own = target_per_subject(first.side) and target_per_subject(other.side)
    if own:
        first, other = _means(first), _means(other)
    _, a, b = np.intersect1d(first.keys, other.keys, return_indices=True)
    same = np.isclose(first.side.targets[a].astype(float), other.side.targets[b].astype(float), rtol=1e-5)
    odd = int(np.sum(~same))
    a, b = a[same], b[same]
    if len(a) == 0:
        return None
    side = Side(first.side.targets[a], first.side.subjects[a], first.side.folds[a])
    one, two = first.predictions[a], other.predictions[b]
    scores = (score(metric, side.targets, one), score(metric, side.targets, two))
    apart = difference(metric, side, two, one)
    subjects = len(np.unique(side.subjects))
    return Pair(what, scores, scores[1] - scores[0], apart.low, apart.high, subjects, 0 if own else len(a), odd)


def _means(answers: Answers) -> Answers:
    one = answers.side.per_subject()
    return Answers(one.subjects.astype(str), one, answers.side.mean(answers.predictions))
