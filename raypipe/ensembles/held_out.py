"""Predictions for the held-out subjects, and the rows of the score table that they give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from raypipe.core.bootstrap import Interval
from raypipe.core.progress import Progress
from raypipe.ensembles.candidates import Candidates
from raypipe.ensembles.choice import FittedMethods
from raypipe.ensembles.inference import combine_by_fold, predict_members, predict_one_per_fold
from raypipe.ensembles.members import MergedNetworks, build_module, read_members
from raypipe.ensembles.oof import Floats
from raypipe.ensembles.scores import BEST, DISTILLED, ENSEMBLE, EQUAL, RowPredictions, difference_interval
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
    index, n = run.folds.held_out_index(windows.subjects), len(members)
    module = build_module(*read_members(run, windows, members, [1.0 / n] * n))
    members_MFNO, variances_MFN = predict_members(module, windows, index, n, progress)

    def merged_predictions(networks: MergedNetworks) -> Floats:
        module = build_module(*read_members(run, windows, members, [], merged=networks))
        return predict_one_per_fold(module, windows, index, progress)

    of_soups = {name: merged_predictions(soup.networks) for name, soup in soups.items()}
    of_student = merged_predictions(student) if student is not None else None
    return HeldOutPredictions(members_MFNO, variances_MFN, of_soups, of_student)


def table_rows(
    candidates: Candidates, fits: FittedMethods, held_out: HeldOutPredictions, *, every_method: bool
) -> dict[str, RowPredictions]:
    """Return the predictions of each row of the score table, the ensemble first."""

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
    return rows


def difference_to_best(
    candidates: Candidates, rows: Mapping[str, RowPredictions], chosen: str, *, by_subject: bool
) -> Interval | None:
    """Return the held-out interval of ensemble minus best single trial; None where they are the same."""
    if len(candidates.members) == 1 or chosen == "best":
        return None
    held_out, pair = candidates.held_out, (rows[ENSEMBLE].held_out, rows[BEST].held_out)
    if by_subject:
        a, b = (held_out.mean_per_subject(predictions) for predictions in pair)
        return difference_interval(candidates.run.info.metric, held_out.per_subject(), a, b)
    return difference_interval(candidates.run.info.metric, held_out, *pair)
