"""Runs beside each other: the same data and folds or not, paired differences, parameters that changed, cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raypipe.core.config import flat
from raypipe.core.errors import UserError
from raypipe.core.metrics import get_metric, score
from raypipe.data.window_cache import open_windows
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.fit import Ensemble
from raypipe.ensembles.inference import mix
from raypipe.ensembles.oof import read_members_oof
from raypipe.ensembles.scores import Side, difference, target_per_subject
from raypipe.ensembles.verdict import ENOUGH
from raypipe.reporting.trial_table import trials_table
from raypipe.storage.lease import read_lease
from raypipe.storage.run_store import Member, RunStore

if TYPE_CHECKING:
    from raypipe.data.window_store import WindowStore

TRIAL = "best trial, out of fold"
FITTED = "ensemble, out of fold (its weights saw these subjects)"
HELD_OUT = "ensemble, held-out subjects"


@dataclass(frozen=True)
class Ground:
    """On what two runs stand, in words; ``same`` where a difference of scores is one of settings alone."""

    same: bool
    words: str


@dataclass(frozen=True)
class Comparison:
    """Several runs, each against the first."""

    runs: list[str]
    metric: str
    grounds: list[list[Ground]]
    """For each run but the first: data, folds, held-out subjects, search space."""
    pairs: list[list[Pair]]
    """For each run but the first."""
    parameters: pd.DataFrame
    """A row a parameter in which the best trials differ, a column a run."""
    cost: pd.DataFrame
    """A row a run: ``trials``, ``complete``, ``pruned``, ``failed``, ``epochs``, ``worker_seconds`` (training and
    predicting, summed over folds), ``driven_seconds`` (by the clock), ``best_trial`` (its number)."""


def compare_runs(runs: Sequence[RunStore]) -> Comparison:
    """Compare runs that predict the same thing.

    Parameters
    ----------
    runs
        Two or more; the first is what the others are compared with.

    Returns
    -------
    Comparison
        With 95 % intervals by bootstrap over the subjects that both runs predict (`metrics.bootstrap_difference`).

    Raises
    ------
    UserError
        There is one run only, they do not predict the same, a run has no finished trial, or its windows are not there.
    LeakError
        Predictions do not follow a run's fold map.
    """
    if len(runs) < 2:
        raise UserError("compare wants two runs or more: raypipe compare RUN1 RUN2")
    first = runs[0]
    for run in runs[1:]:
        asked, given = ((each.info.metric, each.info.classes) for each in (first, run))
        if asked != given:
            raise UserError(
                f"{first.where} and {run.where} cannot be compared: {first.info.task} is scored by {asked[0]} and "
                f"{run.info.task} by {given[0]}, or their classes differ"
            )
    for run in runs:
        if not run.ranked():
            raise UserError(f"{run.where}: no trial is complete, so there is nothing to compare; go on: raypipe resume")
    stores = _windows(runs)
    answers = [_answers(run, windows) for run, windows in zip(runs, stores, strict=True)]
    pairs = []
    for theirs in answers[1:]:
        both = [name for name in answers[0] if name in theirs]
        made = [pair(name, first.info.metric, answers[0][name], theirs[name]) for name in both]
        pairs.append([each for each in made if each is not None])
    names = _names(runs)
    return Comparison(
        runs=names,
        metric=first.info.metric,
        grounds=[_grounds(first, run, stores[0], windows) for run, windows in zip(runs[1:], stores[1:], strict=True)],
        pairs=pairs,
        parameters=_parameters(runs, names),
        cost=pd.DataFrame([_cost(run) for run in runs], index=pd.Index(names, name="run")),
    )


def _names(runs: Sequence[RunStore]) -> list[str]:
    last = [run.where.rstrip("/").rpartition("/")[2] for run in runs]
    return last if len(set(last)) == len(last) else [run.where for run in runs]


def _windows(runs: Sequence[RunStore]) -> list[WindowStore]:
    """Each run's windows; runs of the same data share whichever store is still there."""
    found: dict[str, WindowStore] = {}
    problems: dict[str, UserError] = {}
    for run in runs:
        wanted = run.info.data_hash
        if wanted in found:
            continue
        try:
            store = open_windows(run.info.data)
            if store.data_hash != wanted:
                raise UserError(f"{store.path}: prepared again since {run.where} was made: other windows lie there now")
            found[wanted] = store
        except UserError as error:
            problems.setdefault(wanted, error)
    for run in runs:
        if run.info.data_hash not in found:
            raise problems[run.info.data_hash]
    return [found[run.info.data_hash] for run in runs]


def _answers(run: RunStore, windows: WindowStore) -> dict[str, Answers]:
    keys = window_keys(windows)
    best = run.ranked()[0].number
    members = read_members_oof(run, [Member(best)], windows.subjects, windows.targets)
    side = Side(members.targets, members.subjects, members.folds)
    found = {TRIAL: Answers(keys[members.windows], side, members.answers[0])}
    if Ensemble.exists(run):
        ensemble = Ensemble.load(run)
        if ensemble.soup is None:  # what a soup answers out of fold is not what its ingredients answer
            members = read_members_oof(run, ensemble.members, windows.subjects, windows.targets)
            rule = ensemble.rule
            oof = members.combined(rule) if rule else mix(members.answers, ensemble.weights)
            found[FITTED] = Answers(keys[members.windows], side, oof)
        held = ensemble.held_out
        found[HELD_OUT] = Answers(keys[held.windows], held.side, held.predictions)
    return found


def _grounds(first: RunStore, run: RunStore, mine: WindowStore, theirs: WindowStore) -> list[Ground]:
    grounds = []
    if run.info.data_hash == first.info.data_hash:
        grounds.append(Ground(True, f"same data: {len(mine)} windows (hash {first.info.data_hash[:12]})"))
    else:
        both = len(np.intersect1d(window_keys(mine), window_keys(theirs)))
        plans = (mine.manifest.plan.model_dump(), theirs.manifest.plan.model_dump())
        changed = [
            f"{key} {plans[0][key]} and {plans[1][key]}"
            for key in plans[0]
            if key != "channels" and plans[0][key] != plans[1][key]
        ]
        if plans[0]["channels"] != plans[1]["channels"]:
            changed.append(f"{len(mine.channels)} and {len(theirs.channels)} channels, not the same")
        grounds.append(
            Ground(
                False,
                f"DIFFERENT DATA: {len(mine)} and {len(theirs)} windows, {both} at the same place of the same "
                f"recording; {', '.join(changed) or 'cut alike, so the recordings have changed'}",
            )
        )
    one, two = first.folds, run.folds
    shared = sorted(set(one.fold_of) & set(two.fold_of))
    moved = sum(one.fold_of[name] != two.fold_of[name] for name in shared)
    if one.fold_of == two.fold_of:
        grounds.append(Ground(True, f"same fold map: {one.n_folds} folds, {len(one.held_out)} subjects held out"))
    else:
        grounds.append(
            Ground(
                False,
                f"DIFFERENT FOLDS: {one.n_folds} and {two.n_folds}; of {len(shared)} subjects in both, {moved} stand "
                "in another fold, so their models were trained on other people",
            )
        )
    if one.held_out != two.held_out:
        both = len(set(one.held_out) & set(two.held_out))
        grounds.append(
            Ground(
                False,
                f"DIFFERENT HELD-OUT SUBJECTS: {len(one.held_out)} and {len(two.held_out)}, {both} in both; only those "
                "are compared",
            )
        )
    if first.info.space_hash == run.info.space_hash:
        grounds.append(Ground(True, f"same search space: {first.info.space_hash[:12]}"))
    else:
        grounds.append(Ground(True, f"other search space: {_last(first.info.space)} and {_last(run.info.space)}"))
    old = {k: (v, run.info.versions.get(k)) for k, v in first.info.versions.items() if v != run.info.versions.get(k)}
    if old:
        grounds.append(Ground(True, "other versions: " + ", ".join(f"{k} {a} and {b}" for k, (a, b) in old.items())))
    return grounds


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def _parameters(runs: Sequence[RunStore], names: list[str]) -> pd.DataFrame:
    configs = [flat(run.config(run.ranked()[0].number)) for run in runs]
    differ = [name for name in configs[0] if len({repr(config[name]) for config in configs}) > 1]
    rows = [[config[name] for config in configs] for name in differ]
    return pd.DataFrame(rows, index=pd.Index(differ, name="parameter"), columns=pd.Index(names), dtype=object)


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
        better = -get_metric(metric).sign
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
