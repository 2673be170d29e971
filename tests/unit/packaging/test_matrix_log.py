"""Logarithms by products of matrices: their accuracy, the bound that they need, and the graphs that have them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from raypipe.models.bands import Bank
from raypipe.models.covariance import Covariance, log_matrix
from raypipe.packaging.matrix_log import MIN_SHARE, ProductLog, newton_schulz_scales, smallest_share
from raypipe.training.riemann import inverse_root


def matrices(values_D, seed=0, n=2):
    """Return matrices with these eigenvalues, and their logarithms."""
    rng = np.random.default_rng(seed)
    axes_NDD = torch.from_numpy(np.linalg.qr(rng.standard_normal((n, len(values_D), len(values_D))))[0])
    values_D = torch.as_tensor(values_D, dtype=torch.float64)
    c, log = ((axes_NDD * each_D) @ axes_NDD.mT for each_D in (values_D, values_D.log()))
    return (c + c.mT) / 2, log


@given(
    st.sampled_from([1, 2, 3, 8, 33]),
    st.floats(0.0, 8.0),
    st.floats(-9.0, 9.0),
    st.floats(1.0, 5.0),
    st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_it_is_the_logarithm_whatever_the_condition(size, decades, scale, slack, seed):
    """The error is the condition number times the rounding error of the input, as of LAPACK's eigenvalues."""
    rng = np.random.default_rng(seed)
    values = 10.0 ** (scale - decades * np.r_[0.0, rng.random(max(0, size - 2)), 1.0][:size])
    c, expected = matrices(values, seed)
    share = max(MIN_SHARE, values.min() / values.sum() / slack)
    assume(values.min() / values.sum() >= share)
    found = ProductLog(share)(c)
    condition = values.max() / values.min()
    tolerance = 1e-11 + 50 * size * condition * np.finfo(float).eps
    assert float((found - expected).abs().max()) < min(tolerance, 1e-6)
    assert torch.equal(found, found.mT)


def test_129_channels_with_shrinkage_are_those_of_lapack():
    x = np.random.default_rng(0).standard_normal((2, 129, 150)) * np.logspace(0, 2, 129)[:, None]
    c = torch.from_numpy(x @ x.swapaxes(1, 2))
    c = 0.99 * c + 0.01 * c.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(129)
    found = ProductLog(0.01 / 129)(c)
    np.testing.assert_allclose(found.numpy(), log_matrix(c).numpy(), rtol=0, atol=1e-10)


def test_windows_that_never_change_have_the_models_least_eigenvalue():
    c = torch.zeros(2, 3, 3, dtype=torch.float64)
    c[1] = torch.eye(3)
    found = ProductLog(0.3)(c)
    np.testing.assert_allclose(found.numpy(), log_matrix(c).numpy(), atol=1e-10)


@pytest.mark.parametrize("least", [1e-9, 1e-3, 0.5, 0.99])
def test_steps_converge_from_the_least_and_the_largest_value(least):
    for x in (least, math.sqrt(least), 1.0):
        for factor in newton_schulz_scales(least):
            x = 0.5 * factor * x * (3.0 - (factor * x) ** 2)
        assert x == pytest.approx(1.0, abs=1e-14)


@pytest.mark.parametrize("share", [0.0, MIN_SHARE / 2, 1.5])
def test_eigenvalues_without_a_bound_are_refused(share):
    with pytest.raises(ValueError, match="expected a share from 1e-09 to 1"):
        ProductLog(share)


@given(
    st.sampled_from(["log-euclid", "riemann"]),
    st.sampled_from([0.01, 0.3]),
    st.sampled_from(["none", "window"]),
    st.integers(0, 99),
)
@settings(max_examples=20, deadline=None)
def test_no_window_has_a_smaller_eigenvalue_than_the_bound(geometry, shrinkage, scale, seed):
    made = Covariance(
        6, 100, 1, 100.0, bank=Bank(), shrinkage=shrinkage, scale=scale, geometry=geometry, order=2
    ).eval()
    rng = np.random.default_rng(seed)
    x_NCT = torch.from_numpy(rng.standard_normal((8, 6, 100)) * 10.0 ** rng.uniform(-2, 2, (8, 6, 1)))
    x_NCT[:, 5] = x_NCT[:, :5].mean(1)
    if made.whitening_GDD is not None:
        made.whitening_GDD.copy_(inverse_root(made.covariances(x_NCT).mean(0)))
    seen = []
    made.logarithm = lambda c: seen.append(c) or log_matrix(c)
    made.front(100 * x_NCT)
    values = torch.linalg.eigvalsh(seen[0])
    assert float((values[..., 0] / values.sum(-1)).min()) >= 0.999 * smallest_share(made)
