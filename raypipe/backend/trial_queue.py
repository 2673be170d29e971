"""What Ray Tune's adapters need of a run's trials and of its lease."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from raypipe.core.errors import UserError
from raypipe.storage.records import State, TrialResult
from raypipe.storage.run_store import RunStore


class TrialQueue(Protocol):
    """Trials of a run as Tune needs them; `raypipe.search.study` implements it with an Optuna study."""

    run: RunStore
    parallel: int
    """Trials that run at a time."""

    @property
    def exhausted(self) -> bool:
        """Return whether every trial has been handed out."""

    def next(self) -> int | None:
        """Return the number of the next trial, None if none is left."""

    def put_back(self, number: int) -> None:
        """Hand out a trial that has not ended again, before any other."""

    def observe(self, number: int) -> bool:
        """Update the study with a trial's history; return whether the trial continues."""

    def early_end(self, number: int) -> tuple[State, str]:
        """Return how a trial ends that `observe` does not continue: its state, and the reason."""

    def close(
        self, number: int, state: State, reason: str, failure: str | None = None, trace: str = ""
    ) -> TrialResult | None:
        """Record how a trial ended; return None if it is handed out again, since it has lost checkpoints."""

    def awaited_end(self, number: int) -> tuple[State, str] | None:
        """Return how a trial ends once its lost checkpoints are made again; None for any other trial."""

    def enqueue_point(self, point: Mapping[str, Any], request: str) -> int:
        """Enqueue a point once; return its trial, or raise `UserError` where it cannot be trained."""


class DriverLease(Protocol):
    """The driver's lease of the run."""

    lost: UserError | None
    """Set when another driver has taken over the run."""
