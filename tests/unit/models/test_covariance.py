"""Covariances and tangent vectors against pyRiemann, and the laws that they obey."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyriemann.estimation import Covariances, Shrinkage, TimeDelayCovariances
from pyriemann.geometry.covariance import covariances_EP, normalize
from pyriemann.geometry.tangentspace import log_map_logeuclid, tangent_space, upper
from scipy.stats import special_ortho_group

from raypipe.core.closed_form_config import CovarianceConfig
from raypipe.core.errors import UserError
from raypipe.models.bands import Bank
from raypipe.models.covariance import Covariance
from raypipe.models.from_config import build_model, check_sizes
from raypipe.training.riemann import inverse_root, riemann_mean
from tests.support.oracles import needs_numpy_2

SFREQ, T = 50.0, 120
EVERYTHING = Bank("even", 1e-3, SFREQ, 1)


def windows(n=12, channels=4, n_times=T, seed=0):
    rng = np.random.default_rng(seed)
    mixing_NCC = np.eye(channels) + 0.1 * rng.normal(size=(n, channels, channels))
    x_NCT = 10 * mixing_NCC @ np.cumsum(rng.normal(size=(n, channels, n_times)), -1)
    return x_NCT - x_NCT.mean(-1, keepdims=True)


def model(bank=EVERYTHING, channels=4, n_times=T, **options):
    return Covariance(channels, n_times, 2, SFREQ, bank=bank, **options).eval()


def covariances(x_NCT, **options):
    made = model(channels=x_NCT.shape[1], n_times=x_NCT.shape[2], **options)
    return made.covariances(torch.from_numpy(x_NCT)).numpy()


def in_band(x_NCT, low, high):
    spectrum, frequency = np.fft.rfft(x_NCT), np.fft.rfftfreq(x_NCT.shape[-1], 1 / SFREQ)
    spectrum[..., (frequency < low) | (frequency >= high)] = 0
    return np.fft.irfft(spectrum, x_NCT.shape[-1])


@pytest.mark.parametrize("n_times", [T, T + 1])
@needs_numpy_2
def test_over_all_frequencies_it_is_the_covariance_of_the_window(n_times):
    x_NCT = windows(n_times=n_times)
    expected = Covariances("scm").transform(x_NCT)
    np.testing.assert_allclose(covariances(x_NCT)[:, 0], expected, rtol=1e-8)


@needs_numpy_2
def test_bands_are_those_of_an_ideal_filter():
    x_NCT = windows()
    found = covariances(x_NCT, bank=Bank("log", 2.0, 16.0, 3))
    for band, low in enumerate((2.0, 4.0, 8.0)):
        expected = Covariances("scm").transform(in_band(x_NCT, low, 2 * low))
        np.testing.assert_allclose(found[:, band], expected, rtol=1e-8, atol=1e-10)


def test_a_taper_keeps_drifts_out_of_higher_bands_and_the_power_of_noise():
    drift_CT = np.linspace(-100, 100, T)[None]
    bank = Bank("even", 10.0, 20.0, 1)
    plain, tapered = (covariances(drift_CT[None], bank=bank, taper=taper)[0, 0, 0, 0] for taper in ("none", "hann"))
    assert tapered < 1e-3 * plain
    noise_NCT = np.random.default_rng(0).normal(size=(500, 1, T))
    assert covariances(noise_NCT, taper="hann").mean() == pytest.approx(1.0, rel=0.05)


@needs_numpy_2
def test_delayed_copies_are_those_of_pyriemann():
    x_NCT = windows()
    expected = TimeDelayCovariances(delays=[3, 6]).transform(x_NCT)
    np.testing.assert_allclose(covariances(x_NCT, order=3, lag=3 / SFREQ)[:, 0], expected, rtol=1e-8, atol=1e-8)


@needs_numpy_2
def test_shrinkage_and_trace_are_those_of_pyriemann():
    x_NCT = windows()
    plain = Covariances("scm").transform(x_NCT)
    np.testing.assert_allclose(covariances(x_NCT, shrinkage=0.3)[:, 0], Shrinkage(0.3).transform(plain), rtol=1e-8)
    for scale in ("band", "window"):  # the same with one band
        np.testing.assert_allclose(covariances(x_NCT, scale=scale)[:, 0], normalize(plain, "trace"), rtol=1e-8)


@needs_numpy_2
def test_prototypes_are_further_signals_as_in_pyriemann():
    x_NCT, prototypes_ST = windows(), windows(1, 2, T, 1)[0]
    made = model(prototypes=1)
    made.prototypes_ST.copy_(torch.from_numpy(prototypes_ST))
    filters_SC = np.random.default_rng(2).normal(size=(2, 4))
    made.filters_SC.copy_(torch.from_numpy(filters_SC))
    found = made.covariances(torch.from_numpy(x_NCT))[:, 0].numpy()
    np.testing.assert_allclose(found, covariances_EP(filters_SC @ x_NCT, prototypes_ST, "scm"), rtol=1e-8, atol=1e-8)


@needs_numpy_2
def test_tangent_vectors_are_those_of_pyriemann():
    x_NCT = windows(20)
    plain = Covariances("scm").transform(x_NCT)
    logarithms = model().front(torch.from_numpy(x_NCT)).numpy()
    expected = upper(log_map_logeuclid(plain, np.eye(4)))
    np.testing.assert_allclose(logarithms, expected, rtol=1e-8, atol=1e-8)
    made, mean = model(geometry="riemann"), riemann_mean(torch.from_numpy(plain), torch.ones(20).double())
    made.whitening_GDD[0] = inverse_root(mean)
    found = made.front(torch.from_numpy(x_NCT)).numpy()
    np.testing.assert_allclose(found, tangent_space(plain, mean.numpy(), metric="riemann"), rtol=1e-8, atol=1e-8)


def tangents(x_NCT, **options):
    """Return affine-invariant tangent vectors at the mean of the windows themselves."""
    made = model(channels=x_NCT.shape[1], geometry="riemann", **options)
    c_NGDD = made.covariances(torch.from_numpy(x_NCT))
    for band in range(c_NGDD.shape[1]):
        made.whitening_GDD[band] = inverse_root(riemann_mean(c_NGDD[:, band], torch.ones(len(x_NCT)).double()))
    return made.front(torch.from_numpy(x_NCT)).numpy()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16), bands=st.integers(1, 3))
def test_no_mixing_of_channels_changes_distances_between_tangent_vectors(seed, bands):
    rng = np.random.default_rng(seed)
    mixing_CC = special_ortho_group.rvs(3, random_state=seed) * rng.uniform(0.3, 3.0, 3)
    x_NCT, bank = windows(8, 3, seed=seed), Bank("even", 1.0, 20.0, bands)
    one, other = (tangents(each, bank=bank) for each in (x_NCT, mixing_CC @ x_NCT))
    np.testing.assert_allclose(one @ one.T, other @ other.T, rtol=1e-5, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(1e-3, 1e3), how=st.sampled_from(["band", "window"]), shrinkage=st.sampled_from([0.0, 0.1]))
def test_with_a_trace_the_unit_of_a_window_does_not_matter(scale, how, shrinkage):
    x_NCT, options = windows(3), {"scale": how, "shrinkage": shrinkage, "bank": Bank()}
    one, other = (model(**options).front(torch.from_numpy(factor * x_NCT)).numpy() for factor in (1.0, scale))
    np.testing.assert_allclose(one, other, atol=1e-7)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_rotated_channels_have_rotated_logarithms(seed):
    rotation_CC = special_ortho_group.rvs(4, random_state=seed)
    x_NCT = windows(2, seed=seed)
    one, other = (model().front(torch.from_numpy(each)).numpy() for each in (x_NCT, rotation_CC @ x_NCT))
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1), rtol=1e-8)


@pytest.mark.parametrize("scale", ["none", "window", "band"])
def test_windows_that_never_change_have_finite_outputs(scale):
    x_NCT = torch.zeros(2, 4, T)
    x_NCT[1] = 5.0
    made = model(bank=Bank(), scale=scale, shrinkage=0.01)
    made.weight_OF.fill_(1.0)
    assert torch.isfinite(made(x_NCT)).all()


def test_bands_without_a_frequency_are_left_out():
    assert len(Bank().ranges(120, 50.0)) == 4  # gamma starts above 25 Hz
    assert len(Bank().ranges(20, 100.0)) == 4  # frequencies are multiples of 5 Hz: none is in the delta band
    with pytest.raises(UserError, match=r"windows of 120 samples .* have no frequency in any band of model/bands=even"):
        build(CovarianceConfig(bands="even", low=30.0, high=40.0, n_bands=2))


def build(config, channels=4):
    return build_model(config, n_channels=channels, n_times=T, n_outputs=2, sfreq=SFREQ)


def test_covariances_that_do_not_fit_are_refused_in_one_line():
    config = CovarianceConfig(order=10)
    build(config, 19)
    with pytest.raises(UserError, match=r"covariances of 1290 signals in 4 bands .*set fewer model/components"):
        build(config, 129)
    build(CovarianceConfig(order=10, components=20), 129)
    with pytest.raises(ValueError, match="1290 signals"):
        check_sizes(config, n_channels=129, n_times=T, n_outputs=2, sfreq=SFREQ)


def test_shapes_follow_from_the_configuration():
    config = CovarianceConfig(components=3, prototypes=2, geometry="riemann")
    with torch.device("meta"):
        planned = {name: tensor.shape for name, tensor in build(config).state_dict().items()}
    assert planned == {name: tensor.shape for name, tensor in build(config).state_dict().items()}
    assert planned["filters_SC"] == (4, 4) and planned["whitening_GDD"] == (4, 8, 8)
