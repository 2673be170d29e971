"""Ways to weigh the trials of an ensemble, from out-of-fold predictions alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypipe.metrics import Kind

Floats = NDArray[np.float64]
SHARPEST = 16.0
POWERS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, SHARPEST)

Method = Callable[[Sequence[NDArray[Any]], NDArray[Any], Kind], Floats]


def equal(oof_TNO: Sequence[NDArray[Any]], y: NDArray[Any], kind: Kind) -> Floats:
    """Weigh all trials alike."""
    return np.full(len(oof_TNO), 1.0 / len(oof_TNO))


def confidence(oof_TNO: Sequence[NDArray[Any]], y: NDArray[Any], kind: Kind) -> Floats:
    """Weigh each trial by a power of its inverse mean squared error (classes: Brier score), normalised.

    The power 1 gives the best weights there are if the trials' errors are unbiased and independent. Those of networks
    trained on the same people are neither: the trials share most of their error, and a weak one adds little but its
    own. So the power, from 0 (equal weights) to `SHARPEST`, is the one whose weighted mean errs least out of fold: a
    single number is fitted, and 1 is kept where none is better.
    """
    errors_T = np.array([squared_error(p_NO, y, kind) for p_NO in oof_TNO])
    perfect_T = errors_T == 0.0
    if perfect_T.any():
        return np.asarray(perfect_T / perfect_T.sum())
    inverse_T = errors_T.min() / errors_T  # the ratio, so that tiny errors do not overflow
    chosen_T, least = inverse_T / inverse_T.sum(), np.inf
    for power in sorted(POWERS, key=lambda power: power != 1.0):
        weights_T = inverse_T**power / np.sum(inverse_T**power)
        error = squared_error(np.tensordot(weights_T, np.stack(oof_TNO).astype(np.float64), 1), y, kind)
        if error < least * (1 - 1e-6):
            chosen_T, least = weights_T, error
    return np.asarray(chosen_T)


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
