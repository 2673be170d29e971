"""Compare runs: equality of data and folds, paired differences of scores, changed parameters, cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raypipe.core.errors import UserError
from raypipe.core.folds import FoldMap
from raypipe.core.metrics import get_metric
from raypipe.core.parameters import flatten
from raypipe.data.named_stores import window_keys
from raypipe.data.window_cache import open_windows
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.calibration import calibrate_nested
from raypipe.ensembles.fitted import Ensemble
from raypipe.ensembles.inference import weighted_mean
from raypipe.ensembles.oof import MemberPredictions, read_oof_predictions
from raypipe.ensembles.scores import EvaluationSet
from raypipe.reporting.pairing import PairedDifference, Predictions, paired_difference
from raypipe.reporting.trial_table import trials_table
from raypipe.storage.lease import read_lease
from raypipe.storage.records import Member
from raypipe.storage.remote import shell_quoted
from raypipe.storage.run_store import RunStore

BEST_TRIAL = "best trial, out of fold"
ENSEMBLE_OOF = "ensemble, out of fold (its weights were fitted on these subjects)"
ENSEMBLE_HELD_OUT = "ensemble, held-out subjects"
OPTIMISTIC = "Out-of-fold scores of best trials are optimistic, more so in runs of more trials."
_NOTES_OF_CLASSES = {
    "classes": ["Out of fold, weights chosen on other subjects decide between classes; status has the most probable."],
    "probabilities": ["Out of fold, probabilities are calibrated on other subjects; in status they are the networks'."],
}
"""By what the metric reads, how out-of-fold scores differ from those that trials are ranked by."""


@dataclass(frozen=True)
class Condition:
    """Comparison of something that the scores of two runs depend on, such as data or folds."""

    same: bool
    """False if it differs, so that the settings alone do not explain a difference of scores."""
    text: str


@dataclass(frozen=True)
class Comparison:
    """Several runs, each compared with the first."""

    runs: list[str]
    metric: str
    conditions: list[list[Condition]]
    """For each run but the first: data, folds, held-out subjects, search space, versions."""
    differences: list[list[PairedDifference]]
    """For each run but the first."""
    parameters: pd.DataFrame
    """A row for each parameter that differs between the best trials, a column for each run."""
    cost: pd.DataFrame
    """A row for each run: ``trials``, ``complete``, ``pruned``, ``failed``, ``epochs``, ``worker_seconds`` (training
    and predicting, summed over folds), ``driven_seconds`` (time that drivers ran), ``best_trial`` (its number)."""
    notes: list[str] = field(default_factory=list)
    """How to read the scores."""


def compare_runs(runs: Sequence[RunStore]) -> Comparison:
    """Compare runs that predict the same target.

    Parameters
    ----------
    runs
        Two or more; the others are compared with the first.

    Returns
    -------
    Comparison
        With 95 % intervals by bootstrap over the subjects that both runs predict (`bootstrap.difference_of`).

    Raises
    ------
    UserError
        There is only one run, the runs have different metrics, classes or values, a run has no complete trial, or its
        windows are missing.
    LeakError
        Predictions do not follow a run's fold map.
    """
    _check_comparable(runs)
    first, *others = runs
    stores = _open_stores(runs)
    predictions = [_predictions(run, windows) for run, windows in zip(runs, stores, strict=True)]
    names = names_of([run.where for run in runs])
    return Comparison(
        runs=names,
        metric=first.info.metric,
        conditions=[_conditions(first, run, stores[0], store) for run, store in zip(others, stores[1:], strict=True)],
        differences=[_differences(first.info.metric, predictions[0], other) for other in predictions[1:]],
        parameters=_changed_parameters(runs, names),
        cost=pd.DataFrame([_cost(run) for run in runs], index=pd.Index(names, name="run")),
        notes=[OPTIMISTIC, *_NOTES_OF_CLASSES.get(get_metric(first.info.metric).reads, [])],
    )


def _check_comparable(runs: Sequence[RunStore]) -> None:
    if len(runs) < 2:
        raise UserError("compare needs two runs or more: raypipe compare RUN1 RUN2")
    first = runs[0]
    for run in runs[1:]:
        compared = [(each.info.metric, each.info.classes, each.info.outputs) for each in (first, run)]
        if compared[0] != compared[1]:
            raise UserError(
                f"{first.where} and {run.where} cannot be compared: {first.info.target} is scored by "
                f"{first.info.metric} and {run.info.target} by {run.info.metric}, or their classes or values differ"
            )
    for run in runs:
        if not run.ranked():
            raise UserError(
                f"{run.where}: no trial is complete; continue the run first: raypipe resume {shell_quoted(run.where)}"
            )


def names_of(paths: Sequence[str]) -> list[str]:
    """Return the shortest ends of runs' paths that tell them apart, or whole paths where a run is given twice."""
    parts = [path.rstrip("/").split("/") for path in paths]
    for n in range(1, max(map(len, parts))):
        ends = ["/".join(each[-n:]) for each in parts]
        if len(set(ends)) == len(ends):
            return ends
    return list(paths)


def _open_stores(runs: Sequence[RunStore]) -> list[WindowStore]:
    """Open each run's windows; runs of the same data share the first store that can be opened."""
    stores: dict[str, WindowStore] = {}
    problems: dict[str, UserError] = {}
    for run in runs:
        data_hash = run.info.data_hash
        if data_hash in stores:
            continue
        try:
            store = open_windows(run.info.data)
            if store.data_hash != data_hash:
                raise UserError(f"{store.path}: prepared again since {run.where} was made, with other windows")
            stores[data_hash] = store
        except UserError as error:
            problems.setdefault(data_hash, error)
    for run in runs:
        if run.info.data_hash not in stores:
            raise problems[run.info.data_hash]
    return [stores[run.info.data_hash] for run in runs]


def _predictions(run: RunStore, windows: WindowStore) -> dict[str, Predictions]:
    """Return a run's predictions by predictor: its best trial and, where there is one, its ensemble."""
    keys = window_keys(windows)
    best = read_oof_predictions(run, [Member(run.ranked()[0].number)], windows.subjects, windows.targets)
    found = {BEST_TRIAL: _out_of_fold(keys, best, best.predictions[0])}
    if Ensemble.exists(run):
        ensemble = Ensemble.load(run)
        if ensemble.merged is None:  # a soup's out-of-fold predictions are not those of its members
            members = read_oof_predictions(run, ensemble.members, windows.subjects, windows.targets)
            rule = ensemble.rule
            oof = members.combine(rule) if rule else weighted_mean(members.predictions, ensemble.weights)
            found[ENSEMBLE_OOF] = _out_of_fold(keys, members, oof)
        held, weights = ensemble.held_out, ensemble.decision_weights
        weights_NK = None if weights is None else np.tile(weights, (len(held.windows), 1))
        found[ENSEMBLE_HELD_OUT] = Predictions(
            keys[held.windows], held.evaluation_set, held.predictions, run.info.level, weights_NK
        )
    return found


def _out_of_fold(keys: NDArray[np.str_], members: MemberPredictions, oof: NDArray[Any]) -> Predictions:
    """Return predictions (N, outputs) of search subjects, calibrated and decided as nested ones: by other subjects."""
    side = EvaluationSet(members.targets, members.subjects, members.folds, members.groups, cross_validated=True)
    oof, weights_NK = calibrate_nested(members, oof)
    return Predictions(keys[members.windows], side, oof, members.level, weights_NK)


def _differences(metric: str, first: dict[str, Predictions], other: dict[str, Predictions]) -> list[PairedDifference]:
    both = [name for name in first if name in other]
    found = [paired_difference(name, metric, first[name], other[name]) for name in both]
    return [each for each in found if each is not None]


def _conditions(first: RunStore, run: RunStore, mine: WindowStore, theirs: WindowStore) -> list[Condition]:
    return [
        _data_condition(first, run, mine, theirs),
        *_fold_conditions(first, run),
        _space_condition(first, run),
        *_version_conditions(first, run),
    ]


def _data_condition(first: RunStore, run: RunStore, mine: WindowStore, theirs: WindowStore) -> Condition:
    if run.info.data_hash == first.info.data_hash:
        return Condition(True, f"same data: {len(mine)} windows (hash {first.info.data_hash[:12]})")
    both = len(np.intersect1d(window_keys(mine), window_keys(theirs)))
    if mine.names or theirs.names:
        stores = " and ".join(", ".join(each.names) or "one without a name" for each in (mine, theirs))
        return Condition(False, f"DIFFERENT DATA: stores {stores}; {both} windows at the same onset of both")
    plan, other = mine.manifest.plan.model_dump(), theirs.manifest.plan.model_dump()
    changed = [f"{key} {plan[key]} and {other[key]}" for key in plan if key != "channels" and plan[key] != other[key]]
    if plan["channels"] != other["channels"]:
        changed.append(f"{len(mine.channels)} and {len(theirs.channels)} channels, not the same")
    text = (
        f"DIFFERENT DATA: {len(mine)} and {len(theirs)} windows, {both} at the same onset of the same recording; "
        f"{', '.join(changed) or 'prepared alike, so the recordings have changed'}"
    )
    return Condition(False, text)


def _fold_conditions(first: RunStore, run: RunStore) -> list[Condition]:
    """Compare the fold maps, and the held-out subjects if they differ."""
    one, two = first.folds, run.folds
    if (one.fold_of, one.repeated) == (two.fold_of, two.repeated):
        text = f"same fold map: {_count_folds(one)}, {len(one.held_out)} subjects held out"
        folds = Condition(True, text)
    else:
        shared = sorted(set(one.fold_of) & set(two.fold_of))
        maps = [(folds.fold_of, *folds.repeated) for folds in (one, two)]
        moved = sum(any(a[name] != b[name] for a, b in zip(*maps, strict=False)) for name in shared)
        text = (
            f"DIFFERENT FOLDS: {_count_folds(one)} and {_count_folds(two)}; of {len(shared)} subjects in both, {moved} "
            "are in another fold, so their models were trained on other subjects"
        )
        if one.repeats != two.repeats:
            text += "; the scores out of fold are over all repeats of each"
        folds = Condition(False, text)
    if one.held_out == two.held_out:
        return [folds]
    both = len(set(one.held_out) & set(two.held_out))
    counts = f"{len(one.held_out)} and {len(two.held_out)}, {both} in both"
    return [folds, Condition(False, f"DIFFERENT HELD-OUT SUBJECTS: {counts}; only those are compared")]


def _count_folds(folds: FoldMap) -> str:
    return f"{folds.folds_per_repeat} folds" + (f" in {folds.repeats} repeats" if folds.repeats > 1 else "")


def _space_condition(first: RunStore, run: RunStore) -> Condition:
    if first.info.space_hash == run.info.space_hash:
        return Condition(True, f"same search space: {first.info.space_hash[:12]}")
    names = [each.info.space.rpartition("/")[2] for each in (first, run)]
    return Condition(True, f"other search space: {names[0]} and {names[1]}")


def _version_conditions(first: RunStore, run: RunStore) -> list[Condition]:
    mine, theirs = first.info.versions, run.info.versions
    changed = [f"{name} {mine[name]} and {theirs.get(name)}" for name in mine if mine[name] != theirs.get(name)]
    return [Condition(True, "other versions: " + ", ".join(changed))] if changed else []


def _changed_parameters(runs: Sequence[RunStore], names: list[str]) -> pd.DataFrame:
    """Return the parameters that differ between the best trials of the runs."""
    configs = [flatten(run.config(run.ranked()[0].number)) for run in runs]
    names_of_all = dict.fromkeys(name for config in configs for name in config)  # models have parameters of their own
    changed = [name for name in names_of_all if len({repr(config.get(name)) for config in configs}) > 1]
    rows = [[config.get(name, "") for config in configs] for name in changed]
    return pd.DataFrame(rows, index=pd.Index(changed, name="parameter"), columns=pd.Index(names), dtype=object)


def _cost(run: RunStore) -> dict[str, int | float]:
    table = trials_table(run)
    states = table["state"].value_counts()
    driver = read_lease(run.folder)
    return {
        "trials": len(table),
        **{state: int(states.get(state, 0)) for state in ("complete", "pruned", "failed")},
        "epochs": int(table["trained"].sum()),
        "worker_seconds": float(table["seconds"].sum()),
        "driven_seconds": driver.spent if driver else float("nan"),
        "best_trial": run.ranked()[0].number,
    }
