"""Messages between the driver, actors and workers. Without torch, so that the broker's process stays small."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TrialJob:
    """A trial for a worker group, to be trained from the epoch after `done`."""

    seq: int
    """Number of the job in its group, from 1."""
    number: int
    """Number of the trial."""
    done: int
    """Epochs that are scored."""


@dataclass(frozen=True)
class SweepContext:
    """Settings of a sweep that every trial actor and every worker receives."""

    run: str
    """Path or URI of the run."""
    windows: str
    """Path or URI of the store of windows."""
    broker: Any
    """Handle of the sweep's `Broker`."""
    scratch: str
    """Folder or URI for Ray's own files."""
    workers: int
    """Workers per trial."""
    cpus: float
    """Cores per worker."""
    gpus: float
    """GPUs per worker."""
    stem: str
    """``--stem``: algorithm of the Conformer's stem, or ``auto``."""
    stack: str
    """``--stack``: whether a worker trains its folds as one program, or ``auto``."""
    autoscaling: bool
    """Whether the cluster may start machines when it is asked to."""
