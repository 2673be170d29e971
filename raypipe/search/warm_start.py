"""A warm start: the study of a new run begins with what another run has found, in another search space if need be.

Those trials inform the sampler and no more: they are no members of the new run, which trains its own.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import optuna
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, ConfigDict

from raypipe.core.config import flat
from raypipe.core.errors import UserError
from raypipe.core.search_space import SearchSpace
from raypipe.storage.records import TrialResult
from raypipe.storage.run_store import RunStore

SOURCE = "source"
"""User attribute of a trial that another run has trained: which run, and its number there."""


class WarmTrial(BaseModel):
    """A trial of another run, as the new space would have asked for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    state: Literal["complete", "pruned"]
    score: float
    params: dict[str, Any]
    distributions: dict[str, str]
    steps: dict[int, float]
    """Score after so many passes over the training windows."""

    def frozen(self, run: str) -> FrozenTrial:
        """The trial, for a study."""
        return optuna.trial.create_trial(
            state=TrialState.COMPLETE if self.state == "complete" else TrialState.PRUNED,
            value=self.score,
            params=self.params,
            distributions={name: json_to_distribution(text) for name, text in self.distributions.items()},
            intermediate_values=self.steps,
            user_attrs={SOURCE: f"{run} trial {self.number}"},
        )


class WarmStart(BaseModel):
    """What a run begins with (kept in its ``run.json``)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    """The run it comes from."""
    finished: int
    """Trials with a score that it had."""
    trials: list[WarmTrial]
    """Those that are valid in the new space."""


def warm_start(old: RunStore, space: SearchSpace, *, task: str, metric: str) -> WarmStart:
    """Gather what a new run in `space` may learn from an old one.

    A trial is taken over if `space`, given the value of every parameter of its configuration, asks only for values
    that lie in range; what `space` fixes may differ.

    Raises
    ------
    UserError
        The runs are of different tasks or metrics, or nothing can be taken over.
    """
    if (old.info.task, old.info.metric) != (task, metric):
        raise UserError(
            f"--warm-start {old.where}: its trials predict {old.info.task} by {old.info.metric}, not {task} by {metric}"
        )
    finished = [
        r for r in old.results() if r.state != "failed" and r.score is not None and old.rerun_of(r.number) is None
    ]
    if not finished:
        raise UserError(f"--warm-start {old.where}: no trial of it has ended with a score")
    trials, why = [], ""
    for result in finished:
        try:
            trials.append(_translate(old, result, space))
        except UserError as error:
            why = why or f"trial {result.number}: {error}"
    if not trials:
        raise UserError(f"--warm-start {old.where}: none of its {len(finished)} trials is valid in this space ({why})")
    return WarmStart(run=old.where, finished=len(finished), trials=trials)


def _translate(old: RunStore, result: TrialResult, space: SearchSpace) -> WarmTrial:
    point = optuna.trial.FixedTrial(flat(old.config(result.number)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Optuna only warns of values out of range
            space(point)
    except Warning as warning:
        raise UserError(str(warning)) from None
    return WarmTrial(
        number=result.number,
        state="complete" if result.state == "complete" else "pruned",
        score=result.score or 0.0,
        params=point.params,
        distributions={name: distribution_to_json(d) for name, d in point.distributions.items()},
        steps={epoch.passes: epoch.score for epoch in old.history(result.number)},
    )


def add_warm_trials(study: optuna.Study, run: RunStore) -> int:
    """Have the study of `run` begin with the trials of its warm start, if it has one; how many there are.

    They come before all others, so a study that a killed driver left half begun is completed.
    """
    if run.info.warm is None:
        return 0
    warm = WarmStart.model_validate(run.info.warm)
    there = sum(is_warm(trial) for trial in study.get_trials(deepcopy=False))
    for trial in warm.trials[there:]:
        study.add_trial(trial.frozen(warm.run))
    return len(warm.trials)


def is_warm(trial: FrozenTrial) -> bool:
    """Whether a trial of a study is another run's."""
    return SOURCE in trial.user_attrs
