"""Successive halving over stored scores, so that a killed driver cannot lose a decision."""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial

from raypipe.search.reruns import is_rerun
from raypipe.search.warm_start import is_warm


class SuccessiveHalving(optuna.pruners.BasePruner):  # type: ignore[misc]
    """Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934, algorithm 2) without a state of its own.

    At each rung (`grace`, `grace * eta`, ... passes over the training windows) a trial continues if its best score so
    far is among the best 1/eta of the trials that have reached the rung, or if fewer than `eta` others have: an
    ensemble needs more than one fully trained trial. Optuna's SuccessiveHalvingPruner marks a rung as passed before its
    caller has acted on the answer, so after a kill in between, a trial that was to stop would continue.

    Parameters
    ----------
    grace
        Passes over the training windows at the first rung.
    eta
        Factor between rungs, and the inverse of the fraction that passes.
    """

    def __init__(self, grace: int, eta: int = 3) -> None:
        self.grace, self.eta = grace, eta

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether the trial's last reported step crossed a rung that it does not pass."""
        crossed = self._crossed_rungs(sorted(trial.intermediate_values))
        if not crossed:  # most epochs: the other trials, thousands perhaps, need not be read
            return False
        trials = study.get_trials(deepcopy=False)
        others = [t for t in trials if t.number != trial.number and not is_warm(t) and not is_rerun(t)]
        sign = 1.0 if study.direction == optuna.study.StudyDirection.MINIMIZE else -1.0
        return any(self._stops_at(rung, trial, others, sign) for rung in crossed)

    def _crossed_rungs(self, steps: list[int]) -> list[int]:
        """Return the rungs after the last but one step, up to the last."""
        if not steps:
            return []
        before, rungs, rung = steps[-2] if len(steps) > 1 else 0, [], self.grace
        while rung <= steps[-1]:
            if before < rung:
                rungs.append(rung)
            rung *= self.eta
        return rungs

    def _stops_at(self, rung: int, trial: FrozenTrial, others: list[FrozenTrial], sign: float) -> bool:
        own = _best_until(trial, rung, sign)
        reached = [score for other in others if (score := _best_until(other, rung, sign)) is not None]
        better = sum(score < own for score in reached) if own is not None else 0
        return len(reached) >= self.eta and better >= (len(reached) + 1) // self.eta


def _best_until(trial: FrozenTrial, rung: int, sign: float) -> float | None:
    """Return ``sign *`` the best score (lower is better) up to the first step at or past `rung`; None before it."""
    steps = sorted(trial.intermediate_values)
    first = next((step for step in steps if step >= rung), None)
    if first is None:
        return None
    return float(min(sign * trial.intermediate_values[step] for step in steps if step <= first))
