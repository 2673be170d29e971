"""Filters against MNE's own."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mne.filter import filter_data, notch_filter

from raypipe.data.fir_filters import apply_filter, design_band, design_notch


def reference(x_CT, rate, low, high):
    return filter_data(x_CT.copy(), rate, low or None, high, verbose="ERROR")


@pytest.mark.parametrize(("low", "high"), [(0.5, 40.0), (0.0, 30.0), (8.0, 13.0)])
@pytest.mark.parametrize("n_times", [50, 330, 331, 700, 5_000, 20_000])
def test_samples_are_those_of_mne(low, high, n_times):
    """Signals shorter than the filter too, and offsets of ten millivolts."""
    rng = np.random.default_rng(0)
    x_CT = 50 * rng.normal(size=(11, n_times)) + 1e4 * rng.normal(size=(11, 1))
    found = apply_filter(x_CT, design_band(100.0, low, high))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # MNE warns of a filter that is longer than the signal
        wanted = reference(x_CT, 100.0, low, high)
    np.testing.assert_allclose(found, wanted, atol=1e-6 * np.abs(wanted).max())


@given(st.integers(1, 3_000), st.integers(0, 2**32 - 1), st.floats(-1e3, 1e3))
def test_a_filter_is_linear_and_ignores_the_order_of_channels(n_times, seed, factor):
    taps = design_band(100.0, 1.0, 30.0)
    x_CT = np.random.default_rng(seed).normal(size=(3, max(2, n_times)))
    y_CT = apply_filter(x_CT, taps)
    np.testing.assert_allclose(apply_filter(x_CT[::-1], taps), y_CT[::-1], atol=1e-12)
    both = apply_filter(factor * x_CT[:1] + x_CT[1:2], taps)
    np.testing.assert_allclose(both, factor * y_CT[:1] + y_CT[1:2], atol=1e-9 * max(1.0, abs(factor)))


def test_a_filter_is_designed_once():
    assert design_band(250.0, 1.0, 40.0) is design_band(250.0, 1.0, 40.0)
    assert len(design_band(250.0, 1.0, 40.0)) % 2 == 1


@pytest.mark.parametrize("centres", [(50.0,), (60.0, 120.0), (16.7, 50.0, 100.0)])
@pytest.mark.parametrize("n_times", [400, 1_651, 20_000])
def test_notches_are_those_of_mne(centres, n_times):
    x_CT = 50 * np.random.default_rng(1).normal(size=(9, n_times)) + 1e4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        wanted = notch_filter(x_CT.copy(), 250.0, np.array(centres), verbose="ERROR")
    np.testing.assert_allclose(apply_filter(x_CT, design_notch(250.0, *centres)), wanted, atol=1e-6 * 1e4)
