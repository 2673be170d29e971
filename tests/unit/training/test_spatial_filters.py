"""Principal components, and xDAWN filters against pyRiemann."""

from __future__ import annotations

import numpy as np
import torch
from pyriemann.spatialfilters import Xdawn

from raypipe.training import spatial_filters
from raypipe.training.spatial_filters import fit_responses, principal_components
from tests.support.oracles import needs_numpy_2


def responses(n=60, channels=5, n_times=40):
    rng = np.random.default_rng(0)
    group_N = rng.integers(0, 2, n)
    shapes_GT = np.stack([np.sin(np.linspace(0, 3, n_times)), np.exp(-(np.linspace(-2, 2, n_times) ** 2))])
    x_NCT = (
        rng.normal(size=(n, channels, n_times))
        + rng.normal(size=(2, channels))[group_N][..., None] * shapes_GT[group_N][:, None]
    )
    return x_NCT - x_NCT.mean(-1, keepdims=True), group_N


def parts(*tensors, size=25):
    for start in range(0, len(tensors[0]), size):
        yield tuple(tensor[start : start + size] for tensor in tensors)


@needs_numpy_2
def test_filters_and_responses_are_those_of_xdawn(monkeypatch):
    monkeypatch.setattr(spatial_filters, "_RIDGE", 0.0)
    x_NCT, group_N = responses()
    batches = parts(torch.from_numpy(x_NCT), torch.ones(60, dtype=torch.float64), torch.from_numpy(group_N))
    found = fit_responses(batches, 2, 2)
    expected = Xdawn(nfilter=2).fit(x_NCT, group_N)
    sign_S1 = np.sign((found.filters.numpy() * expected.filters_).sum(1, keepdims=True))
    np.testing.assert_allclose(found.filters, sign_S1 * expected.filters_, rtol=0, atol=1e-8)
    np.testing.assert_allclose(found.prototypes, sign_S1 * expected.evokeds_, rtol=0, atol=1e-8)


def test_a_window_that_counts_twice_is_one_that_is_there_twice():
    x_NCT, group_N = responses()
    x_NCT, group_N = torch.from_numpy(x_NCT), torch.from_numpy(group_N)
    weight_N = torch.ones(60, dtype=torch.float64)
    weight_N[:10] = 2.0
    twice = [torch.cat([each, each[:10]]) for each in (x_NCT, torch.ones(60, dtype=torch.float64), group_N)]
    one, other = fit_responses(parts(x_NCT, weight_N, group_N), 2, 1), fit_responses(parts(*twice), 2, 1)
    np.testing.assert_allclose(one.prototypes.abs(), other.prototypes.abs(), rtol=1e-8)


def test_a_channel_that_repeats_another_is_no_problem():
    x_NCT, group_N = responses()
    x_NCT[:, 4] = x_NCT[:, 3]
    batches = parts(torch.from_numpy(x_NCT), torch.ones(60, dtype=torch.float64), torch.from_numpy(group_N))
    assert all(torch.isfinite(each).all() for each in fit_responses(batches, 2, 5))


def test_components_are_orthonormal_and_ordered_by_power_whatever_a_loud_window_does():
    rng = np.random.default_rng(0)
    x_NCT = rng.normal(size=(40, 4, 30)) * np.array([1.0, 5.0, 2.0, 0.1])[:, None]
    x_NCT[0] = 1e4 * rng.normal(size=(4, 30)) * np.array([1.0, 0.0, 0.0, 0.0])[:, None]
    axes_KC = principal_components(parts(torch.from_numpy(x_NCT), torch.ones(40, dtype=torch.float64)), 2).numpy()
    np.testing.assert_allclose(axes_KC @ axes_KC.T, np.eye(2), atol=1e-12)
    assert np.abs(axes_KC).argmax(1).tolist() == [1, 2]
