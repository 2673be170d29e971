"""Results of an epoch that are passed between processes. No torch: the broker and the trial actors import this."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class FoldEpoch:
    """Outcome of one epoch of one fold."""

    loss: float
    """Mean training loss."""
    predictions: NDArray[np.float32]
    """(V, n_outputs) of the fold's validation windows: values in target units, or class probabilities. Where the
    network predicts variances, they are one more column."""
    seconds: float
    """Seconds of training and prediction."""
    by_fold: bool = False
    """Whether the fold chooses its epoch itself; then the predictions are those of the chosen epoch."""
    stopped: bool = False
    """Whether the fold has stopped by itself."""


@dataclass(frozen=True)
class Reply:
    """Reply to a worker that has reported an epoch."""

    continues: bool
    """Whether to train the next epoch."""
    best: int
    """Best epoch so far, whose checkpoints are kept."""
