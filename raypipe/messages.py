"""What passes between folds, the referee and the desk. Light: no torch, so that the desk's process stays small."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class FoldEpoch:
    """What one epoch of one fold gave."""

    loss: float
    """Mean training loss."""
    predictions: NDArray[np.float32]
    """(V, outputs) of the fold's validation windows: values in target units, or class probabilities."""
    seconds: float


@dataclass(frozen=True)
class Reply:
    """What a worker is told after an epoch."""

    go: bool
    """Train the next epoch."""
    best: int
    """Best epoch so far: its checkpoints are kept."""


@dataclass(frozen=True)
class Job:
    """A trial on a slot, to be trained from the epoch after `done`. `seq` counts the slot's jobs."""

    seq: int
    number: int
    done: int


@dataclass(frozen=True)
class Failure:
    """Why a trial cannot go on: the kind of `store.TrialResult`, one line, and the end of the traceback."""

    kind: str
    reason: str
    trace: str = ""
