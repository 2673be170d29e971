"""All trials and epochs of a search, from which members are chosen by the scores of some people only.

A nested score has to repeat every choice without the people that it is of: the epoch of each trial, the trials that are
combined, the method and its weights. The first two are made here, the others in `raypipe.ensembles.nested_cv`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np

from raypipe.core.config import TrialConfig
from raypipe.core.errors import UserError
from raypipe.core.metrics import get_metric
from raypipe.core.progress import Progress, no_progress
from raypipe.ensembles.oof import Floats, Mask, MemberPredictions, people_scores, subject_splits
from raypipe.storage.files import map_concurrently
from raypipe.storage.out_of_fold import EpochPredictions
from raypipe.storage.records import Epoch, Member, TrialResult
from raypipe.storage.run_store import RunStore

OUTER_GROUPS = 6
"""Groups of subjects on which methods are scored in turn."""
CHOICE_GROUPS = 4
"""Groups of the remaining subjects over which the choice among methods is cross-validated."""

ReadFunction = Callable[[Member], EpochPredictions]


class PooledTrial(NamedTuple):
    """A trial whose epochs may be chosen."""

    number: int
    epochs: tuple[int, ...]
    """Epochs of which one is chosen as the best, ascending."""
    snapshots: tuple[int, ...] = ()
    """Epochs that are members beside the best one."""
    family: str = ""
    """Its model (``model/name``)."""


Ranked = TypeVar("Ranked")


def top_and_best_of_families(ranked: Sequence[Ranked], top: int, family_of: Callable[[Ranked], str]) -> list[Ranked]:
    """Return the first `top` of a ranking, and the first of every family that none of these is of, in order of rank.

    Members of one family make similar errors; the best of another one may be worth more than the next of the same.
    """
    chosen = list(ranked[:top])
    families = set(map(family_of, chosen))
    for each in ranked[top:]:
        if family_of(each) not in families:
            families.add(family_of(each))
            chosen.append(each)
    return chosen


class TrialPool:
    """Trials of a search with out-of-fold predictions of every epoch, which are read one epoch at a time.

    Parameters
    ----------
    trials
        The trials.
    read
        Returns the predictions of a trial (`Member.trial`) at an epoch (`Member.epoch`), for the windows of `like`.
    like
        Predictions of any members: their targets, subjects, folds and metric are those of the pool.
    top
        Trials that are chosen, beside the best one of each other family.
    progress
        Called with trials read, trials in all, and a text.
    """

    def __init__(
        self,
        trials: Sequence[PooledTrial],
        read: ReadFunction,
        like: MemberPredictions,
        top: int,
        progress: Progress | None = None,
    ) -> None:
        self.trials, self.like, self.top = list(trials), like, top
        self._read, self._progress = read, progress or no_progress
        self._scores: dict[bytes, list[Floats]] = {}
        self._predictions: dict[Member, EpochPredictions] = {}

    @property
    def windows_like(self) -> MemberPredictions:
        """Return predictions of some members for the same windows, which have targets, subjects and metric."""
        return self.like

    def choose(self, inside_N: Mask) -> MemberPredictions:
        """Choose the members by the windows in a mask (N,) of whole subjects.

        Each trial's epoch is the one with the best score on these windows, and the trials are the best by these scores,
        with the best of each family.

        Returns
        -------
        MemberPredictions
            For all N windows, best score inside the mask first.
        """
        if inside_N.tobytes() not in self._scores:
            self._score([inside_N, *(nested_parts(self.like) if not self._scores else [])])
        members = self.chosen_members(self._scores[inside_N.tobytes()])
        found = [self._predicted(member) for member in members]
        predictions = replace(
            self.like,
            names=[str(member) for member in members],
            predictions=np.stack([each.predictions for each in found]).astype(np.float64),
            variances=_stacked_variances(found),
            trials=[member.trial for member in members],
        )
        return predictions.select_members(predictions.select_windows(inside_N).ranking())

    def chosen_members(self, scores: Sequence[Floats]) -> list[Member]:
        """Return the best trials at their best epochs, and their snapshots, by the score of each trial's epochs."""
        sign = get_metric(self.like.metric).sign
        best: list[tuple[float, int, PooledTrial, int]] = []
        for trial, scores_E in zip(self.trials, scores, strict=True):
            losses_E = np.nan_to_num(sign * scores_E, nan=np.inf)
            best.append((float(losses_E.min()), trial.number, trial, trial.epochs[int(losses_E.argmin())]))
        ranked = sorted(best, key=lambda each: each[:2])
        chosen = top_and_best_of_families(ranked, self.top, lambda each: each[2].family)
        return [
            Member(trial.number, epoch)
            for _, _, trial, first in chosen
            for epoch in (first, *(end for end in trial.snapshots if end != first))
        ]

    def undefined_choices(self) -> list[str]:
        """Return a note on the choices so far that no score has decided; none where there was no such choice."""
        undefined = sum(all(np.isnan(each_E).all() for each_E in scores) for scores in self._scores.values())
        if not undefined:
            return []
        first = Member(self.trials[0].number, self.trials[0].epochs[0])
        return [
            f"Trials and epochs are chosen anew by {len(self._scores)} groups of people. For {undefined} of them no "
            f"trial has a score (as where a class is missing): there {first} is taken, and nested scores suffer."
        ]

    def family_of(self, number: int) -> str:
        """Return the family of a trial."""
        return next(trial.family for trial in self.trials if trial.number == number)

    def families(self) -> list[str]:
        """Return the families of the trials, sorted."""
        return sorted({trial.family for trial in self.trials})

    def of_families(self, families: Collection[str]) -> TrialPool:
        """Return the pool of the trials of some families; scores that are known are not computed again."""
        kept = [place for place, trial in enumerate(self.trials) if trial.family in families]
        pool = TrialPool([self.trials[place] for place in kept], self._read, self.like, self.top, self._progress)
        pool._scores = {part: [scores[place] for place in kept] for part, scores in self._scores.items()}
        pool._predictions = self._predictions
        return pool

    def _score(self, parts: Sequence[Mask]) -> None:
        """Score every epoch on each of several masks, reading each epoch once."""
        scores: list[Floats] = []
        numbered = np.unique(self.like.subjects, return_inverse=True)[1]  # texts are slow to sort
        like = replace(self.like, subjects=numbered)
        for done, trial in enumerate(self.trials, start=1):
            epochs = [self._read(Member(trial.number, epoch)) for epoch in trial.epochs]
            scores.append(np.array([people_scores(like, epoch.predictions, parts) for epoch in epochs]))
            self._progress(done, len(self.trials), "trials scored for the nested choice")
        self._scores |= {part.tobytes(): [each_EP[:, p] for each_EP in scores] for p, part in enumerate(parts)}

    def _predicted(self, member: Member) -> EpochPredictions:
        if member not in self._predictions:
            self._predictions[member] = self._read(member)
        return self._predictions[member]


def _stacked_variances(found: Sequence[EpochPredictions]) -> Floats | None:
    if all(each.variances is None for each in found):
        return None
    zeros_N = np.zeros(len(found[0].predictions))
    return np.stack([zeros_N if each.variances is None else each.variances.astype(np.float64) for each in found])


def nested_parts(like: MemberPredictions) -> list[Mask]:
    """Return the masks (N,) of all windows that nested cross-validation chooses members on."""
    parts = []
    for fit_N, _ in subject_splits(like, OUTER_GROUPS):
        parts += [fit_N, *(inner_N for inner_N, _ in subject_splits(like, CHOICE_GROUPS, fit_N))]
    return parts


# Reading


def read_trial_pool(
    run: RunStore, results: Sequence[TrialResult], like: MemberPredictions, top: int, progress: Progress | None = None
) -> TrialPool:
    """Return the pool of all trials of a run that have not failed.

    Trials that were stopped early are in it too: without them, those that are left would be the ones that scored well
    on the people whose score is wanted.

    Parameters
    ----------
    run, results
        The run, and the results of its trials.
    like, top, progress
        See `TrialPool`.

    Raises
    ------
    UserError
        A trial has no predictions of an epoch. Predictions that are missing or damaged raise when they are read.
    """
    usable = [result for result in results if result.state != "failed" and result.score is not None]
    histories = map_concurrently(run.folder, run.history, [result.number for result in usable])
    by_trial = list(zip(usable, histories, strict=True))
    epochs = {Member(result.number, epoch.epoch): epoch for result, history in by_trial for epoch in history}

    def read(member: Member) -> EpochPredictions:
        return _checked(run.epoch_predictions(member.trial, epochs[member]), member, like)

    trials = []
    for result, history in by_trial:
        lost = [str(epoch.epoch) for epoch in history if not epoch.predictions]
        if lost:
            raise UserError(
                f"{run.where}: trial {result.number} has no out-of-fold predictions of epoch {lost[0]}, which nested "
                "scores need; remove its folder: raypipe resume then trains it again"
            )
        config = run.config(result.number)
        ends = _snapshots(config, result, history)
        trials.append(PooledTrial(result.number, _epochs_to_choose(history), ends, config.model.name))
    return TrialPool(trials, read, like, top, progress)


def _epochs_to_choose(history: Sequence[Epoch]) -> tuple[int, ...]:
    """Return all epochs; where folds choose their own, the last, which holds their choices."""
    return tuple(epoch.epoch for epoch in (history[-1:] if history[-1].by_fold else history))


def _snapshots(config: TrialConfig, result: TrialResult, history: Sequence[Epoch]) -> tuple[int, ...]:
    """Return the ends of cycles that are members: of a trial that has kept their weights."""
    if not result.snapshots:
        return ()
    return tuple(epoch for epoch in config.cycle_ends if epoch <= len(history))


def _checked(found: EpochPredictions, member: Member, like: MemberPredictions) -> EpochPredictions:
    """Return the predictions of an epoch if they are finite, and one for each window.

    Raises
    ------
    UserError
        They are not.
    """
    shape = like.predictions.shape[1:]
    if found.predictions.shape != shape:
        raise UserError(f"{member}: its predictions have shape {found.predictions.shape}, the windows need {shape}")
    if not all(np.isfinite(array).all() for array in (found.predictions, found.variances) if array is not None):
        raise UserError(f"{member}: its out-of-fold predictions are not all finite")
    return found
