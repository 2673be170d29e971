"""The scores and choices that the verdict of an ensemble is written from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pandas as pd

from raypipe.core.intervals import Interval
from raypipe.core.metrics import get_metric
from raypipe.ensembles.evaluation_log import Evaluations
from raypipe.ensembles.scores import DISTILLED, ENSEMBLE


class ChosenBaseline(NamedTuple):
    """The best classical baseline out of fold."""

    name: str
    """Its row."""
    choices: int
    """Baselines that it is the best of."""
    nested: Interval | None
    """Nested interval of its score minus that of what is shipped, at `comparisons.level_of_best`; None where there is
    no such score."""


@dataclass(frozen=True)
class Outcome:
    """Scores and choices that a verdict is written from."""

    table: pd.DataFrame
    """See `scores.score_table`."""
    metric: str
    target: str
    method: str
    """Method that is shipped."""
    candidates: int
    """Trials and snapshots that could be combined."""
    alone: str | None = None
    """Name of the member if only one is shipped, else None."""
    to_best: Interval | None = None
    """Held-out interval of ensemble minus best single trial; None where they are the same."""
    nested_scores: Mapping[str, float] | None = None
    """By method that was chosen among, of calibrated predictions; None if the user chose it."""
    distilled: bool = False
    baseline: ChosenBaseline | None = None
    """None where there is none with a score."""
    evaluations: Evaluations = field(default_factory=Evaluations)
    """How often the held-out subjects were scored, this time included."""
    notes: Sequence[str] = field(default_factory=list)
    """Notes on the method."""

    @property
    def held_out(self) -> HeldOutScores:
        """The ensemble's held-out scores: at the primary level."""
        row = self.row(ENSEMBLE)
        baseline = float(self.table["held_out"].iloc[-1])
        return HeldOutScores(
            row["held_out"], row["low"], row["high"], int(row["subjects"]), int(row["units"]), baseline
        )

    @property
    def shipped(self) -> str:
        """The row of what is shipped."""
        return DISTILLED if self.distilled else ENSEMBLE

    @property
    def shipped_name(self) -> str:
        """What is shipped, in words."""
        return "the distilled network" if self.distilled else self.alone or "the ensemble"

    def row(self, name: str) -> dict[str, float]:
        """Return a row of the table."""
        return dict(zip(self.table.columns, self.table.loc[name].to_numpy(dtype=float).tolist(), strict=True))


class HeldOutScores(NamedTuple):
    """Held-out scores of an ensemble."""

    value: float
    low: float
    high: float
    subjects: int
    units: int
    """Groups of these subjects; as many as subjects where they share none."""
    baseline: float
    """Score of the predictor without EEG."""


def side_of(metric: str, low: float, high: float) -> int:
    """Return 1 if the whole interval of a difference is on the better side, -1 if on the worse side, else 0."""
    gains = sorted((-get_metric(metric).sign * low, -get_metric(metric).sign * high))
    return int(gains[0] > 0) - int(gains[1] < 0)
