"""Means of covariance matrices against pyRiemann."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyriemann.geometry.mean import mean_riemann

from raypipe.models.covariance import log_matrix, whiten
from raypipe.training.riemann import inverse_root, riemann_mean, whitening
from tests.support.oracles import needs_numpy_2


def matrices(n, dimension, seed, spread=1.0):
    a_NDK = np.random.default_rng(seed).normal(size=(n, dimension, 3 * dimension))
    return np.exp(spread * np.random.default_rng(seed + 1).normal(size=(n, 1, 1))) * (a_NDK @ a_NDK.swapaxes(1, 2))


@needs_numpy_2
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**16), dimension=st.integers(1, 6))
def test_the_mean_is_that_of_pyriemann(seed, dimension):
    c_NDD, weight_N = matrices(12, dimension, seed), np.random.default_rng(seed).uniform(0.1, 2.0, 12)
    expected = mean_riemann(c_NDD, tol=1e-12, maxiter=200, sample_weight=weight_N)
    found = riemann_mean(torch.from_numpy(c_NDD), torch.from_numpy(weight_N)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max())


def test_the_inverse_root_whitens():
    c_NDD = torch.from_numpy(matrices(3, 5, 0))
    root_NDD = inverse_root(c_NDD)
    np.testing.assert_allclose(root_NDD @ c_NDD @ root_NDD, np.broadcast_to(np.eye(5), (3, 5, 5)), atol=1e-10)


def test_directions_that_are_emptied_in_all_matrices_are_left_out():
    """Matrices of four signals that are seen by six channels are as far from each other as those of the signals."""
    weight_N = torch.linspace(0.5, 1.5, 9, dtype=torch.float64)
    signals_NDD, mixing_CD = matrices(9, 4, 0), np.random.default_rng(1).normal(size=(6, 4))
    channels_NCC = mixing_CD @ signals_NDD @ mixing_CD.T

    def distances(c_NDD, rounding):
        c_NDD = torch.from_numpy(c_NDD)
        white_DD = whitening(c_NDD, weight_N)
        noise_NDD = rounding * torch.randn(c_NDD.shape, dtype=torch.float64, generator=torch.manual_seed(0))
        noise_NDD = noise_NDD @ noise_NDD.mT * c_NDD.diagonal(dim1=1, dim2=2).mean()
        tangent_NDD = log_matrix(whiten((c_NDD + noise_NDD)[:, None], white_DD[None])).flatten(1)
        return torch.cdist(tangent_NDD, tangent_NDD).numpy(), white_DD

    expected, full_DD = distances(signals_NDD, 0.0)
    found, white_CC = distances(channels_NCC, 1e-8)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert (white_CC[4:] == 0).all() and (white_CC[:4] != 0).any(1).all()
    np.testing.assert_array_equal(full_DD, inverse_root(riemann_mean(torch.from_numpy(signals_NDD), weight_N)))
    assert (whitening(torch.zeros(2, 3, 3, dtype=torch.float64), weight_N[:2]) == 0).all()
