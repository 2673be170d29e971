"""Examples of a search space's configurations, for what must be known before a sweep."""

from __future__ import annotations

import optuna

from raypipe.core.config import TrialConfig
from raypipe.core.search_space import SearchSpace

N_DRAWS = 20
"""Number of configurations that are drawn."""


def start_configs(space: SearchSpace) -> list[TrialConfig]:
    """Return the configurations of a space's START points."""
    return [space(optuna.trial.FixedTrial(point)) for point in space.start]


def example_configs(space: SearchSpace) -> list[TrialConfig]:
    """Return `N_DRAWS` configurations drawn from a space, always the same, and those of its START points."""
    return space.draw(N_DRAWS) + start_configs(space)
