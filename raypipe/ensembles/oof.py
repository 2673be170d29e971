"""Out-of-fold predictions of several members for the same windows, the input of every ensemble method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raypipe.core.errors import UserError
from raypipe.core.folds import Index, LeakError
from raypipe.core.levels import (
    Level,
    even_people,
    mean_per_row,
    people_rows,
    ranking_score,
    rows_at_level,
    within_folds,
)
from raypipe.core.metrics import Kind, get_metric
from raypipe.core.outputs import as_columns, one_value, spread_of
from raypipe.models.combine import Rule, combine
from raypipe.storage.out_of_fold import OutOfFold
from raypipe.storage.records import Member
from raypipe.storage.run_store import RunStore

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class MemberPredictions:
    """Predictions of M members for the same N windows, each made by a network that was not trained on its subject.

    With repeated folds a window is among the N once for each repeat. Splits by subject take all of them to one side.
    """

    names: list[str]
    """(M,) names of the members."""
    predictions: Floats
    """(M, N, outputs): values in target units, or class probabilities."""
    targets: NDArray[Any]
    """(N,) values, or class numbers; (N, K) of several values."""
    subjects: NDArray[Any]
    """(N,)."""
    folds: Index
    """(N,)."""
    windows: Index
    """(N,) window numbers in the store."""
    metric: str
    kind: Kind
    variances: Floats | None = None
    """(M, N) predicted variances in squared target units; zeros for a member that predicts none; None if none does."""
    trials: list[int] | None = None
    """(M,) numbers of the members' trials; a trial and its snapshots share one."""
    level: Level = "window"
    """What one data point of a score is."""
    groups: NDArray[Any] | None = None
    """(N,) group of each window's subject, which no split takes apart; None where subjects have none."""

    @property
    def units(self) -> NDArray[Any]:
        """Return what splits keep whole and intervals resample (N,): the group of each subject, or the subject."""
        return self.subjects if self.groups is None else self.groups

    def select_windows(self, windows: NDArray[Any]) -> MemberPredictions:
        """Return the predictions for some windows, given by mask or index."""
        return replace(
            self,
            predictions=self.predictions[:, windows],
            targets=self.targets[windows],
            subjects=self.subjects[windows],
            folds=self.folds[windows],
            windows=self.windows[windows],
            groups=None if self.groups is None else self.groups[windows],
            variances=None if self.variances is None else self.variances[:, windows],
        )

    def select_members(self, members: Sequence[int]) -> MemberPredictions:
        """Return the predictions of some members, given by index."""
        some = list(members)
        variances = None if self.variances is None or not self.variances[some].any() else self.variances[some]
        return replace(
            self,
            names=[self.names[member] for member in some],
            predictions=self.predictions[some],
            variances=variances,
            trials=None if self.trials is None else [self.trials[member] for member in some],
        )

    def choose(self, inside_N: Mask) -> MemberPredictions:
        """Return these members: they are given, whatever the windows in a mask (N,) that `TrialPool.choose` takes."""
        return self

    @property
    def windows_like(self) -> MemberPredictions:
        """Return these predictions, as `TrialPool.windows_like`."""
        return self

    def at_level(self) -> MemberPredictions:
        """Return one mean prediction per person and repeat where scores are of people, else the predictions."""
        if self.level == "window":
            return self
        first_P, row_N = people_rows(self.subjects, self.folds)
        means = np.stack([mean_per_row(row_N, member_NO) for member_NO in self.predictions])
        return replace(self.select_windows(first_P), predictions=means, variances=None, level="window")

    @property
    def window_weights(self) -> Floats:
        """Return weights (N,) of mean one: each person counts the same where scores are of people, else each window."""
        return even_people(self.subjects) if self.level == "person" else np.ones(len(self.targets))

    @property
    def encoded_targets(self) -> Floats:
        """Targets (N, outputs) that predictions are compared with: values, or one-hot classes."""
        if self.kind == "regression":
            return as_columns(np.asarray(self.targets, dtype=np.float64))
        return np.asarray(np.eye(self.predictions.shape[2])[self.targets.astype(np.int64)])

    @property
    def error_units(self) -> Floats:
        """What errors are divided by (outputs,): 1, or of several values each one's standard deviation."""
        if self.targets.ndim < 2:
            return np.ones(self.predictions.shape[2])
        return spread_of(self.targets)

    def of_output(self, k: int) -> MemberPredictions:
        """Return the predictions and targets of one of several values."""
        return replace(self, predictions=self.predictions[:, :, k : k + 1], targets=self.targets[:, k])

    def standardised(self) -> MemberPredictions:
        """Return several values in standard deviations of their targets, so that each counts the same; else these."""
        if self.targets.ndim < 2:
            return self
        units = self.error_units
        return replace(self, predictions=self.predictions / units, targets=self.targets / units)

    @property
    def squared_errors(self) -> Floats:
        """Mean squared error of each member (M,); for classes the Brier score (Brier 1950: summed over classes)."""
        like = self.standardised()
        return np.asarray(((like.predictions - like.encoded_targets) ** 2).sum(2).mean(1))

    def score(self, predictions: NDArray[Any]) -> float:
        """Return the score of predictions (N, outputs) by which methods are compared, as trials are."""
        return ranking_score(self.metric, self.level, self.targets, predictions, self.subjects, self.folds)

    def scores(self) -> Floats:
        """Return the score of each member (M,)."""
        return np.array([self.score(member_NO) for member_NO in self.predictions])

    def ranking(self) -> list[int]:
        """Return the members' indices, best score first; undefined scores come last."""
        losses_M = np.nan_to_num(get_metric(self.metric).sign * self.scores(), nan=np.inf)
        return [int(member) for member in np.argsort(losses_M, kind="stable")]

    def combine(self, rule: Rule) -> Floats:
        """Apply a rule (`raypipe.models.combine`) to all members, or to those in its ``only``: (N, outputs)."""
        used = self.select_members(rule["only"]) if "only" in rule else self
        variances = None if used.variances is None else torch.from_numpy(used.variances)
        with torch.no_grad():
            return np.asarray(combine(rule, torch.from_numpy(used.predictions), variances).numpy())


# Splits by subject


def subject_groups(members: MemberPredictions, n: int) -> Index:
    """Distribute the subjects over at most `n` groups with similar targets; return the group of each window (N,).

    Subjects of one of the run's own groups, such as a family, are taken as one. They are taken in order of their mean
    target, `n` at a time, and distributed in a random order with a fixed seed. The result depends on subjects and
    targets only.
    """
    return unit_groups(members.units, one_value(members.targets), n)


def unit_groups(units: NDArray[Any], targets: NDArray[Any], n: int) -> Index:
    """Distribute units (N,), subjects or groups of them, as `subject_groups` does, by their targets (N,)."""
    names, index_N = np.unique(units, return_inverse=True)
    means_S = np.bincount(index_N, weights=targets.astype(np.float64)) / np.bincount(index_N)
    n = min(n, len(names))
    group_S = np.empty(len(names), np.int64)
    rng = np.random.default_rng(0)
    order = np.argsort(means_S, kind="stable")
    for start in range(0, len(order), n):
        some = order[start : start + n]
        group_S[some] = rng.permutation(n)[: len(some)]
    return np.asarray(np.unique(group_S, return_inverse=True)[1][index_N])


def subject_splits(members: MemberPredictions, n: int, inside_N: Mask | None = None) -> Iterator[tuple[Mask, Mask]]:
    """Yield, for each of `n` groups of subjects, the masks (N,) of the windows to fit on and to test on.

    With a mask `inside_N` (N,) of whole subjects, other windows are in neither.
    """
    if inside_N is None:
        inside_N = np.ones(len(members.targets), dtype=bool)
    groups_N = np.full(len(inside_N), -1)
    groups_N[inside_N] = subject_groups(members.select_windows(inside_N), n)
    for group in range(int(groups_N.max()) + 1):
        yield inside_N & (groups_N != group), groups_N == group


# Scores of some of the people


def people_scores(members: MemberPredictions, predictions: NDArray[Any], parts: Sequence[Mask]) -> Floats:
    """Return the score of predictions (N, outputs) on each of P parts, masks (N,) of whole subjects: (P,)."""
    first = np.unique(members.subjects, return_index=True)[1]
    counts_PS = np.array([part[first] for part in parts], dtype=np.int64)
    rows = rows_at_level(members.level, members.targets, members.subjects, members.folds, predictions)
    subject_N = np.unique(rows.subjects, return_inverse=True)[1].astype(np.int64)
    return within_folds(members.metric, rows.folds).resampled(rows.targets, rows.predictions, subject_N, counts_PS)


# Reading


def read_oof_predictions(
    run: RunStore, members: Sequence[Member], subjects: NDArray[Any], targets: NDArray[Any]
) -> MemberPredictions:
    """Read members' out-of-fold predictions, each checked against the run's fold map.

    Parameters
    ----------
    run
        The run.
    members
        Trials that have stored predictions, and snapshots of them.
    subjects, targets
        (N,) of all windows of the store; targets (N, K) of several values.

    Raises
    ------
    LeakError
        A window was predicted by the network of another fold than the map says, or belongs to a held-out subject.
    UserError
        A member's predictions are missing, damaged or not finite.
    """
    index, folds_N = run.folds.predicted_rows(subjects)
    stored = [run.oof(*member) for member in members]
    predictions = [_checked(oof, member, index, folds_N) for oof, member in zip(stored, members, strict=True)]
    zeros_N = np.zeros(len(index))
    variances = [zeros_N if oof.variances is None else oof.variances.astype(np.float64) for oof in stored]
    return MemberPredictions(
        names=[str(member) for member in members],
        predictions=np.stack(predictions).astype(np.float64),
        targets=targets[index],
        subjects=np.array([str(subject) for subject in subjects[index]]),
        folds=folds_N,
        windows=index,
        metric=run.info.metric,
        kind=run.info.kind,
        level=run.info.level,
        groups=run.folds.groups(subjects[index]) if run.folds.group_of else None,
        variances=np.stack(variances) if any(oof.variances is not None for oof in stored) else None,
        trials=[member.trial for member in members],
    )


def _checked(oof: OutOfFold, member: Member, index: Index, folds_N: Index) -> NDArray[np.float32]:
    """Return a member's predictions if each was made by the network of the fold that left the window's subject out."""
    if not np.array_equal(oof.windows, index):
        raise LeakError(
            f"{member}: its {len(oof.windows)} out-of-fold windows are not the {len(index)} windows of the "
            "run's search subjects"
        )
    if not np.array_equal(oof.folds, folds_N):
        wrong = int(np.sum(oof.folds != folds_N))
        raise LeakError(f"{member}: {wrong} out-of-fold predictions come from another fold than the map says")
    finite = np.isfinite(oof.predictions).all() and (oof.variances is None or np.isfinite(oof.variances).all())
    if not finite:
        raise UserError(f"{member}: its out-of-fold predictions are not all finite")
    return oof.predictions
