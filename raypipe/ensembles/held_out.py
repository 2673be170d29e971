"""Predictions for the held-out subjects, and the rows of the score table that they give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from raypipe.core.folds import Index
from raypipe.core.intervals import Interval
from raypipe.core.metrics import get_metric
from raypipe.core.progress import Progress
from raypipe.ensembles.baselines import Baseline
from raypipe.ensembles.calibration import Calibration, calibrate_nested, fit_rows
from raypipe.ensembles.candidates import Candidates
from raypipe.ensembles.choice import FittedMethods
from raypipe.ensembles.inference import combine_by_fold, predict_members, predict_one_per_fold
from raypipe.ensembles.members import (
    MergedNetworks,
    build_module,
    member_windows,
    members_by_store,
    read_members,
)
from raypipe.ensembles.oof import Floats, MemberPredictions
from raypipe.ensembles.scores import BEST, DISTILLED, ENSEMBLE, EQUAL, RowPredictions, difference_interval, mean_row
from raypipe.ensembles.soup import SoupResult


@dataclass(frozen=True)
class HeldOutPredictions:
    """Predictions for the windows of the held-out subjects."""

    members_MFNO: Floats  # noqa: N815 - axes
    """(members, folds, N, outputs)."""
    variances_MFN: Floats | None  # noqa: N815 - axes
    soups: dict[str, Floats]
    """(N, outputs) by name."""
    student: Floats | None
    """(N, outputs)."""


def predict_held_out(
    candidates: Candidates, soups: Mapping[str, SoupResult], student: MergedNetworks | None, progress: Progress | None
) -> HeldOutPredictions:
    """Predict the held-out subjects with all fold models, soups and the distilled network."""
    run, windows, members = candidates.run, candidates.windows, candidates.members
    index = run.folds.held_out_index(windows.subjects)
    members_MFNO, variances_MFN = _predict_members(candidates, index, progress)

    def merged_predictions(networks: MergedNetworks) -> Floats:
        own = member_windows(run, windows, networks.members[0])
        module = build_module(*read_members(run, own, members, [], merged=networks), candidates.device)
        return predict_one_per_fold(module, own, index, progress)

    of_soups = {name: merged_predictions(soup.networks) for name, soup in soups.items()}
    of_student = merged_predictions(student) if student is not None else None
    return HeldOutPredictions(members_MFNO, variances_MFN, of_soups, of_student)


def _predict_members(candidates: Candidates, index: Index, progress: Progress | None) -> tuple[Floats, Floats | None]:
    """Predict windows with the fold models of each member, on the store that it was trained on.

    Returns
    -------
    predictions
        (members, folds, N, outputs).
    variances
        (members, folds, N), or None if no model predicts any.
    """
    run, members = candidates.run, candidates.members
    predictions: dict[int, Floats] = {}
    variances: dict[int, Floats] = {}
    for store, places in members_by_store(run, members).items():
        own, some = candidates.windows.of(store), [members[place] for place in places]
        spec, state = read_members(run, own, some, [1.0 / len(some)] * len(some))
        values_MFNO, spread_MFN = predict_members(
            build_module(spec, state, candidates.device), own, index, len(some), progress
        )
        predictions |= dict(zip(places, values_MFNO, strict=True))
        variances |= {} if spread_MFN is None else dict(zip(places, spread_MFN, strict=True))
    members_MFNO = np.stack([predictions[place] for place in range(len(members))])
    if not variances:
        return members_MFNO, None
    zeros_FN = np.zeros(members_MFNO.shape[1:3])
    return members_MFNO, np.stack([variances.get(place, zeros_FN) for place in range(len(members))])


def table_rows(
    candidates: Candidates,
    fits: FittedMethods,
    held_out: HeldOutPredictions,
    baselines: Mapping[Baseline, RowPredictions],
    *,
    every_method: bool,
) -> dict[str, RowPredictions]:
    """Return the predictions of each row of the score table, the ensemble first, the baselines last."""

    def row(name: str) -> RowPredictions:
        if name in fits.soups:
            return RowPredictions(held_out.soups[name], fits.soups[name].oof)
        return RowPredictions(
            combine_by_fold(fits.rules[name], held_out.members_MFNO, held_out.variances_MFN),
            candidates.predictions.combine(fits.rules[name]),
            fits.nested.predictions[name],
        )

    ensemble = row(fits.chosen)
    nested = None if fits.chosen in fits.soups else fits.nested_predictions
    rows = {
        ENSEMBLE: RowPredictions(ensemble.held_out, ensemble.oof, nested),
        EQUAL: row("equal"),
        BEST: row("best"),
    }
    if every_method:
        rows |= {name: row(name) for name in [*fits.rules, *fits.soups] if name not in ("best", "equal")}
    if held_out.student is not None:
        rows[DISTILLED] = RowPredictions(held_out.student)
    return rows | {baseline.name: row for baseline, row in baselines.items()}


def difference_to_best(
    candidates: Candidates, rows: Mapping[str, RowPredictions], chosen: str, *, by_subject: bool
) -> Interval | None:
    """Return the held-out interval of ensemble minus best single trial; None where they are the same."""
    if len(candidates.members) == 1 or chosen == "best":
        return None
    metric, search, held_out = candidates.run.info.metric, candidates.search, candidates.held_out
    pair = [rows[ENSEMBLE], rows[BEST]]
    if by_subject:
        pair = [mean_row(row, search, held_out) for row in pair]
        held_out = held_out.per_subject()
    return difference_interval(metric, held_out, *(row.decided(metric).held_out for row in pair))


def nested_to_baseline(
    candidates: Candidates, rows: Mapping[str, RowPredictions], baseline: str, level: float, *, by_subject: bool
) -> Interval | None:
    """Return the nested interval of a baseline minus what is shipped; None where either has no nested predictions."""
    metric, search = candidates.run.info.metric, candidates.search
    pair = [rows[baseline], rows.get(DISTILLED, rows[ENSEMBLE])]
    if by_subject:
        pair = [mean_row(row, search, candidates.held_out) for row in pair]
        search = search.per_subject()
    nested, shipped = (row.decided(metric).nested for row in pair)
    return (
        None if nested is None or shipped is None else difference_interval(metric, search, nested, shipped, level=level)
    )


def calibrate_rows(
    like: MemberPredictions, rows: Mapping[str, RowPredictions]
) -> tuple[dict[str, RowPredictions], Calibration | None]:
    """Calibrate the class probabilities of each row, and choose the weights that decide.

    Out-of-fold and held-out predictions by a calibration that was fitted on the row's out-of-fold predictions, nested
    ones across subjects. For a metric that reads the order only, out-of-fold and nested ones stay as they are. A
    distilled network was trained on calibrated probabilities; it has the ensemble's weights.

    Parameters
    ----------
    like
        Out-of-fold predictions of any members.
    rows
        Predictions of the score table's rows, as the networks gave them.

    Returns
    -------
    rows
        The same for a regression.
    calibration
        Of what is shipped; None for a regression.
    """
    if like.kind == "regression":
        return dict(rows), None
    fitted = {name: fit_rows(like, row.oof) for name, row in rows.items() if row.oof is not None}
    out = {name: _calibrated(like, row, fitted[name]) for name, row in rows.items() if name in fitted}
    if DISTILLED not in rows:
        return out, fitted[ENSEMBLE]
    weights_K = fitted[ENSEMBLE].decision_weights
    unchanged = Calibration(1.0, (0.0,) * len(weights_K), weights_K)
    return out | {DISTILLED: replace(rows[DISTILLED], weights=np.array(weights_K))}, unchanged


def _calibrated(like: MemberPredictions, row: RowPredictions, calibration: Calibration) -> RowPredictions:
    """Return a row after calibration.

    A metric that reads the order only has nested probabilities that are not calibrated (`calibrate_nested`). Its
    out-of-fold ones are the same then: means of people would differ by calibration alone.
    """
    oof = row.oof
    if oof is not None and get_metric(like.metric).reads != "order":
        oof = calibration(oof)
    nested, weights = (None, None) if row.nested is None else calibrate_nested(like, row.nested)
    return RowPredictions(calibration(row.held_out), oof, nested, np.array(calibration.decision_weights), weights)
