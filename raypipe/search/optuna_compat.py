"""Private and deprecated API of Optuna that raypipe needs; no other module uses any."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

FIXED_PARAMS = "fixed_params"
"""System attribute of an enqueued trial: its parameters."""


def open_trial(study: optuna.Study, trial: FrozenTrial) -> optuna.Trial:
    """Return a trial of the study that can draw parameters and report values, also after a restart."""
    return optuna.Trial(study, trial._trial_id)


def start_trial(storage: BaseStorage, trial: FrozenTrial) -> int:
    """Start a trial that waits, before those that wait longer, which `optuna.Study.ask` would; return its number."""
    storage.set_trial_state_values(trial._trial_id, state=TrialState.RUNNING)
    return int(trial.number)


def enqueued_params(trial: FrozenTrial) -> dict[str, Any] | None:
    """Return the parameters with which a trial was enqueued; None where it was not."""
    found: dict[str, Any] | None = trial.system_attrs.get(FIXED_PARAMS)
    return found


class DrawnParamsSampler(optuna.samplers.TPESampler):  # type: ignore[misc,unused-ignore]
    """TPE that learns of a running trial what it has drawn.

    Optuna's also reads parameters that were sampled for it and not drawn, from attributes that no record of the run
    has: a rebuilt study would draw something else. One driver draws a trial at once, so nothing is lost.
    """

    def _get_params(self, trial: FrozenTrial, study: optuna.Study) -> dict[str, Any]:
        return dict(trial.params)
