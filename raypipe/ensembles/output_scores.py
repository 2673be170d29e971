"""Scores of each value of a target with several, beside the means over them that methods are compared by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from raypipe.core.record import FrozenModel
from raypipe.ensembles.labels import metric_label
from raypipe.ensembles.oof import MemberPredictions
from raypipe.ensembles.reliability import Coverage, interval_coverage
from raypipe.ensembles.scores import ENSEMBLE, EvaluationSet, RowPredictions, Scoring, score_table

Cells = dict[str, Annotated[int, Field(ge=0, lt=2**53)] | float | None]


class OutputScores(FrozenModel):
    """The scores of one value (`ensemble.json`)."""

    name: str
    table: dict[str, Cells]
    """As `scores.score_table`, of this value alone."""
    coverage: list[Coverage]
    """Of intervals around its nested predictions (`reliability`)."""

    def cell(self, row: str, column: str) -> float:
        """Return a number of the table; NaN where it is undefined."""
        value = self.table[row].get(column)
        return float("nan") if value is None else float(value)


def score_outputs(
    names: Sequence[str],
    scoring: Scoring,
    rows: Mapping[str, RowPredictions],
    search: EvaluationSet,
    held_out: EvaluationSet,
    like: MemberPredictions,
) -> list[OutputScores]:
    """Return the scores of each value; none where a target has one.

    Parameters
    ----------
    names
        Names of the values.
    scoring, rows, search, held_out
        See `scores.score_table`.
    like
        Out-of-fold predictions of any members.
    """
    return [_score(name, k, scoring, rows, search, held_out, like) for k, name in enumerate(names)]


def _score(
    name: str,
    k: int,
    scoring: Scoring,
    rows: Mapping[str, RowPredictions],
    search: EvaluationSet,
    held_out: EvaluationSet,
    like: MemberPredictions,
) -> OutputScores:
    own = {row: each.of_output(k) for row, each in rows.items()}
    table = score_table(scoring, own, search.of_output(k), held_out.of_output(k))
    cells = table.astype(object).where(table.notna(), None).to_dict("index")
    nested = own[ENSEMBLE].nested
    coverage = [] if nested is None else interval_coverage(like.of_output(k), nested)
    return OutputScores(name=name, table={str(row): _named(each) for row, each in cells.items()}, coverage=coverage)


def _named(row: Mapping[Any, Any]) -> Cells:
    return {str(column): value for column, value in row.items()}


def sentence(outputs: Sequence[OutputScores], metric: str) -> list[str]:
    """Return a note that names the held-out score of each value; none where a target has one."""
    if not outputs:
        return []
    scores = "; ".join(f"{each.name} {_shown(each)}" for each in outputs)
    return [f"Scores are means over {len(outputs)} values. Held-out {metric_label(metric)} of each: {scores}."]


def _shown(each: OutputScores) -> str:
    value, low, high = (each.cell(ENSEMBLE, column) for column in ("held_out", "low", "high"))
    return f"{value:z.3f}" + (f" ({low:z.3f} to {high:z.3f})" if np.isfinite([low, high]).all() else "")
