"""Winners trained again on new seeds: they tell how much of a score was luck, and join the ensemble as members.

A rerun is a trial of the same run, on the same fold map: the winner's configuration with another seed. It is no draw of
the search space, so the sampler learns nothing from it, and successive halving neither stops it nor counts it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from raypipe.core.config import TrialConfig
from raypipe.core.errors import UserError
from raypipe.storage.records import TrialResult
from raypipe.storage.run_store import RunStore

OF, SEED = "rerun_of", "rerun_seed"
"""User attributes of a trial of the study that trains another one again: which, and with what seed."""


def is_rerun(trial: FrozenTrial) -> bool:
    """Whether a trial of a study trains another one again."""
    return OF in trial.user_attrs


def rerun_config(run: RunStore, trial: FrozenTrial) -> tuple[TrialConfig, int] | None:
    """Configuration of a rerun and the trial that it trains again; None where the space is to draw."""
    if not is_rerun(trial):
        return None
    of = int(trial.user_attrs[OF])
    return run.config(of).model_copy(update={"seed": int(trial.user_attrs[SEED])}), of


def enqueue_reruns(study: optuna.Study, run: RunStore, top: int, seeds: int) -> int:
    """Queue the best trials with new seeds, those that follow their own; how many were queued.

    What is queued, or was trained, is not queued again: the same call after a crash adds what is missing. Winners of
    one seed are given the same new ones: where they are one network, they start alike and can be averaged.

    Raises
    ------
    UserError
        There is no winner.
    """
    if top < 1 or seeds < 1:
        raise UserError(f"rerun --top {top} --seeds {seeds}: both must be 1 or more")
    winners = [result.number for result in run.ranked() if run.rerun_of(result.number) is None][:top]
    if not winners:
        raise UserError(f"{run.where}: no trial is complete, so there is no winner to train again")
    known = {(t.user_attrs[OF], t.user_attrs[SEED]) for t in study.get_trials(deepcopy=False) if is_rerun(t)}
    wanted = [(winner, run.config(winner).seed + k) for k in range(1, seeds + 1) for winner in winners]
    missing = [pair for pair in wanted if pair not in known]
    for winner, seed in missing:
        study.enqueue_trial({}, user_attrs={OF: winner, SEED: seed})
    return len(missing)


@dataclass(frozen=True)
class Spread:
    """Scores of one configuration over seeds."""

    trial: int
    """The trial that the search found."""
    found: float
    """Its score: the best of many, and so optimistic."""
    again: dict[int, float]
    """Scores on new seeds, by the trial that had each."""
    unfinished: int
    """Reruns without a score: failed, or still to be trained."""

    @property
    def mean(self) -> float:
        """Mean score on new seeds."""
        return float(np.mean(list(self.again.values()))) if self.again else float("nan")

    @property
    def sd(self) -> float:
        """Standard deviation over new seeds (n - 1); NaN of fewer than two."""
        return float(np.std(list(self.again.values()), ddof=1)) if len(self.again) > 1 else float("nan")

    def words(self, metric: str) -> str:
        """The spread as one line."""
        line = f"trial {self.trial}: {metric} {self.found:.4f} as found"
        if self.again:
            values = self.again.values()
            line += f"; on {len(values)} new seed{'s' if len(values) > 1 else ''} {self.mean:.4f}"
            if len(values) > 1:
                line += f" on average (SD {self.sd:.4f}, {min(values):.4f} to {max(values):.4f})"
        return line + (f"; {self.unfinished} without a score" if self.unfinished else "")


def spreads(
    run: RunStore, reruns: Mapping[int, int | None] | None = None, results: Iterable[TrialResult] | None = None
) -> list[Spread]:
    """Of every trial that was trained again, best first as they were found.

    `reruns` (`RunStore.rerun_of` of every trial) and `results` are given where they have been read already.
    """
    if reruns is None:
        reruns = {number: run.rerun_of(number) for number in run.numbers()}
    again: dict[int, list[int]] = {}
    for number, of in reruns.items():
        if of is not None:
            again.setdefault(of, []).append(number)
    if not again:
        return []
    scores = {result.number: float(result.score or 0.0) for result in run.ranked(results)}
    found = []
    for of in sorted(again, key=list(scores).index):
        done = {number: scores[number] for number in again[of] if number in scores}
        found.append(Spread(of, scores[of], done, len(again[of]) - len(done)))
    return found
