"""Ways to weigh the trials of an ensemble, from out-of-fold predictions alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypipe.metrics import Kind

Floats = NDArray[np.float64]
Method = Callable[[Sequence[NDArray[Any]], NDArray[Any], Kind], Floats]


def equal(oof_TNO: Sequence[NDArray[Any]], y: NDArray[Any], kind: Kind) -> Floats:
    """Weigh all trials alike."""
    return np.full(len(oof_TNO), 1.0 / len(oof_TNO))


def confidence(oof_TNO: Sequence[NDArray[Any]], y: NDArray[Any], kind: Kind) -> Floats:
    """Weigh each trial by its inverse mean squared error (classes: Brier score), normalised.

    The best weights there are if the trials' errors are unbiased and independent. Errors of networks trained on the
    same people are far from independent, so compare with equal weights before believing in a gain.
    """
    errors_T = np.array([squared_error(p_NO, y, kind) for p_NO in oof_TNO])
    perfect_T = errors_T == 0.0
    if perfect_T.any():
        return np.asarray(perfect_T / perfect_T.sum())
    inverse_T = errors_T.min() / errors_T  # the ratio, so that tiny errors do not overflow
    return np.asarray(inverse_T / inverse_T.sum())


def best(oof_TNO: Sequence[NDArray[Any]], y: NDArray[Any], kind: Kind) -> Floats:
    """Give all weight to the best single trial: the first."""
    return np.asarray(np.eye(len(oof_TNO))[0])


METHODS: dict[str, Method] = {"confidence": confidence, "equal": equal, "best": best}
"""Ways to weigh trials: ``method(oof_TNO, y, kind)`` gives weights (T,), none negative, that sum to one. `oof_TNO`
holds each trial's out-of-fold predictions (N, outputs), best trial first; held-out subjects are in none of them."""


def squared_error(p_NO: NDArray[Any], y: NDArray[Any], kind: Kind) -> float:
    """Mean squared error, or the Brier score (Brier 1950: summed over classes) of probabilities (N, n_classes)."""
    goal_NO = np.eye(p_NO.shape[1])[y.astype(np.int64)] if kind == "classification" else y[:, None]
    return float(np.mean(np.sum((p_NO.astype(np.float64) - goal_NO) ** 2, axis=1)))
