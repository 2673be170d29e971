"""Results of an epoch that pass between processes. No torch: the broker and the trial actors import this."""

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
    """(V, outputs) of the fold's validation windows: values in target units, or class probabilities; where the network
    tells variances, a column more."""
    seconds: float
    by_fold: bool = False
    """The fold chooses its epoch by itself, and the predictions are those of the chosen one."""
    stopped: bool = False
    """The fold has stopped by itself."""


@dataclass(frozen=True)
class Reply:
    """What a worker is told after an epoch."""

    go: bool
    """Train the next epoch."""
    best: int
    """Best epoch so far: its checkpoints are kept."""
