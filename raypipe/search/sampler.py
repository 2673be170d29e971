"""Sampler of one trial: what it draws depends on the trial, and not on how often its driver was killed meanwhile."""

from __future__ import annotations

import warnings
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from raypipe.core.seeds import derive_seed
from raypipe.search.optuna_compat import DrawnParamsSampler


class TrialSampler(DrawnParamsSampler):
    """TPE with a random stream for each parameter of a trial, derived from seed, trial and name.

    A driver may be killed after some parameters of a trial were drawn. They are in the study then, and are not drawn
    again. From one stream, the others would be drawn from another place of it.

    Parameters
    ----------
    seed
        Seed of the run.
    number
        Number of the trial in the study.
    parallel
        Trials that run at a time.
    """

    def __init__(self, seed: int, number: int, parallel: int) -> None:
        self._stream = ("suggest", seed, number)
        self._options: dict[str, Any] = {"multivariate": True, "group": True, "constant_liar": parallel > 1}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            super().__init__(seed=derive_seed(*self._stream) % 2**32, **self._options)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one parameter."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            seed = derive_seed(*self._stream, param_name) % 2**32
            sampler = DrawnParamsSampler(seed=seed, **self._options)
        return sampler.sample_independent(study, trial, param_name, param_distribution)
