"""Score an outer cross-validation: every subject is predicted by the ensemble of the part that has not seen them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raypipe.core.bootstrap import MAX_CHANCE, smallest_chance
from raypipe.core.errors import UserError
from raypipe.core.folds import Index
from raypipe.core.intervals import Interval
from raypipe.core.levels import Level, ScoredRows, rows_at_level
from raypipe.core.metrics import constant_prediction, get_metric
from raypipe.core.progress import Progress
from raypipe.ensembles.comparisons import BaselineComparison, Pair, describe_pairs, level_of_best
from raypipe.ensembles.decisions import decide
from raypipe.ensembles.evaluation_log import OPTIMISTIC, UNCOUNTED, read_evaluations
from raypipe.ensembles.fit import fit_ensemble
from raypipe.ensembles.fitted import Ensemble, read_ensemble_record
from raypipe.ensembles.labels import describe_interval, describe_target, metric_label, resampled, with_article
from raypipe.ensembles.nested_cv import best_name
from raypipe.ensembles.outcome import side_of
from raypipe.ensembles.scores import DISTILLED, ENSEMBLE, EvaluationSet, difference_interval, score_interval
from raypipe.ensembles.unfinished import require_ended
from raypipe.storage.outer_run import OuterRun
from raypipe.storage.run_store import RunStore


@dataclass(frozen=True)
class PooledPredictions:
    """Predictions of all windows, each by the ensemble of the part that holds out its subject."""

    windows: Index
    """(N,) window numbers in the store."""
    subjects: NDArray[np.str_]
    """(N,)."""
    groups: NDArray[np.str_]
    """(N,) group of each subject, or the subject where there are none."""
    targets: NDArray[Any]
    """(N,)."""
    parts: NDArray[np.int64]
    """(N,) from 1."""
    predictions: NDArray[np.float32]
    """(N, outputs)."""


@dataclass(frozen=True)
class OuterScores:
    """Scores of all subjects of an outer cross-validation."""

    metric: str
    level: Level
    """Whether one data point is a window, or the mean prediction of a person."""
    pooled: PooledPredictions
    rows: ScoredRows
    """Predictions at `level`; its `folds` are the parts."""
    constant_predictions: NDArray[np.float64]
    """(rows, outputs) without EEG: the best constant of all subjects.

    That of the other parts' subjects would be lowest where targets are high: small parts would beat it by chance.
    """
    baselines: dict[str, NDArray[np.float64]]
    """Predictions (rows, outputs) of each classical baseline that a scorer can use, fitted on the other parts."""
    decision_weights: NDArray[np.float64] | None
    """(parts, K): the weights of classes that each part's ensemble decides by; None of values."""
    by_part: pd.DataFrame
    """One row per part: ``subjects``, ``method``, ``nested``, ``score`` and ``constant``, held out.

    ``score`` is that of the distilled network where one is shipped, ``nested`` that of the ensemble it learned from.
    """
    parameters: pd.DataFrame
    """Parameters that the best trial of each part has drawn: a row per parameter, a column per part."""
    held_out_evaluations: int
    """Scorings of the subject who was scored most often, by all runs on the store."""
    notes: list[str]
    """How often the subjects were scored, from the second time on, and which scorings are not counted."""

    @property
    def score(self) -> float:
        """Score of all subjects. Metrics that only rank are taken within each part and averaged."""
        return self.evaluation_set.score(self.metric, self.rows.predictions)

    @property
    def interval(self) -> Interval:
        """95 % interval of `score` over subjects, or their groups."""
        return score_interval(self.metric, self.evaluation_set, self.rows.predictions)

    @property
    def constant(self) -> float:
        """Score of the predictor without EEG."""
        return self.evaluation_set.score(self.metric, self.constant_predictions)

    @property
    def difference(self) -> Interval:
        """95 % interval of the difference to the predictor without EEG."""
        return difference_interval(self.metric, self.evaluation_set, self.rows.predictions, self.constant_predictions)

    @property
    def subjects(self) -> int:
        """Number of subjects."""
        return len(np.unique(self.rows.subjects))

    @property
    def units(self) -> NDArray[np.str_]:
        """Group of each row's subject, or the subject: what intervals resample (N,)."""
        group_of = dict(zip(self.pooled.subjects.tolist(), self.pooled.groups.tolist(), strict=True))
        return np.array([group_of[str(subject)] for subject in self.rows.subjects])

    @property
    def evaluation_set(self) -> EvaluationSet:
        """What predictions of `rows` are scored on."""
        return EvaluationSet(self.rows.targets, self.rows.subjects, self.rows.folds, self.units, cross_validated=True)


def fit_parts(
    outer: OuterRun,
    *,
    top: int,
    method: str,
    max_members: int | None = None,
    max_mb: float | None = None,
    distilled: bool = False,
    device: str | None = None,
    so_far: bool = False,
    progress: Progress | None = None,
) -> list[str]:
    """Fit the ensemble of every part, save it and score it once on the subjects that the part holds out.

    A part is left as it is if its ensemble was fitted by the same options, but for the device, after its last trial had
    ended: its subjects are not looked at again.

    Parameters
    ----------
    outer
        An outer cross-validation whose parts are all made.
    top, method, max_members, max_mb, distilled, device, so_far, progress
        See `raypipe.api.fit_ensemble`.

    Returns
    -------
    list of str
        Runs of the parts that were fitted.

    Raises
    ------
    UserError
        A part has no run or no complete trial, or one is still running; see also `raypipe.api.fit_ensemble`.
    """
    runs = _all_runs(outer)
    for run in runs:
        require_ended(run, so_far=so_far)
    options: dict[str, Any] = {"top": top, "method": method, "max_members": max_members, "max_mb": max_mb}
    wanted = [run for run in runs if not _is_fitted(run, options, distilled=distilled)]
    how: dict[str, Any] = {"device": device, "so_far": so_far, "progress": progress}
    for run in wanted:
        fit_ensemble(run, distilled=distilled, **options, **how).save()
    return [run.where for run in wanted]


def _all_runs(outer: OuterRun) -> list[RunStore]:
    runs = outer.runs
    if len(runs) < len(outer.info.parts):
        raise UserError(
            f"{outer.where}: {len(runs)} of {len(outer.info.parts)} parts are begun; continue with: raypipe resume RUN"
        )
    return runs


def _is_fitted(run: RunStore, options: Mapping[str, Any], *, distilled: bool) -> bool:
    """Return whether a part's ensemble is up to date: saved after its last scoring, by these options, of all trials."""
    evaluations, record = read_evaluations(run), read_ensemble_record(run)
    if not evaluations or record is None:
        return False
    last = evaluations[-1]
    same = all(getattr(last, name) == value for name, value in options.items())
    ended = max(result.finished for result in run.results())
    return same and record.created >= last.time > ended and Ensemble.load(run).distilled == distilled


def read_scores(outer: OuterRun) -> OuterScores:
    """Return the scores of all subjects.

    Raises
    ------
    UserError
        A part has no ensemble yet, or a record is damaged.
    """
    runs = _all_runs(outer)
    for run in runs:
        if not Ensemble.exists(run):
            raise UserError(
                f"{run.where}: no ensemble yet; fit those of all parts with: raypipe ensemble {outer.where}"
            )
    ensembles = [Ensemble.load(run) for run in runs]
    pooled, info, level = _pool(ensembles), outer.info, runs[0].info.level
    weights_PK = np.array([each.decision_weights for each in ensembles]) if info.classes else None
    rows = _scored_rows(info.metric, level, pooled, weights_PK)
    return OuterScores(
        metric=info.metric,
        level=level,
        pooled=pooled,
        rows=rows,
        constant_predictions=constant_prediction(
            info.kind, rows.targets, len(rows.targets), len(info.classes), info.metric
        ),
        baselines=_baselines(ensembles, info.metric, level, pooled),
        decision_weights=weights_PK,
        by_part=_table_of_parts(ensembles),
        parameters=_parameters(ensembles),
        held_out_evaluations=max(each.held_out_evaluations for each in ensembles),
        notes=_notes(ensembles),
    )


def _pool(ensembles: list[Ensemble]) -> PooledPredictions:
    held = [ensemble.held_out for ensemble in ensembles]

    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(one, name) for one in held])

    return PooledPredictions(
        windows=joined("windows"),
        subjects=joined("subjects"),
        groups=joined("groups"),
        targets=joined("targets"),
        parts=np.concatenate([np.full(len(one.targets), number) for number, one in enumerate(held, start=1)]),
        predictions=joined("predictions"),
    )


def _scored_rows(
    metric: str, level: Level, pooled: PooledPredictions, weights_PK: NDArray[np.float64] | None
) -> ScoredRows:
    """Return the predictions at a level; for a metric of classes, those that each part's weights decide for."""
    rows = rows_at_level(level, pooled.targets, pooled.subjects, pooled.parts, pooled.predictions)
    if weights_PK is None or get_metric(metric).reads != "classes":
        return rows
    return rows._replace(predictions=decide(rows.predictions, weights_PK[rows.folds - 1]))


def _baselines(
    ensembles: list[Ensemble], metric: str, level: Level, pooled: PooledPredictions
) -> dict[str, NDArray[np.float64]]:
    """Return `OuterScores.baselines`: those that every part has."""
    places = [{one.name: place for place, one in enumerate(each.baselines) if one.usable} for each in ensembles]
    found = {}
    for name in places[0]:
        if all(name in each for each in places):
            own = [(each.held_out, place[name]) for each, place in zip(ensembles, places, strict=True)]
            predictions = np.concatenate([held.baselines[place] for held, place in own])
            weights_PK = np.array([held.baseline_weights[place] for held, place in own])
            rows = _scored_rows(metric, level, replace(pooled, predictions=predictions), weights_PK)
            found[name] = rows.predictions.astype(np.float64)
    return found


def _table_of_parts(ensembles: list[Ensemble]) -> pd.DataFrame:
    rows = [
        {
            "subjects": int(one.table["subjects"].iloc[0]),
            "method": f"{one.method}, distilled" if one.distilled else one.method,
            "nested": float(one.table["nested"][ENSEMBLE]),
            "score": float(one.table["held_out"][DISTILLED if one.distilled else ENSEMBLE]),
            "constant": float(one.table["held_out"].iloc[-1]),
        }
        for one in ensembles
    ]
    return pd.DataFrame(rows, index=pd.RangeIndex(1, len(rows) + 1, name="part"))


def _parameters(ensembles: list[Ensemble]) -> pd.DataFrame:
    drawn = {number: one.run.record(one.run.ranked()[0].number).params for number, one in enumerate(ensembles, start=1)}
    return pd.DataFrame(drawn).sort_index()


def _notes(ensembles: list[Ensemble]) -> list[str]:
    times = max(each.held_out_evaluations for each in ensembles)
    notes = [f"These subjects have been scored up to {times} times. {OPTIMISTIC}"] if times > 1 else []
    uncounted = [note for each in ensembles for note in each.notes if note.startswith(UNCOUNTED)]
    return notes + list(dict.fromkeys(uncounted))


def write_verdict(outer: OuterRun, scores: OuterScores) -> str:
    """Write the result in a sentence, and another on the best classical baseline: the first if that is better."""
    sentence, baseline = _score_sentence(outer, scores), compare_with_baseline(scores)
    if baseline is None:
        return sentence
    return " ".join([baseline.sentence, sentence] if baseline.side < 0 else [sentence, baseline.sentence])


def compare_with_baseline(scores: OuterScores) -> BaselineComparison | None:
    """Compare the ensembles with the best classical baseline on all subjects; None where a score is undefined.

    The interval of the paired difference is widened for the choice among the baselines (`level_of_best`).
    """
    metric, subjects = scores.metric, scores.evaluation_set
    values = {name: subjects.score(metric, each) for name, each in scores.baselines.items()}
    known = {name: value for name, value in values.items() if not np.isnan(value)}
    if not known or np.isnan(scores.score):
        return None
    name, level = best_name(known, metric), level_of_best(len(scores.baselines))
    found = difference_interval(metric, subjects, scores.rows.predictions, scores.baselines[name], level=level)
    difference = scores.score - known[name]
    pair = Pair("held-out", known[name], scores.score, difference, found.low, found.high, level)
    return describe_pairs([pair], metric, name, "the ensembles", "They are")


def _score_sentence(outer: OuterRun, scores: OuterScores) -> str:
    n, label, target = scores.subjects, metric_label(scores.metric), describe_target(outer.info.target)
    inner, difference = scores.interval, scores.difference
    reached = (
        f"Over all {n} subjects, each predicted by a search that has not seen them, the ensembles reach "
        f"{with_article(label)} of {scores.score:z.3f}"
    )
    baseline = "chance (0.5)" if scores.metric == "auc" else f"the prediction without EEG ({scores.constant:z.3f})"
    rows, classes = scores.rows, outer.info.kind == "classification"
    too_few = smallest_chance(rows.targets, scores.units, classes=classes, parts=rows.folds) > MAX_CHANCE
    units = len(np.unique(scores.units))
    counted = f"{n} subjects" if units == n else resampled(n, units)
    few = f"beside {baseline}: {counted} are too few to say whether it generalizes to new people"
    relation = {
        1: f"better than {baseline}: it generalizes to new people",
        0: f"no detectable difference from {baseline}: there is no evidence that it predicts {target}",
        -1: f"worse than {baseline}: its predictions of {target} do not generalize to new people",
    }[side_of(scores.metric, difference.low, difference.high)]
    over = "" if units == n else f" over {resampled(n, units)}"
    if np.isnan(inner.low) and not too_few:
        return f"{reached}, and its interval is undefined: it shows nothing about {target}."
    interval = describe_interval(inner.low, inner.high, over)
    return f"{reached} ({interval}), {few if too_few else relation}."
