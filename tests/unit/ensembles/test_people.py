from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from raypipe.ensembles.oof import MemberPredictions
from raypipe.ensembles.people import NOMINAL, People, fit_people


def values(rng: np.random.Generator, n: int, repeats: int = 1) -> tuple[MemberPredictions, np.ndarray]:
    """People whose one value is predicted with an error of the person, and another of each of five windows."""
    subjects = np.tile(np.repeat([f"s{i:03d}" for i in range(n)], 5), repeats)
    y = np.tile(np.repeat(rng.normal(size=n), 5), repeats)
    error = np.tile(np.repeat(rng.normal(size=n), 5), repeats) + rng.normal(size=len(y)) / 5
    folds = np.repeat(np.arange(repeats), n * 5)
    predicted = (y + error)[:, None]
    index = np.tile(np.arange(n * 5), repeats)
    return MemberPredictions(
        ["a"], predicted[None], y, subjects, folds, index, "nrmse", "regression", level="person"
    ), predicted


def test_an_interval_contains_the_promised_share_of_new_people():
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(200):
        fitted = fit_people(*values(rng, 30))
        new, predicted = values(rng, 20)
        means = predicted[:, 0].reshape(20, 5).mean(axis=1)
        inside += (np.abs(means - new.targets[::5]) <= fitted.half_widths[0]).tolist()
    assert fitted.n == 30 and fitted.nominal == NOMINAL == 0.9
    assert np.mean(inside) == pytest.approx(0.9, abs=0.03)  # 28 of 31 ranks: 0.903


@given(n=st.integers(2, 40), repeats=st.integers(1, 3), seed=st.integers(0, 99))
def test_the_half_width_is_an_error_that_enough_people_are_within(n, repeats, seed):
    like, predicted = values(np.random.default_rng(seed), n, repeats)
    fitted = fit_people(like, predicted)
    assert fitted.n == n and len(fitted.half_widths) == (n >= 9)
    for half in fitted.half_widths:
        error = np.abs((predicted[:, 0] - like.targets).reshape(repeats * n, 5).mean(axis=1))
        assert np.mean(error <= half + 1e-12) >= NOMINAL


@settings(max_examples=25)
@given(n=st.integers(2, 30), repeats=st.integers(1, 2), order=st.permutations(range(3)), seed=st.integers(0, 99))
def test_each_of_several_values_has_the_half_width_it_has_alone(n, repeats, order, seed):
    like, predicted = values(np.random.default_rng(seed), n, repeats)
    factors = np.array([1.0, 10.0, 1.0])  # the first and the last are equal
    several = replace(like, targets=like.targets[:, None] * factors)
    alone, found = fit_people(like, predicted), fit_people(several, predicted * factors)
    assert found.n == alone.n == n and len(found.half_widths) == 3 * len(alone.half_widths)
    np.testing.assert_allclose(found.half_widths, np.outer(alone.half_widths, factors).ravel(), rtol=1e-12)
    assert found.half_widths[::2] == 2 * alone.half_widths
    permuted = fit_people(replace(several, targets=several.targets[:, order]), (predicted * factors)[:, order])
    assert permuted.half_widths == tuple(found.half_widths[k] for k in order if found.half_widths)


def classes(scale: float, n: int = 400, k: int = 2) -> tuple[MemberPredictions, np.ndarray]:
    """People of whom each window has the person's probabilities, too extreme by a factor of their logarithm."""
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.ones(k), size=n)
    y = np.repeat([rng.choice(k, p=row) for row in p], 4)
    shown = p**scale / (p**scale).sum(axis=1, keepdims=True)
    subjects = np.repeat([f"s{i:03d}" for i in range(n)], 4)
    zeros = np.zeros(len(y), np.int64)
    windows = np.repeat(shown, 4, axis=0)
    return MemberPredictions(
        ["a"], windows[None], y, subjects, zeros, np.arange(len(y)), "auc", "classification", level="person"
    ), windows


def log_loss(p: np.ndarray, y: np.ndarray) -> float:
    return float(-np.log(np.clip(p[np.arange(len(y)), y], 1e-12, None)).mean())


@pytest.mark.parametrize("k", [2, 3])
def test_a_mean_of_a_persons_windows_is_made_a_probability_of_the_person(k):
    """Windows are calibrated, each by its own, but their mean is too near to one half."""
    rng = np.random.default_rng(2)
    n, each = 300, 12
    y = rng.integers(0, k, n)
    evidence = 0.7 * np.eye(k)[y][:, None] + rng.normal(size=(n, each, k)) * 0.8
    p = np.exp(evidence * 1.1)
    p = (p / p.sum(axis=2, keepdims=True)).reshape(n * each, k)
    subjects = np.repeat([f"s{i:03d}" for i in range(n)], each)
    zeros = np.zeros(n * each, np.int64)
    like = MemberPredictions(
        ["a"], p[None], np.repeat(y, each), subjects, zeros, np.arange(n * each), "auc", "classification",
        level="person",
    )  # fmt: skip
    fitted = fit_people(like, p)
    means = p.reshape(n, each, k).mean(axis=1)
    assert fitted.scale > 1.5
    assert log_loss(fitted.probabilities(means), y) < 0.9 * log_loss(means, y)
    assert (fitted.probabilities(means).argmax(axis=1) == means.argmax(axis=1)).all()


def test_probabilities_that_are_right_stay():
    like, p = classes(1.0)
    assert fit_people(like, p).scale == pytest.approx(1.0, abs=0.15)


def test_targets_of_windows_have_no_people_and_a_soup_has_no_residuals():
    like, predicted = values(np.random.default_rng(0), 20)
    assert fit_people(replace(like, level="window"), predicted) is None
    assert fit_people(like, None) == People(n=0)
    of_classes, _ = classes(1.0, n=10)
    assert fit_people(of_classes, None) == People(n=0, scale=1.0)
    with pytest.raises(ValidationError, match="none has both"):
        People(n=3, scale=1.0, half_widths=(2.0,))


@given(st.lists(st.floats(0.001, 1.0), min_size=2, max_size=5), st.floats(0.05, 5.0))
def test_probabilities_sum_to_one_and_keep_their_order(parts, scale):
    p = np.array([parts]) / sum(parts)
    out = People(n=9, scale=scale).probabilities(p)
    assert out.sum() == pytest.approx(1.0)
    assert (np.diff(out[0][np.argsort(p[0], kind="stable")]) >= -1e-12).all()
