"""Compare outer cross-validations: the predictions of all subjects, each by a search that has not seen them."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from raypipe.core.errors import UserError
from raypipe.data.named_stores import window_keys
from raypipe.ensembles.outer import OuterScores, read_scores
from raypipe.ensembles.run_windows import windows_of_run
from raypipe.ensembles.scores import EvaluationSet
from raypipe.reporting.compare import Comparison, Condition, names_of
from raypipe.reporting.pairing import Predictions, paired_difference
from raypipe.storage.outer_run import OuterRun

ENSEMBLES = "ensembles, all subjects held out once"


def compare_outer(runs: Sequence[OuterRun]) -> Comparison:
    """Compare outer cross-validations that predict the same target.

    Parameters
    ----------
    runs
        Two or more, whose parts all have an ensemble; the others are compared with the first.

    Raises
    ------
    UserError
        There is only one, their metrics, classes or values differ, a part has no ensemble, or windows are missing.
    """
    if len(runs) < 2:
        raise UserError("compare needs two runs or more: raypipe compare RUN1 RUN2")
    first, *others = runs
    for run in others:
        values = [[part.info.outputs for part in each.runs[:1]] for each in (first, run)]
        if (run.info.metric, run.info.classes, values[1]) != (first.info.metric, first.info.classes, values[0]):
            raise UserError(
                f"{first.where} and {run.where} cannot be compared: their metrics, classes or values differ"
            )
    scores = [read_scores(run) for run in runs]
    predictions = [_predictions(run, found) for run, found in zip(runs, scores, strict=True)]
    pairs = [paired_difference(ENSEMBLES, first.info.metric, predictions[0], other) for other in predictions[1:]]
    names = names_of([run.where for run in runs])
    return Comparison(
        runs=names,
        metric=first.info.metric,
        conditions=[_conditions(first, run) for run in others],
        differences=[[pair] if pair else [] for pair in pairs],
        parameters=pd.DataFrame(),
        cost=pd.DataFrame([_cost(run) for run in runs], index=pd.Index(names, name="run")),
    )


def _predictions(run: OuterRun, scores: OuterScores) -> Predictions:
    pooled = scores.pooled
    keys = window_keys(windows_of_run(run))[pooled.windows]
    side = EvaluationSet(pooled.targets, pooled.subjects, pooled.parts, pooled.groups, cross_validated=True)
    weights_NK = None if scores.decision_weights is None else scores.decision_weights[pooled.parts - 1]
    return Predictions(keys, side, pooled.predictions, scores.level, weights_NK)


def _conditions(first: OuterRun, run: OuterRun) -> list[Condition]:
    checks = (
        ("data", "DATA", first.info.data_hash == run.info.data_hash),
        ("parts", "PARTS", sorted(first.info.parts) == sorted(run.info.parts)),
    )
    found = [Condition(same, f"same {name}" if same else f"DIFFERENT {loud}") for name, loud, same in checks]
    space = "same" if first.info.space_hash == run.info.space_hash else "other"
    return [*found, Condition(True, f"{space} search space")]


def _cost(outer: OuterRun) -> dict[str, float]:
    results = [result for run in outer.runs for result in run.results()]
    return {"trials": len(results), "worker_seconds": sum(result.seconds for result in results)}
