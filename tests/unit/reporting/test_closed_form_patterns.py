"""Activation patterns of models fitted in closed form: they find the source of a simulation, and follow their laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.core.parameters import parse_config
from raypipe.models.bands import Bank
from raypipe.models.covariance import half_vector
from raypipe.reporting import closed_form_patterns
from raypipe.reporting.closed_form_patterns import DECIBELS, scalp_patterns, unreadable
from raypipe.training.closed_form import ClosedFormTrainer
from raypipe.training.loader import FoldData, WindowLoader
from tests.support.toys import ToyWindows

CHANNELS = 10
SOURCE = np.array([0.1, 0.3, 1.0, 0.8, 0.3, 0.1, 0.0, 0.0, 0.1, 0.0])
OTHER = np.array([0.0, 0.5, 1.0, 0.5, 0.0, 0.0, 0.3, 0.9, 0.4, 0.1])
"""Where the source is strongest, another one with other targets is as strong: a filter avoids it."""
ALPHA = {"model/bands": "theta-alpha"}
POWER = {
    "band power": {"model/name": "linear"} | ALPHA,
    "power of components": {"model/name": "linear", "model/components": 9} | ALPHA,
    "covariance": {"model/name": "covariance"} | ALPHA,
    "whitened": {"model/name": "covariance", "model/geometry": "riemann"} | ALPHA,
    "components": {"model/name": "covariance", "model/components": 8, "model/geometry": "riemann"} | ALPHA,
    "tapered": {"model/name": "covariance", "model/components": 8, "model/taper": "hann"} | ALPHA,
}


def fitted(windows, **params):
    """Return a model that is fitted on all windows but some that are left to evaluate it."""
    train, validation = np.split(np.arange(len(windows)), [len(windows) * 3 // 4])
    data = FoldData(parse_config(params), WindowLoader(windows), train, validation, fold=0)
    trainer = ClosedFormTrainer(data.config, data, np.asarray(windows.subjects))
    trainer.run_epoch()
    return trainer.model


def rhythms(classes=False, each=40, mixing=OTHER):
    """Return windows in which the power of a source between 8 and 13 Hz rises with the target."""
    windows = ToyWindows(subjects=16, each=each, channels=CHANNELS, classes=classes)
    rng, n = np.random.default_rng(1), len(windows)
    wave = {}
    for name in ("source", "other"):
        spectrum = np.fft.rfft(rng.normal(size=(n, 64)))
        frequency = np.fft.rfftfreq(64, 1 / windows.sfreq)
        spectrum[:, (frequency < 8) | (frequency >= 13)] = 0
        wave[name] = np.fft.irfft(spectrum)
        wave[name] /= wave[name].std()
    level = windows.targets - windows.targets.mean()
    source = np.exp(0.5 * level)[:, None] * wave["source"]
    other = np.exp(0.5 * rng.normal(size=n))[:, None] * wave["other"]
    noise = 1.5 * rng.normal(size=(n, CHANNELS, 64))
    x = np.einsum("c,nt->nct", SOURCE, source) + np.einsum("c,nt->nct", mixing, other) + noise
    windows.x = x.astype(np.float32)
    return windows


def expected_power(mixing=OTHER):
    """Return the source's share of each channel's power in the band: the derivative of log power by its own."""
    in_band = 1.5**2 * len(Bank("theta-alpha").ranges(64, 50.0)) * 3 / 32
    return SOURCE**2 / (SOURCE**2 + 1.3 * mixing**2 + in_band)


@pytest.mark.parametrize("classes", [False, True], ids=["regression", "classes"])
@pytest.mark.parametrize("name", POWER)
def test_patterns_of_power_show_the_source_and_its_band(name, classes):
    # Powers of components do not say which of two sources they share: these have none in common.
    mixing = OTHER * (SOURCE == 0) if name == "power of components" else OTHER
    windows = rhythms(classes, mixing=mixing)
    model = fitted(windows, **POWER[name])
    found = scalp_patterns(model, torch.from_numpy(windows.x), 2 * classes)
    assert found is not None and found.power and found.values.shape == (1, 2, CHANNELS)
    theta, alpha = found.values[0]
    assert np.corrcoef(alpha, expected_power(mixing))[0, 1] > 0.95
    assert alpha.argmax() in (2, 3) and alpha.max() > 3 * np.abs(theta).max()


@pytest.mark.parametrize("params", [{}, {"model/components": 6}, {"model/components": 6, "model/scale": "window"}])
@pytest.mark.parametrize("classes", [False, True], ids=["regression", "classes"])
def test_patterns_of_time_courses_are_the_source_at_its_time(params, classes):
    windows, rng = ToyWindows(subjects=16, each=20, channels=CHANNELS, classes=classes), np.random.default_rng(2)
    level = windows.targets - windows.targets.mean()
    bump = np.exp(-(((np.arange(64) - 30) / 6) ** 2))
    other = np.cumsum(rng.normal(size=(len(windows), 64)), -1) / 3
    x = np.einsum("c,n,t->nct", SOURCE, level, bump) + np.einsum("c,nt->nct", OTHER, other)
    windows.x = (x + 0.5 * rng.normal(size=x.shape)).astype(np.float32)
    model = fitted(windows, **{"model/name": "linear", "model/predictors": "time-courses", "model/rate": 10.0} | params)
    found = scalp_patterns(model, torch.from_numpy(windows.x), 2 * classes)
    assert found is not None and not found.power and found.values.shape == (1, 12, CHANNELS)
    at = int((found.values[0] ** 2).sum(1).argmax())
    assert at in (5, 6), "the bump is at sample 30, in the sixth or seventh interval of five"
    assert np.corrcoef(found.values[0, at], SOURCE)[0, 1] > 0.95


def test_the_pattern_of_band_power_is_the_covariance_of_features_times_the_weights():
    windows = rhythms(each=5)
    model = fitted(windows, **POWER["band power"])
    x_NCT = torch.from_numpy(windows.x)
    features, weight = model.front(x_NCT).numpy(), model.weight_OF[0].numpy()
    covariance = np.cov(features.T, bias=True)
    expected = covariance @ weight / np.sqrt(weight @ covariance @ weight)
    found = scalp_patterns(model, x_NCT, 0)
    np.testing.assert_allclose(found.values.ravel(), DECIBELS * expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("geometry", ["log-euclid", "riemann"])
def test_the_pattern_of_covariances_is_that_of_tangent_vectors_taken_back_to_the_channels(geometry):
    windows = rhythms(each=5)
    model = fitted(windows, **{"model/name": "covariance", "model/geometry": geometry, "model/shrinkage": 0.0} | ALPHA)
    x_NCT = torch.from_numpy(windows.x).double()
    impulses_CT = 20 * torch.eye(64, dtype=torch.float64)[: 6 * CHANNELS : 6]
    x_NCT = impulses_CT + 0.02 * x_NCT  # all near one another
    features = model.front(x_NCT)
    s = features @ model.weight_OF[0]
    pattern_F = ((s - s.mean()) @ (features - features.mean(0))) / len(s) / s.std(correction=0)
    row, column = np.triu_indices(CHANNELS)

    def log_diagonal(features_F):
        upper = (features_F / half_vector(torch.ones(CHANNELS, CHANNELS))).double()
        half = torch.zeros(CHANNELS, CHANNELS, dtype=torch.float64).index_put(
            (torch.as_tensor(row), torch.as_tensor(column)), upper
        )
        c_CC = torch.linalg.matrix_exp(half + half.T - torch.diag(half.diagonal()))
        if model.whitening_GDD is not None:
            unwhite = torch.linalg.inv(model.whitening_GDD[1])
            c_CC = unwhite @ c_CC @ unwhite
        return c_CC.diagonal().log()

    mean_F, pattern_F = (each.unflatten(0, (2, -1))[1] for each in (features.mean(0), pattern_F))
    _, expected = torch.func.jvp(log_diagonal, (mean_F,), (pattern_F,))
    found = scalp_patterns(model, x_NCT, 0)
    np.testing.assert_allclose(found.values[0, 1], DECIBELS * expected.numpy(), atol=0.02 * found.values[0, 1].max())


@settings(max_examples=15, deadline=None)
@given(batch=st.integers(1, 40), sign=st.sampled_from([-1.0, 1.0]), gain=st.floats(0.5, 20.0))
def test_batches_and_the_gain_of_the_amplifier_change_nothing(batch, sign, gain):
    windows = rhythms(each=3)
    model = fitted(windows, **POWER["components"])
    x_NCT = torch.from_numpy(windows.x)
    expected = scalp_patterns(model, x_NCT, 0).values
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(closed_form_patterns, "BATCH_VALUES", batch * CHANNELS * 64)
        model.filters_SC *= sign
        again = scalp_patterns(model, x_NCT, 0).values
    np.testing.assert_allclose(again, expected, atol=1e-6 * np.abs(expected).max())
    model.filters_SC *= sign / gain
    louder = scalp_patterns(model, gain * x_NCT, 0).values
    np.testing.assert_allclose(louder, expected, atol=1e-5 * np.abs(expected).max())


def test_filters_that_find_one_source_have_its_mixing():
    windows = ToyWindows(subjects=12, each=20, channels=CHANNELS, classes=True)
    bump = np.exp(-(((np.arange(64) - 30) / 6) ** 2))
    noise = np.random.default_rng(3).normal(size=windows.x.shape)
    windows.x = (noise + np.einsum("c,n,t->nct", SOURCE, 0.1 + windows.targets, bump)).astype(np.float32)
    params = {"model/name": "covariance", "model/prototypes": 1, "model/bands": "even", "model/n_bands": 1}
    model = fitted(windows, **params | {"model/low": 1.0, "model/high": 8.0})
    found = scalp_patterns(model, torch.from_numpy(windows.x), 2).values[0, 0]
    power = SOURCE**2 * np.mean((0.1 + windows.targets) ** 2) * bump.var()
    assert np.corrcoef(found, power / (power + 7 / 32))[0, 1] > 0.95


def test_several_values_and_classes_have_a_pattern_each():
    values = ToyWindows(subjects=12, each=8, channels=4, outputs=["a", "b"])
    found = scalp_patterns(fitted(values, **{"model/name": "linear"}), torch.from_numpy(values.x), 0)
    assert found.values.shape == (2, 4, 4)  # gamma starts above 25 Hz
    classes = ToyWindows(subjects=12, each=8, channels=4, classes=True)
    classes.classes, classes.n_outputs = ["a", "b", "c"], 3
    classes.targets[::3] = 2
    found = scalp_patterns(fitted(classes, **{"model/name": "linear"}), torch.from_numpy(classes.x), 3)
    assert found.values.shape == (3, 4, 4)


def test_bins_have_the_pattern_of_their_mean():
    windows = rhythms()
    model = fitted(windows, **POWER["covariance"] | {"model/bins": 4})
    found = scalp_patterns(model, torch.from_numpy(windows.x), 0)
    assert np.corrcoef(found.values[0, 1], expected_power())[0, 1] > 0.95


def test_equal_predictions_have_no_pattern():
    windows = rhythms(each=3)
    model = fitted(windows, **POWER["covariance"])
    model.weight_OF.zero_()
    assert scalp_patterns(model, torch.from_numpy(windows.x), 0) is None


def test_embeddings_say_why_they_have_none():
    windows = rhythms(each=3)
    delayed = fitted(windows, **POWER["covariance"] | {"model/order": 2})
    assert "delayed copies" in unreadable(delayed)
    assert unreadable(fitted(windows, **POWER["covariance"])) == ""
