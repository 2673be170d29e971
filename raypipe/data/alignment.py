"""Euclidean alignment of the windows of a recording (He & Wu 2020, doi:10.1109/TBME.2019.2913914)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MIN_RELATIVE = 1e-12
"""Variances below this fraction of the largest are rounding errors of samples in single precision, and taken for 0."""


class MeanCovariance:
    """The mean of the spatial covariances of windows, which are not centred."""

    def __init__(self, n_channels: int) -> None:
        self._sum_CC = np.zeros((n_channels, n_channels))
        self._samples = 0

    def add(self, x_NCT: NDArray[np.float32]) -> None:
        """Count the windows (N, C, T)."""
        for x_CT in x_NCT.astype(np.float64):
            self._sum_CC += x_CT @ x_CT.T
        self._samples += x_NCT.shape[0] * x_NCT.shape[2]

    def value(self) -> Floats:
        """Return the mean covariance (C, C) of a sample; zeros without a window."""
        return self._sum_CC / max(self._samples, 1)


def inverse_root(covariance_CC: Floats) -> Floats:
    """Return the inverse square root of a covariance (C, C).

    Where it has no full rank, as after an average reference or with a flat channel, it is that of the pseudo-inverse.
    """
    values_C, vectors_CC = np.linalg.eigh(covariance_CC)
    is_rank_C = values_C > MIN_RELATIVE * values_C[-1]
    inverse_C = np.zeros_like(values_C)
    inverse_C[is_rank_C] = values_C[is_rank_C] ** -0.5
    root_CC: Floats = (vectors_CC * inverse_C) @ vectors_CC.T
    return root_CC


def align(matrix_CC: Floats, x_NCT: NDArray[np.float32]) -> NDArray[np.float32]:
    """Multiply each window (N, C, T) by the matrix: the mean covariance of all is then the identity."""
    aligned_NCT: NDArray[np.float32] = (matrix_CC @ x_NCT.astype(np.float64)).astype(np.float32)
    return aligned_NCT
