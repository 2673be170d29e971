"""Read the candidates of an ensemble: a run's best trials, their snapshots and their out-of-fold predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from raypipe.core.errors import UserError
from raypipe.core.own_metrics import shown_metric
from raypipe.core.progress import Progress
from raypipe.data.splits import audit_subjects
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.members import CPU, count_members_within
from raypipe.ensembles.oof import MemberPredictions, read_oof_predictions
from raypipe.ensembles.run_windows import windows_of_run
from raypipe.ensembles.scores import EvaluationSet, Scoring
from raypipe.ensembles.trial_pool import TrialPool, read_trial_pool, top_and_best_of_families
from raypipe.storage.files import map_concurrently
from raypipe.storage.records import Member, TrialResult
from raypipe.storage.remote import shell_quoted
from raypipe.storage.run_store import RunStore


@dataclass(frozen=True)
class Candidates:
    """Members that may be combined."""

    run: RunStore
    windows: WindowStore
    trials: list[int]
    """Numbers of the trials, best first."""
    members: list[Member]
    """The trials and their snapshots, best out-of-fold score first."""
    predictions: MemberPredictions
    """Out of fold, in the order of `members`."""
    max_members: int | None
    """Members that a method may use; None for all."""
    pool: TrialPool
    """All trials and epochs, of which nested scores choose anew."""
    device: torch.device = CPU
    """Where networks predict."""

    @property
    def scoring(self) -> Scoring:
        """Metric, kind and level of the run's target."""
        info = self.run.info
        return Scoring(info.metric, info.kind, len(self.windows.classes), info.level)

    @property
    def search(self) -> EvaluationSet:
        """The windows of the search subjects."""
        found = self.predictions
        return EvaluationSet(found.targets, found.subjects, found.folds, found.groups, cross_validated=True)

    @property
    def held_out(self) -> EvaluationSet:
        """The windows of the held-out subjects."""
        folds, out = self.run.folds, self.run.folds.held_out_index(self.windows.subjects)
        subjects = self.windows.subjects[out]
        groups = folds.groups(subjects) if folds.group_of else None
        return EvaluationSet(self.windows.targets[out], subjects, folds.folds(subjects), groups)


def read_candidates(
    run: RunStore,
    windows: WindowStore | None,
    *,
    top: int,
    max_networks: int | None,
    max_mb: float | None,
    device: torch.device = CPU,
    progress: Progress | None = None,
) -> Candidates:
    """Read the best trials of a run, after checks of their files and for leaks.

    Raises
    ------
    UserError
        No trial can be used, one of the best is damaged or has no weights any more, the limits leave no trial, or the
        windows are not the run's.
    LeakError
        Out-of-fold predictions or windows do not follow the run's fold map.
    """
    if top < 1:
        raise UserError(f"--top {top}: an ensemble needs at least one trial")
    results = run.results()
    ranked = best_trials(run, results, top)
    if not ranked:
        raise UserError(_no_trial(run, results))
    _require_weights(run, ranked, top)
    trials = [result.number for result in ranked]
    members = [Member(result.number, epoch) for result in ranked for epoch in (0, *result.snapshots)]
    windows = windows_of_run(run, windows)
    run.require_whole(trials)
    audit_subjects(windows, run.folds)
    predictions = read_oof_predictions(run, members, windows.subjects, windows.targets)
    order = predictions.ranking()
    members = [members[member] for member in order]
    limit = count_members_within(run, members, max_networks, max_mb)
    predictions = predictions.select_members(order)
    pool = read_trial_pool(run, results, predictions, top, progress)
    return Candidates(run, windows, trials, members, predictions, limit, pool, device)


def _require_weights(run: RunStore, ranked: Sequence[TrialResult], top: int) -> None:
    tidied = [place for place, result in enumerate(ranked) if result.tidied]
    if tidied:
        numbers = ", ".join(str(ranked[place].number) for place in tidied)
        raise UserError(
            f"{run.where}: raypipe tidy has removed the weights of trial(s) {numbers}, which are of the best {top}; "
            f"use --top {tidied[0]} or less"
        )


def best_trials(run: RunStore, results: Sequence[TrialResult], top: int) -> list[TrialResult]:
    """Return the best `top` trials, and the best one of each family that none of them is of, best first."""
    ranked = run.ranked(results)
    configs = map_concurrently(run.folder, run.config, [result.number for result in ranked])
    families = {result.number: config.model.name for result, config in zip(ranked, configs, strict=True)}
    return top_and_best_of_families(ranked, top, lambda result: families[result.number])


def _no_trial(run: RunStore, results: Sequence[TrialResult]) -> str:
    states = [result.state for result in results]
    counts = f"{len(run.numbers())} started, {states.count('failed')} failed, {states.count('pruned')} were pruned"
    if undefined := sum(result.score is None for result in results if result.state in ("complete", "stopped")):
        return (
            f"{run.where}: {shown_metric(run.info.metric)} is undefined for all epochs of the {undefined} trial(s) "
            "that have ended, so there is nothing to combine; use another --metric in a new run"
        )
    if states.count("failed"):
        hint = f"see why with: raypipe status {shell_quoted(run.where)}"
    else:
        hint = f"continue the run with: raypipe resume {shell_quoted(run.where)}"
    return f"{run.where}: no trial is complete, so there is nothing to combine ({counts}); {hint}"
