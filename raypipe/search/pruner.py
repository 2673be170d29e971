"""Successive halving over stored scores: a killed driver cannot lose a decision."""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial

from raypipe.search.reruns import is_rerun
from raypipe.search.warm_start import is_warm


class SuccessiveHalving(optuna.pruners.BasePruner):  # type: ignore[misc]
    """Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934, algorithm 2) on stored scores alone.

    At each rung (`grace`, `grace * eta`, ... passes over the training windows) a trial goes on if its best score so
    far is in the best 1/eta of the trials that have reached the rung, or if fewer than `eta` others have: an ensemble
    wants more than one trial that was trained to its end. Optuna's own SuccessiveHalvingPruner marks a
    rung as passed before its caller has acted on the answer, so a driver killed in between would let a trial go on
    that was to stop; this one keeps no state of its own.
    """

    def __init__(self, grace: int, eta: int = 3) -> None:
        self.grace, self.eta = grace, eta

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the trial's last reported step crossed a rung that it does not pass."""
        steps = sorted(trial.intermediate_values)
        if not steps:
            return False
        before = steps[-2] if len(steps) > 1 else 0
        crossed, rung = [], self.grace
        while rung <= steps[-1]:
            if before < rung:
                crossed.append(rung)
            rung *= self.eta
        if not crossed:  # most epochs: no look at all the others, which may be thousands
            return False
        drawn = [t for t in study.get_trials(deepcopy=False) if not is_warm(t) and not is_rerun(t)]
        others = [t for t in drawn if t.number != trial.number]
        sign = 1.0 if study.direction == optuna.study.StudyDirection.MINIMIZE else -1.0
        for rung in crossed:
            own = self._at(trial, rung, sign)
            reached = [value for t in others if (value := self._at(t, rung, sign)) is not None]
            better = sum(value < own for value in reached) if own is not None else 0
            if len(reached) >= self.eta and better >= (len(reached) + 1) // self.eta:
                return True
        return False

    @staticmethod
    def _at(trial: FrozenTrial, rung: int, sign: float) -> float | None:
        """Best score (lower is better) up to the first step at or past `rung`; None before it."""
        steps = sorted(trial.intermediate_values)
        first = next((step for step in steps if step >= rung), None)
        if first is None:
            return None
        return float(min(sign * trial.intermediate_values[step] for step in steps if step <= first))
