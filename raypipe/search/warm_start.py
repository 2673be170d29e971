"""Warm start: a new run's study begins with the trials of another run, which may have searched another space.

Those trials only inform the sampler; the new run trains its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from raypipe.core.errors import UserError
from raypipe.core.folds import HELD_OUT, FoldMap, LeakError, name_some
from raypipe.core.parameters import flatten
from raypipe.core.record import FrozenModel
from raypipe.core.search_space import SearchSpace
from raypipe.core.store_names import PARAMETER as STORE
from raypipe.search.distributions import pack_distributions, unpack_distributions
from raypipe.search.labels import labels_differ
from raypipe.storage.records import LabelsInfo, TrialResult
from raypipe.storage.run_store import RunStore

SOURCE = "source"
"""User attribute of a trial that another run has trained: the run, and the trial's number there."""


class WarmTrial(FrozenModel):
    """A trial of another run, with the parameters that the new space asks for."""

    number: int
    state: Literal["complete", "pruned"]
    score: float
    params: dict[str, Any]
    distributions: dict[str, str]
    steps: dict[int, float]
    """Score by number of passes over the training windows."""

    def frozen(self, run: str) -> FrozenTrial:
        """Return the trial in the form in which a study takes it."""
        return optuna.trial.create_trial(
            state=TrialState.COMPLETE if self.state == "complete" else TrialState.PRUNED,
            value=self.score,
            params=self.params,
            distributions=unpack_distributions(self.distributions),
            intermediate_values=self.steps,
            user_attrs={SOURCE: f"{run} trial {self.number}"},
        )


class WarmStart(FrozenModel):
    """Trials that a run's sampler starts from (stored in its ``run.json``)."""

    run: str
    """The run that has trained them."""
    finished: int
    """Trials with a score that it has."""
    people: list[str]
    """Subjects that its trials, or those of the runs that it started from, were pretrained, trained or ranked on."""
    trials: list[WarmTrial]
    """The ones that are valid in the new space."""


def collect_warm_trials(
    old: RunStore,
    space: SearchSpace,
    *,
    target: str,
    metric: str,
    labels: LabelsInfo,
    folds: FoldMap,
    stores: Mapping[str, str] | None = None,
) -> WarmStart:
    """Collect the trials of an old run from which the sampler of a new run in `space` can start.

    A trial is used if all the parameters that `space` asks for are in its configuration and in range; constants of
    `space` may differ.

    Parameters
    ----------
    labels
        Labels of the new run (`raypipe.search.labels.labels_of`).
    folds
        Fold map of the new run.
    stores
        Hashes of the new run's stores by name, where it has several. A trial is of the store with the hash of the one
        that it was trained on, whatever the old run called that.

    Raises
    ------
    UserError
        The runs have different targets, labels or metrics, or no trial can be used.
    LeakError
        Trials of the old run, or of one that it started from, were pretrained or ranked on subjects that the new run
        holds out, or on others of their groups.
    """
    if (old.info.target, old.info.metric) != (target, metric):
        raise UserError(
            f"--warm-start {old.where}: its trials predict {old.info.target} by {old.info.metric}, not {target} by "
            f"{metric}"
        )
    difference = labels_differ(old.info.labels, labels)
    if difference:
        raise UserError(f"--warm-start {old.where}: its trials predict other labels: {difference}")
    people = _people_of(old)
    both = folds.held_out_among(people)
    if both:
        raise LeakError(
            f"--warm-start {old.where}: its trials were pretrained, trained or ranked on {len(both)} subject(s) that "
            f"this run holds out ({name_some(both)}); hold out its held-out subjects, with the same --held-out and "
            "--seed"
        )
    finished = [
        r for r in old.results() if r.state != "failed" and r.score is not None and old.rerun_of(r.number) is None
    ]
    if not finished:
        raise UserError(f"--warm-start {old.where}: none of its trials has a score")
    trials, reason = [], ""
    for result in finished:
        try:
            trials.append(_translate(old, result, space, stores or {}))
        except UserError as error:
            reason = reason or f"trial {result.number}: {error}"
    if not trials:
        raise UserError(
            f"--warm-start {old.where}: none of its {len(finished)} trials is valid in this space ({reason})"
        )
    return WarmStart(run=old.where, finished=len(finished), people=people, trials=trials)


def _people_of(run: RunStore) -> list[str]:
    """Return the subjects that influenced a run's trials: its own, its encoder's, and those of runs it started from."""
    own = {subject for subject, fold in run.folds.fold_of.items() if fold != HELD_OUT}
    pretrained = (run.info.init or {}).get("subjects_seen", [])
    inherited = WarmStart.model_validate(run.info.warm).people if run.info.warm is not None else []
    return sorted(own.union(inherited, pretrained))


def _translate(old: RunStore, result: TrialResult, space: SearchSpace, stores: Mapping[str, str]) -> WarmTrial:
    config = old.config(result.number)
    values = flatten(config)
    if stores:
        values[STORE] = _store_of(old, config.data.store, stores)
    point = optuna.trial.FixedTrial(space.point_as_drawn(values, "the configuration"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Optuna only warns of values out of range
            space(point)
    except Warning as warning:
        raise UserError(str(warning)) from None
    steps = {e.passes: e.score for e in old.history(result.number) if e.score is not None}
    return WarmTrial(
        number=result.number,
        state="complete" if result.state == "complete" else "pruned",
        score=result.score or 0.0,
        params=point.params,
        distributions=pack_distributions(point.distributions),
        steps={} if config.model.closed_form else steps,
    )


def _store_of(old: RunStore, old_name: str | None, stores: Mapping[str, str]) -> str:
    """Return the name of the store, among several by hash, that a trial of an old run was trained on."""
    trained_on = old.info.stores[old_name] if old_name else old.info.data_hash
    for name, data_hash in stores.items():
        if data_hash == trained_on:
            return name
    where = f"store '{old_name}' of {old.info.data}" if old_name else old.info.data
    raise UserError(f"it was trained on none of the stores {', '.join(stores)}; the old run's is {where}")


def add_warm_trials(study: optuna.Study, run: RunStore) -> int:
    """Add the trials of a run's warm start, if it has one, to its study; return how many there are.

    They are the first ones, so a study that a killed driver left incomplete is completed.
    """
    if run.info.warm is None:
        return 0
    warm = WarmStart.model_validate(run.info.warm)
    added = sum(is_warm(trial) for trial in study.get_trials(deepcopy=False))
    for trial in warm.trials[added:]:
        study.add_trial(trial.frozen(warm.run))
    return len(warm.trials)


def is_warm(trial: FrozenTrial) -> bool:
    """Return whether another run has trained a trial of a study."""
    return SOURCE in trial.user_attrs
