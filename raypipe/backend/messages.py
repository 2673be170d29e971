"""What passes between folds, the referee and the desk. Light: no torch, so that the desk's process stays small."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TrialJob:
    """A trial for a worker group, to be trained from the epoch after `done`. `seq` counts the group's jobs."""

    seq: int
    number: int
    done: int


@dataclass(frozen=True)
class SweepContext:
    """How trials are run: what every slot and worker of a sweep is given."""

    run: str
    windows: str
    desk: Any
    scratch: str
    workers: int
    cpus: float
    gpus: float
    stem: str
    stack: str
    grows: bool
    """Whether the cluster may grow (`groups.WorkerGroupTrainer`)."""
