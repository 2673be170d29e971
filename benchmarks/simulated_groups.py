"""Worker groups with their controllers and without workers, to measure what the controllers cost and where they are.

A module of its own: importing Ray Train takes seconds, and trial actors need none of it.
"""

from __future__ import annotations

import time

from raypipe.backend.messages import GroupStart
from raypipe.backend.train_compat import NoopDecision, ScalingDecision, WorkerGroupTrainer
from raypipe.backend.worker_groups import WorkerGroups, _RegisteredPolicy

DECISION_SECONDS = 0.5
"""Seconds between two decisions of a controller; one with workers polls them as often."""


class NoWorkers(_RegisteredPolicy):
    """Policy that starts no workers."""

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Wait."""
        time.sleep(DECISION_SECONDS)
        return NoopDecision()


class ControlledGroups(WorkerGroups):
    """Worker groups whose controllers run, and start no workers."""

    def _trainer(self, start: GroupStart) -> WorkerGroupTrainer:
        trainer = super()._trainer(start)
        trainer.policies = {"scaling_policy": NoWorkers(trainer.scaling_config, start)}
        return trainer

    def close(self, *, now: bool = False, abandon: bool = False) -> None:
        """End the controllers at once: they have no workers that notice the end of their group."""
        super().close(now=True, abandon=abandon)
