"""Power spectra of groups of windows: averaged within people, bounded, the same at each call."""

from __future__ import annotations

import numpy as np
import pytest

from raypipe.data.window_store import WindowStore
from raypipe.reporting import spectra
from raypipe.reporting.spectra import group_spectra
from tests.support.toys import ToyWindows, write_store


@pytest.fixture
def store(tmp_path):
    """White noise of unit variance; the second half of the people has a rhythm of 10 Hz in channel E2."""
    toy = ToyWindows(subjects=12, each=6)
    rng, time = np.random.default_rng(0), np.arange(toy.window_samples) / toy.sfreq
    toy.x = rng.normal(size=toy.x.shape).astype(np.float32)
    toy.x[36:, 1] += (3 * np.sin(2 * np.pi * 10 * time + rng.uniform(0, 6, (36, 1)))).astype(np.float32)
    return WindowStore(write_store(tmp_path / "store", toy))


def test_the_channel_and_the_frequency_that_differ_are_found(store):
    found = group_spectra(store, [np.arange(36), np.arange(36, 72)])
    frequency, size, most, least = found.peak
    assert found.channel == "E2" and frequency == pytest.approx(10, abs=1) and (most, least) == (1, 0) and size > 10
    assert found.people == [6, 6] and found.windows == 72


def test_white_noise_has_the_power_that_its_variance_says(store):
    found = group_spectra(store, [np.arange(36)])
    expected = 10 * np.log10(1 / (store.sfreq / 2))  # a variance of 1, spread up to half of the rate
    assert found.channel == "" and found.all_channels.mean.mean() == pytest.approx(expected, abs=0.6)
    inside = (found.all_channels.low <= expected) & (expected <= found.all_channels.high)
    assert inside.mean() > 0.7
    assert found.all_channels.frequencies.max() <= spectra.PASSED * store.sfreq


def test_a_person_counts_once_however_many_windows_there_are(store, monkeypatch):
    monkeypatch.setattr(spectra, "WINDOWS_EACH", 100)
    one = np.r_[np.arange(6), 36 + np.arange(6)]
    six = group_spectra(store, [np.r_[0:36:6, 36:42]]).all_channels
    assert six.low[0, 0] < six.mean[0, 0] < six.high[0, 0]
    few = group_spectra(store, [np.r_[0, 36:42]]).all_channels
    assert np.isnan(few.low).all() and np.isnan(few.high).all(), "two people have no interval"
    alone = [group_spectra(store, [index]).all_channels.mean[0] for index in (np.array([0]), np.arange(36, 42))]
    assert few.mean[0] == pytest.approx(np.mean(alone, axis=0)) and len(one) == 12
    assert np.isnan(group_spectra(store, [np.arange(6)]).all_channels.low).all(), "one person has no interval"


def test_the_sample_is_bounded_and_the_same_each_time(store, monkeypatch):
    monkeypatch.setattr(spectra, "MAX_PEOPLE", 3)
    monkeypatch.setattr(spectra, "WINDOWS_EACH", 2)
    first, again = (group_spectra(store, [np.arange(36), np.arange(36, 72)]) for _ in range(2))
    assert first.people == [3, 3] and first.windows == 12
    assert np.array_equal(first.one_channel.mean, again.one_channel.mean)
    monkeypatch.setattr(spectra, "MAX_VALUES", 1)
    assert group_spectra(store, [np.arange(36)]).windows == 3, "one window of each person is always read"


def test_a_flat_channel_is_no_number_that_is_not_finite(store):
    gather = store.gather
    store.gather = lambda index: gather(index) * np.array([0.0, 1.0, 1.0], np.float32)[:, None]
    found = group_spectra(store, [np.arange(36), np.arange(36, 72)])
    assert np.isfinite(found.all_channels.mean).all() and np.isfinite(found.one_channel.mean).all()
