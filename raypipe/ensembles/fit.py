"""Fit an ensemble on out-of-fold predictions, then score it once on the held-out subjects."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from raypipe.core.errors import UserError, nearest
from raypipe.core.levels import mean_per_row
from raypipe.core.metrics import constant_prediction, get_metric, score
from raypipe.core.progress import Progress
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.baselines import Baseline, baseline_rows, best_baseline
from raypipe.ensembles.calibration import calibrate_across, scored_rows
from raypipe.ensembles.candidates import Candidates, read_candidates
from raypipe.ensembles.choice import ALL, FittedMethods, ShippedMembers, fit_methods, shipped_members
from raypipe.ensembles.comparisons import level_of_best
from raypipe.ensembles.distillation import choose_student, distill
from raypipe.ensembles.evaluation_log import Evaluations, record_evaluation
from raypipe.ensembles.families import describe_families
from raypipe.ensembles.fitted import Ensemble
from raypipe.ensembles.held_out import (
    HeldOutPredictions,
    calibrate_rows,
    difference_to_best,
    nested_to_baseline,
    predict_held_out,
    table_rows,
)
from raypipe.ensembles.held_out_record import HeldOut
from raypipe.ensembles.members import CPU, MergedNetworks
from raypipe.ensembles.methods import METHODS
from raypipe.ensembles.nested_cv import AUTO, SizeScore, error_correlations, score_by_ensemble_size
from raypipe.ensembles.outcome import ChosenBaseline, Outcome
from raypipe.ensembles.output_scores import score_outputs, sentence
from raypipe.ensembles.people import fit_people
from raypipe.ensembles.reliability import Reliability, reliability_of
from raypipe.ensembles.scores import DISTILLED, ENSEMBLE, RowPredictions, is_by_subject, score_table
from raypipe.ensembles.soup import SOUPS
from raypipe.ensembles.unfinished import require_ended
from raypipe.ensembles.verdict import write_verdict
from raypipe.storage.run_store import RunStore
from raypipe.training.device import parse_device


def fit_ensemble(
    run: RunStore,
    *,
    top: int = 10,
    method: str = AUTO,
    max_members: int | None = None,
    max_mb: float | None = None,
    distilled: bool = False,
    device: str | None = None,
    so_far: bool = False,
    windows: WindowStore | None = None,
    progress: Progress | None = None,
) -> Ensemble:
    """Combine the best trials by their out-of-fold predictions, then score once on the held-out subjects.

    See `raypipe.api.fit_ensemble` for the other parameters and the errors.

    Parameters
    ----------
    windows
        The run's windows; None opens the store that the run was made from.
    """
    _require_known(method)
    where = None if device is None else parse_device(device)
    unfinished = require_ended(run, so_far=so_far)
    candidates = read_candidates(
        run,
        windows,
        top=top,
        max_networks=max_members,
        max_mb=max_mb,
        device=where or CPU,
        progress=progress,
    )
    if distilled:
        choose_student(run, candidates.members)

    # Methods are fitted and chosen on out-of-fold predictions only.
    fits = fit_methods(candidates, method, progress)
    student = _distill(candidates, fits, where, progress) if distilled else None
    baselines = baseline_rows(run, candidates.windows, candidates.predictions, progress)

    # The held-out subjects are scored once.
    held_out = predict_held_out(candidates, fits.soups, student, progress)
    evaluations = record_evaluation(
        run, candidates.windows, candidates.trials, method, top=top, max_members=max_members, max_mb=max_mb
    )
    raw = table_rows(candidates, fits, held_out, baselines, every_method=method == ALL)
    rows, calibration = calibrate_rows(candidates.predictions, raw)
    table = score_table(candidates.scoring, rows, candidates.search, candidates.held_out)

    shipped = shipped_members(candidates, fits, student)
    verdict, notes = write_verdict(_outcome(candidates, fits, rows, table, shipped, evaluations, list(baselines)))
    sets, like = (candidates.search, candidates.held_out), candidates.predictions
    outputs = score_outputs(run.info.outputs, candidates.scoring, rows, *sets, like)
    return Ensemble(
        run=run,
        method=fits.chosen,
        members=shipped.members,
        weights=shipped.weights,
        rule=shipped.rule,
        merged=shipped.merged,
        calibration=calibration,
        reliability=_reliability(candidates, raw[ENSEMBLE]),
        people=fit_people(candidates.predictions, None if distilled else raw[ENSEMBLE].nested),
        table=table,
        baselines=list(baselines),
        verdict=verdict,
        notes=[*unfinished, *sentence(outputs, run.info.metric), *notes, *candidates.pool.undefined_choices()],
        outputs=outputs,
        held_out=_held_out_record(candidates, rows, held_out, shipped, list(baselines), table),
        held_out_evaluations=evaluations.times,
        diversity=_diversity(candidates),
        families=describe_families(candidates, fits, shipped),
        top=top,
        excluded=fits.excluded,
    )


def _require_known(method: str) -> None:
    names = [AUTO, ALL, *METHODS, *SOUPS]
    if method not in names:
        raise UserError(f"--method {method}: there is no such method; {nearest(method, names)}")


def _distill(
    candidates: Candidates, fits: FittedMethods, device: torch.device | None, progress: Progress | None
) -> MergedNetworks:
    """Train a network with the configuration of the best network among the members, on the nested predictions."""
    like, predictions = choose_student(candidates.run, candidates.members), fits.nested_predictions
    if candidates.run.info.kind == "classification":
        predictions = calibrate_across(candidates.predictions, predictions)[0]
    index, row_N = np.unique(candidates.predictions.windows, return_inverse=True)
    predictions = mean_per_row(row_N, predictions)  # over repeats of the folds
    return distill(candidates.run, candidates.windows, like, index, predictions, progress, device=device)


def _outcome(
    candidates: Candidates,
    fits: FittedMethods,
    rows: Mapping[str, RowPredictions],
    table: pd.DataFrame,
    shipped: ShippedMembers,
    evaluations: Evaluations,
    baselines: list[Baseline],
) -> Outcome:
    """Return what the verdict is written from."""
    by_subject = is_by_subject(table)
    distilled = shipped.merged is not None and shipped.merged.distilled
    return Outcome(
        table=table,
        metric=candidates.run.info.metric,
        target=candidates.run.info.target,
        method=fits.chosen,
        candidates=len(candidates.members),
        alone=shipped.alone,
        to_best=difference_to_best(candidates, rows, fits.chosen, by_subject=by_subject),
        nested_scores=_scores_of_choice(candidates, fits) if fits.chosen_by_score else None,
        distilled=distilled,
        baseline=_chosen_baseline(candidates, rows, table, baselines),
        evaluations=evaluations,
        notes=[] if distilled else fits.notes(candidates),
    )


def _chosen_baseline(
    candidates: Candidates, rows: Mapping[str, RowPredictions], table: pd.DataFrame, baselines: list[Baseline]
) -> ChosenBaseline | None:
    name, choices = best_baseline(baselines, table, candidates.run.info.metric), sum(one.usable for one in baselines)
    if name is None:
        return None
    level = level_of_best(choices)
    nested = nested_to_baseline(candidates, rows, name, level, by_subject=is_by_subject(table))
    return ChosenBaseline(name, choices, nested)


def _scores_of_choice(candidates: Candidates, fits: FittedMethods) -> dict[str, float]:
    """Return the nested score of each method that was chosen among, of predictions as the score table has them."""
    like, metric = candidates.predictions, candidates.run.info.metric
    if candidates.run.info.kind == "regression" or get_metric(metric).reads == "order":
        return {name: fits.nested.scores[name] for name in fits.among}
    found = {name: scored_rows(like, fits.nested.predictions[name]) for name in fits.among}
    return {name: score(metric, rows.targets, rows.predictions) for name, rows in found.items()}


def _reliability(candidates: Candidates, row: RowPredictions) -> Reliability | None:
    """Return the reliability of a row's nested predictions; None without them, and of several values (`outputs`)."""
    if row.nested is None or candidates.run.info.outputs:
        return None
    return reliability_of(candidates.predictions, row.nested)


def _diversity(candidates: Candidates) -> dict[str, Any]:
    """Return `Ensemble.diversity`."""
    n_members, curve = len(candidates.members), score_by_ensemble_size(candidates.pool)
    unknown = [SizeScore(math.nan, math.nan, math.nan)] * n_members
    return {
        "members": candidates.predictions.names,
        "correlations": error_correlations(candidates.predictions).round(4).tolist(),
        "curve": {name: [list(each) for each in (scores + unknown)[:n_members]] for name, scores in curve.items()},
    }


def _held_out_record(
    candidates: Candidates,
    rows: Mapping[str, RowPredictions],
    held_out: HeldOutPredictions,
    shipped: ShippedMembers,
    baselines: list[Baseline],
    table: pd.DataFrame,
) -> HeldOut:
    """Return the held-out predictions of what is shipped, of its members and of the baselines."""
    search, evaluation = candidates.search, candidates.held_out
    targets = (search.per_subject() if is_by_subject(table) else search).targets
    metric, kind, n_classes, _ = candidates.scoring
    shipped_row, own = rows.get(DISTILLED, rows[ENSEMBLE]), [rows[one.name] for one in baselines]
    n, n_outputs = shipped_row.held_out.shape
    weights = [np.ones(n_outputs) if row.weights is None else row.weights for row in own]
    return HeldOut(
        windows=candidates.run.folds.held_out_index(candidates.windows.subjects),
        subjects=np.array([str(subject) for subject in evaluation.subjects]),
        groups=np.array([str(unit) for unit in evaluation.units]),
        targets=evaluation.targets,
        predictions=shipped_row.held_out.astype(np.float32),
        trials=held_out.members_MFNO[shipped.indices].mean(axis=1).astype(np.float32),
        constant=constant_prediction(kind, targets, 1, n_classes, metric)[0],
        baselines=np.array([row.held_out for row in own], np.float32).reshape(len(own), n, n_outputs),
        baseline_weights=np.array(weights, np.float64).reshape(len(own), n_outputs),
    )
