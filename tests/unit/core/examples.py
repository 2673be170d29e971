"""Targets and predictions to score."""

from __future__ import annotations

from typing import Any

import numpy as np


def example(kind: str, n: int = 60, k: int = 3, seed: int = 0) -> tuple[Any, Any, Any]:
    """Return targets (or classes), predictions and subjects of `n` windows."""
    rng = np.random.default_rng(seed)
    subjects = rng.integers(0, 8, n).astype(str)
    if kind == "regression":
        y = rng.normal(5.0, 1.0, n)
        return y, (y + rng.normal(size=n))[:, None], subjects
    y = np.r_[np.arange(k), rng.integers(0, k, n - k)]
    scores = np.round(rng.dirichlet(np.ones(k), n) + 0.3 * np.eye(k)[y], 1)  # rounding makes ties
    return y, scores, subjects
