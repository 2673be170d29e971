"""Filters at the start of a network, their activation patterns and spectra, and positions on the scalp."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raypipe.data.montage import electrode_positions, project_to_scalp
from raypipe.models.conformer import Conformer
from raypipe.models.eegnet import EEGNet
from raypipe.models.shallow import Shallow
from raypipe.models.tcn import Tcn
from raypipe.reporting.filter_patterns import (
    activation_patterns,
    amplitude_spectra,
    extract_filters,
    strongest_component,
)


def test_layers_of_the_conformer_are_one_map():
    torch.manual_seed(0)
    model = Conformer(5, 100, 1, filters=6, heads=2, depth=1, kernel=7, pool=20).double().eval()
    found = extract_filters("conformer", dict(model.state_dict()))
    x = torch.randn(2, 5, 100, dtype=torch.float64)
    model.stem.algorithm = "reference"
    with torch.no_grad():
        whole = torch.nn.functional.conv1d(x, torch.from_numpy(found.combined).double())
        differs = model.stem(x) - whole
    assert found.combined.shape == (6, 5, 7) and found.temporal.shape == (6, 7) and found.weight.shape == (6,)
    assert differs.std(-1).max() < 1e-5, "but for a constant, the bias"


def test_layers_of_the_tcn_are_one_map():
    torch.manual_seed(0)
    model = Tcn(5, 60, 1, filters=4, depth=1).eval()
    found = extract_filters("tcn", dict(model.state_dict()))
    x = torch.randn(2, 5, 60)
    with torch.no_grad():
        inner = model.temporal(model.spatial(x))[..., 3:-3]
        differs = inner - torch.nn.functional.conv1d(x, torch.from_numpy(found.combined))
    assert differs.std(-1).max() < 1e-5
    assert strongest_component(found.combined)[2] == pytest.approx(1.0)


def test_layers_of_shallow_are_one_map():
    torch.manual_seed(0)
    model = Shallow(5, 100, 2, filters=6, kernel=7, pool=20).double().eval()
    found = extract_filters("shallow", dict(model.state_dict()))
    x = torch.randn(2, 5, 100, dtype=torch.float64)
    with torch.no_grad():
        differs = model.stem(x) - torch.nn.functional.conv1d(x, torch.from_numpy(found.combined).double())
    assert found.combined.shape == (6, 5, 7) and found.weight.shape == (6,) and differs.std(-1).max() < 1e-5
    with torch.no_grad():
        model.head.weight.view(2, 6, -1)[:, 3] = 0.0
    assert extract_filters("shallow", dict(model.state_dict())).weight[3] == 0.0


def test_layers_of_eegnet_are_one_map():
    torch.manual_seed(0)
    model = EEGNet(5, 100, 2, filters=3, kernel=16).eval()
    found = extract_filters("eegnet", dict(model.state_dict()))
    x = torch.randn(2, 5, 100)
    with torch.no_grad():
        inner = model._filter(x)[..., 8:-8]
        ours = torch.nn.functional.conv1d(x, torch.from_numpy(found.combined))
        differs = inner - ours / (1 + model.temporal_norm.eps) ** 0.5
    assert found.combined.shape == (6, 5, 16) and found.temporal.shape == (3, 16) and found.weight.shape == (6,)
    assert differs.std(-1).max() < 1e-5


def test_a_network_without_spatial_filters_has_none():
    assert extract_filters("vit", {}) is None


def test_the_pattern_is_the_source_although_the_filter_is_not():
    rng = np.random.default_rng(0)
    source, noise = np.array([1.0, 0.0]), np.array([1.0, 1.0])  # Haufe et al. 2014, figure 1
    x_BCT = np.einsum("c,bt->bct", source, rng.normal(size=(20, 400))) + np.einsum(
        "c,bt->bct", noise, rng.normal(size=(20, 400))
    )
    filter_GCK = np.array([[[1.0], [-1.0]]])  # takes the noise away: both channels weigh alike
    pattern_GCK, sd_G = activation_patterns(x_BCT, filter_GCK)
    assert strongest_component(pattern_GCK)[0][0] == pytest.approx(source, abs=0.03)
    assert sd_G == pytest.approx([1.0], rel=0.03)


def test_patterns_are_the_covariance_of_channels_and_lags_times_the_filter():
    rng = np.random.default_rng(1)
    x_BCT, w_GCK = rng.normal(size=(3, 2, 500)).cumsum(-1) / 10, rng.normal(size=(2, 2, 4))
    pattern_GCK, _ = activation_patterns(x_BCT, w_GCK)
    lagged = np.stack([x_BCT[..., k : 497 + k] for k in range(4)], 2).transpose(0, 3, 1, 2).reshape(-1, 8)
    expected = np.cov(lagged.T, bias=True) @ w_GCK.reshape(2, 8).T
    np.testing.assert_allclose(pattern_GCK.reshape(2, 8), expected.T, rtol=2e-3, atol=1e-3 * np.abs(expected).max())


def test_spectra_peak_at_the_frequency_of_the_kernel():
    time = np.arange(50) / 100
    frequencies, gain = amplitude_spectra(np.sin(2 * np.pi * np.array([[10.0], [25.0]]) * time), 100.0)
    assert frequencies[gain.argmax(1)] == pytest.approx([10, 25], abs=0.6) and gain.max() == 1.0
    assert frequencies[-1] == 50.0


def test_electrode_positions_on_the_scalp():
    info, known = project_to_scalp(["EEG Fz-A2", "nothing", "C3", "c3", "O2"])
    assert known == [0, 2, 4] and info.ch_names == ["EEG Fz-A2", "C3", "O2"]
    fz, c3, o2 = (each["loc"][:3] for each in info["chs"])
    assert fz[1] > c3[1] > o2[1] and c3[0] < 0 < o2[0] and abs(fz[0]) < 0.005
    apart = electrode_positions(["Fz", "O2"])
    assert np.linalg.norm(fz - o2) == pytest.approx(np.linalg.norm(apart[0] - apart[1]), rel=0.02)
    assert np.isnan(electrode_positions(["", "nothing"])).all() and electrode_positions([]).shape == (0, 3)
    assert project_to_scalp(["nothing"]) == (None, []) == project_to_scalp([])
    assert len(project_to_scalp([f"E{k}" for k in range(1, 130)])[1]) == 129
