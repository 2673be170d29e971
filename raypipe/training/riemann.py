"""Means of covariance matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from raypipe.models.covariance import least_eigenvalue, log_matrix, map_eigenvalues

MAX_STEPS = 100
TOLERANCE = 1e-10
"""Norm of the mean tangent vector at which the mean is found, relative to the root of the dimension."""


def riemann_mean(c_NDD: Tensor, weight_N: Tensor) -> Tensor:
    """Return the affine-invariant mean of positive definite matrices: that with the least squared distance to them.

    Fixed-point iteration with the step sizes of Congedo et al. 2017 (doi:10.1371/journal.pone.0121423, algorithm 1).

    Parameters
    ----------
    c_NDD
        Matrices.
    weight_N
        Their weights.
    """
    share_N = weight_N / weight_N.sum()
    mean_DD = torch.einsum("n,nij->ij", share_N, c_NDD)
    step, least = 1.0, float("inf")
    for _ in range(MAX_STEPS):
        root_DD, inverse_DD = (map_eigenvalues(mean_DD, power) for power in (torch.sqrt, torch.rsqrt))
        tangent_DD = torch.einsum("n,nij->ij", share_N, log_matrix(inverse_DD @ c_NDD @ inverse_DD))
        moved_DD = root_DD @ torch.linalg.matrix_exp(step * tangent_DD) @ root_DD
        mean_DD = (moved_DD + moved_DD.mT) / 2
        norm = float(torch.linalg.matrix_norm(tangent_DD)) / len(mean_DD) ** 0.5
        if norm <= TOLERANCE:
            break
        if step * norm < least:
            step, least = 0.95 * step, step * norm
        else:
            step *= 0.5
    return mean_DD


def inverse_root(c: Tensor) -> Tensor:
    """Return the inverse square roots of positive definite matrices (..., D, D), which whiten them."""
    return map_eigenvalues(c, torch.rsqrt)


def whitening(c_NDD: Tensor, weight_N: Tensor) -> Tensor:
    """Return the matrix (D, D) that whitens the affine-invariant mean of matrices: its inverse square root.

    Directions that are emptied in all of them, as one is by an average reference, hold nothing but rounding errors.
    They are left out: the others are whitened in coordinates of their own, and the last rows are zeros.

    Parameters
    ----------
    c_NDD
        Positive semidefinite matrices.
    weight_N
        Their weights.
    """
    values_D, vectors_DD = torch.linalg.eigh(torch.einsum("n,nij->ij", weight_N / weight_N.sum(), c_NDD))
    kept_D = values_D > least_eigenvalue(values_D)
    if kept_D.all():
        return inverse_root(riemann_mean(c_NDD, weight_N))
    out_DD = torch.zeros_like(vectors_DD)
    if kept_D.any():
        axes_DR = vectors_DD[:, kept_D]
        own_RR = inverse_root(riemann_mean(axes_DR.mT @ c_NDD @ axes_DR, weight_N))
        out_DD[: len(own_RR)] = own_RR @ axes_DR.mT
    return out_DD
