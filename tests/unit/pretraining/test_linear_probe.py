"""The linear probe: its penalty is chosen by people who are left out."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.model_selection import GroupKFold

from raypipe.pretraining.linear_probe import RIDGE_STRENGTHS, fit_probe

N_FEATURES = 30


def people(rng, n, each=20):
    """Features that mostly tell people apart, and a little about the target, which is the person's."""
    target = rng.normal(size=n)
    own = rng.normal(size=(n, N_FEATURES))
    own[:, 0] += target
    x = np.repeat(own, each, axis=0) + 0.3 * rng.normal(size=(n * each, N_FEATURES))
    return x.astype(np.float32), np.repeat(target, each), np.repeat(np.arange(n), each)


def error(x, y, weight, bias):
    return float(np.sqrt(np.mean((x @ weight + bias - y) ** 2)) / np.std(y))


def test_targets_of_new_people_are_predicted_better_than_with_a_penalty_chosen_by_windows():
    """Windows left out are easy: other windows of the same person give its target away."""
    by_people, by_windows = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        (x, y, subjects), (x_new, y_new, _) = people(rng, 24), people(rng, 40)
        weight, bias = fit_probe(x, y, subjects, 0)
        by_people.append(error(x_new, y_new, weight.numpy()[0], float(bias)))
        z = (x - x.mean(0)) / x.std(0)
        old = RidgeCV(alphas=RIDGE_STRENGTHS).fit(z, y)
        by_windows.append(error((x_new - x.mean(0)) / x.std(0), y_new, old.coef_, old.intercept_))
    assert np.mean(by_people) < 0.9 * np.mean(by_windows)
    assert np.mean(np.array(by_people) <= by_windows) > 0.7


def test_the_penalty_is_the_best_for_people_left_out():
    x, y, subjects = people(np.random.default_rng(3), 24)
    z = (x - x.mean(0, dtype=np.float64)) / x.std(0, dtype=np.float64)
    losses = [
        np.mean(
            [
                np.mean((Ridge(alpha).fit(z[fit], y[fit]).predict(z[test]) - y[test]) ** 2)
                for fit, test in GroupKFold(5).split(z, groups=subjects)
            ]
        )
        for alpha in RIDGE_STRENGTHS
    ]
    ridge = Ridge(RIDGE_STRENGTHS[int(np.argmin(losses))]).fit(z, y)
    weight, bias = fit_probe(x, y, subjects, 0)
    np.testing.assert_allclose(x @ weight.numpy()[0] + float(bias), ridge.predict(z), atol=1e-4)


@pytest.mark.parametrize("n_classes", [0, 2])
def test_one_person_is_enough(n_classes):
    x, y, subjects = people(np.random.default_rng(0), 1)
    y = (np.arange(len(y)) % 2) if n_classes else y + x[:, 1]
    weight, _ = fit_probe(x, y, subjects, n_classes)
    assert weight.shape == (n_classes or 1, N_FEATURES) and weight.isfinite().all()
