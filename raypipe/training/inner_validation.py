"""A fold that chooses its epoch by itself, on subjects of its training side that it does not train on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raypipe.core.folds import Index
from raypipe.core.metrics import score
from raypipe.core.seeds import derive_seed

SHARE = 0.15
"""Share of a fold's training subjects that are set apart."""


def split_inner(train: Index, subjects: NDArray[Any], *, seed: int, fold: int) -> tuple[Index, Index]:
    """Split a fold's training windows by subject: those it trains on, and those that it chooses its epoch by."""
    names = np.unique(subjects)
    if len(names) < 2:
        return train, np.empty(0, np.int64)
    rng = np.random.default_rng(derive_seed("inner", seed, fold))
    apart = np.isin(subjects, rng.permutation(names)[: max(1, round(SHARE * len(names)))])
    return train[~apart], train[apart]


class InnerValidation:
    """A fold's own best epoch, by windows of training subjects that it does not train on."""

    def __init__(self, metric: str, *, minimize: bool) -> None:
        self.metric, self.minimize = metric, minimize
        self.epoch, self.score, self.loss = 0, float("nan"), float("nan")
        self.weights: dict[str, Tensor] = {}
        self.predictions: NDArray[np.float32] = np.empty((0, 1), np.float32)

    def look(self, epoch: int, targets: NDArray[Any], predictions: NDArray[np.float32]) -> bool:
        """Whether the epoch is the best so far; the latest, while none has a score (AUC of one class)."""
        found = score(self.metric, targets, predictions)
        better = found < self.score if self.minimize else found > self.score
        if better or not np.isfinite(self.score):
            self.epoch, self.score = epoch, found
            return True
        return False

    def keep(self, weights: dict[str, Tensor], predictions: NDArray[np.float32], loss: float) -> None:
        """Keep what the best epoch gave."""
        self.weights, self.predictions, self.loss = weights, predictions, loss

    def state_dict(self) -> dict[str, Any]:
        """State to save."""
        return {**vars(self), "predictions": torch.from_numpy(self.predictions)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state."""
        vars(self).update(state, predictions=state["predictions"].numpy())
