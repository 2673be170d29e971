"""Reruns: the best trials trained again on new seeds, to estimate their variance and to add ensemble members.

A rerun is a trial of the same run, on the same fold map, with the configuration of another trial and a new seed. It is
not drawn from the search space, so the sampler does not learn from it, and successive halving neither stops nor counts
it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from raypipe.core.config import TrialConfig
from raypipe.core.errors import UserError
from raypipe.core.record import FrozenModel
from raypipe.storage.files import write_record
from raypipe.storage.records import OwnedRecord, TrialResult, read_owned
from raypipe.storage.run_store import RunStore

RERUN_OF, RERUN_SEED = "rerun_of", "rerun_seed"
"""User attributes of a rerun in the study: the trial that it trains again, and its seed."""


RERUNS_FILE = "reruns.json"


class Rerun(FrozenModel):
    """A rerun that was asked for."""

    number: int
    """Its trial."""
    of: int
    """The trial that it trains again."""
    seed: int


class RerunsRecord(OwnedRecord):
    """All reruns of a run, in order (``reruns.json``); written before the study has them."""

    format: Literal["raypipe-reruns/1"] = "raypipe-reruns/1"
    reruns: list[Rerun]


def read_reruns(run: RunStore) -> list[Rerun]:
    """Return the reruns that were asked for.

    Raises
    ------
    DamagedFileError
        The record is damaged.
    """
    if not run.folder.exists(RERUNS_FILE):
        return []
    return read_owned(RerunsRecord, run.folder, RERUNS_FILE, run.run_id).reruns


def write_reruns(run: RunStore, reruns: Sequence[Rerun]) -> None:
    """Record all reruns of a run."""
    write_record(run.folder, RERUNS_FILE, RerunsRecord(run=run.run_id, reruns=list(reruns)))


def is_rerun(trial: FrozenTrial) -> bool:
    """Return whether a trial of a study is a rerun."""
    return RERUN_OF in trial.user_attrs


def rerun_config(run: RunStore, trial: FrozenTrial) -> tuple[TrialConfig, int] | None:
    """Return a rerun's configuration and the trial that it trains again; None for a trial that is no rerun."""
    if not is_rerun(trial):
        return None
    of = int(trial.user_attrs[RERUN_OF])
    return run.config(of).model_copy(update={"seed": int(trial.user_attrs[RERUN_SEED])}), of


def enqueue_reruns(study: optuna.Study, run: RunStore, top: int, seeds: int) -> int:
    """Enqueue the best trials with new seeds, which follow their own; return how many were enqueued.

    A rerun that is in the study already is not enqueued again, so the same call after a crash adds what is missing.
    Trials of one seed get the same new seeds: networks of one shape then start alike and can be averaged.

    Raises
    ------
    UserError
        No trial is complete.
    """
    if top < 1 or seeds < 1:
        raise UserError(f"rerun --top {top} --seeds {seeds}: both must be 1 or more")
    best = [result.number for result in run.ranked() if run.rerun_of(result.number) is None][:top]
    if not best:
        raise UserError(f"{run.where}: no trial is complete, so none can be trained again")
    recorded = read_reruns(run)
    existing = {(rerun.of, rerun.seed) for rerun in recorded}
    wanted = [(number, run.config(number).seed + k) for k in range(1, seeds + 1) for number in best]
    missing = [pair for pair in wanted if pair not in existing]
    first = len(study.get_trials(deepcopy=False))
    added = [Rerun(number=first + i, of=of, seed=seed) for i, (of, seed) in enumerate(missing)]
    write_reruns(run, [*recorded, *added])
    for rerun in added:
        study.enqueue_trial({}, user_attrs={RERUN_OF: rerun.of, RERUN_SEED: rerun.seed})
    return len(added)


@dataclass(frozen=True)
class Spread:
    """Scores of one configuration over seeds."""

    trial: int
    """The trial that the search found."""
    found: float
    """Its score, optimistic because it is the best of many."""
    scores: dict[int, float]
    """Score of each rerun, by its number."""
    unfinished: int
    """Reruns without a score: failed, or not trained yet."""

    @property
    def mean(self) -> float:
        """Return the mean score of the reruns."""
        return float(np.mean(list(self.scores.values()))) if self.scores else float("nan")

    @property
    def sd(self) -> float:
        """Return the standard deviation over the reruns (n - 1); NaN for fewer than two."""
        return float(np.std(list(self.scores.values()), ddof=1)) if len(self.scores) > 1 else float("nan")

    def describe(self, metric: str) -> str:
        """Describe the spread in one line."""
        line = f"trial {self.trial}: {metric} {self.found:z.4f} as found"
        if self.scores:
            values = self.scores.values()
            line += f"; on {len(values)} new seed{'s' if len(values) > 1 else ''} {self.mean:z.4f}"
            if len(values) > 1:
                line += f" on average (SD {self.sd:.4f}, {min(values):z.4f} to {max(values):z.4f})"
        return line + (f"; {self.unfinished} without a score" if self.unfinished else "")


def spreads(
    run: RunStore, reruns: Mapping[int, int | None] | None = None, results: Iterable[TrialResult] | None = None
) -> list[Spread]:
    """Return the spread of every trial that was trained again, in order of the scores as found.

    Parameters
    ----------
    run
        The run.
    reruns, results
        `RunStore.rerun_of` of every trial and `RunStore.results`, if they have been read already.
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
    for of in [number for number in scores if number in again]:
        done = {number: scores[number] for number in again[of] if number in scores}
        found.append(Spread(of, scores[of], done, len(again[of]) - len(done)))
    return found
