"""Means of covariance matrices against pyRiemann."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyriemann.geometry.mean import mean_riemann

from raypipe.training.riemann import inverse_root, riemann_mean
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
