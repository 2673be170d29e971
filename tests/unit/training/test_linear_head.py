"""Linear maps against scikit-learn, and the choice of their penalty."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge

from raypipe.training.linear_head import PENALTIES, fit_head


def problem(n=120, features=8, classes=0, noise=1.0, seed=0):
    rng = np.random.default_rng(seed)
    x_NF = rng.normal(size=(n, features)) * rng.uniform(0.1, 10, features) + rng.normal(size=features)
    score_NK = x_NF @ (rng.normal(size=(features, max(classes, 1))) / x_NF.std(0)[:, None])
    score_NK += noise * rng.normal(size=score_NK.shape)
    y_N = score_NK[:, 0] if not classes else (score_NK[:, 0] > 0) + 0 if classes == 2 else score_NK.argmax(1)
    return x_NF, y_N, rng.uniform(0.2, 2.0, n)


def fit(x_NF, y_N, weight_N, classes, parts=4):
    part_N = torch.arange(len(x_NF)) % parts
    return fit_head(torch.from_numpy(x_NF.copy()), torch.as_tensor(y_N), torch.from_numpy(weight_N), part_N, classes)


def standardised(x_NF, weight_N):
    mean_F = np.average(x_NF, axis=0, weights=weight_N)
    return (x_NF - mean_F) / np.sqrt(np.average((x_NF - mean_F) ** 2, axis=0, weights=weight_N))


@pytest.mark.parametrize(("n", "features"), [(120, 8), (40, 70)])
@pytest.mark.parametrize("classes", [0, 2, 3])
def test_it_is_the_fit_of_scikit_learn_with_the_chosen_penalty(classes, n, features):
    x_NF, y_N, weight_N = problem(n, features, classes)
    head = fit(x_NF, y_N, weight_N, classes)
    weight_N = weight_N * n / weight_N.sum()
    z_NF = standardised(x_NF, weight_N)
    penalty = head.penalty * float((weight_N[:, None] * z_NF**2).sum())
    raw_NO = x_NF @ head.weight.numpy().T + head.bias.numpy()
    if classes:
        model = LogisticRegression(C=1 / penalty, tol=1e-12, max_iter=10_000).fit(z_NF, y_N, weight_N)
        expected = model.predict_proba(z_NF)
        found = torch.softmax(torch.from_numpy(raw_NO), 1).numpy()
        assert head.loss == pytest.approx(-np.average(np.log(expected[np.arange(n), y_N]), weights=weight_N), rel=1e-6)
    else:
        expected, found = Ridge(penalty, solver="cholesky").fit(z_NF, y_N, weight_N).predict(z_NF), raw_NO[:, 0]
        assert head.loss == pytest.approx(np.average((y_N - expected) ** 2, weights=weight_N), rel=1e-6)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_penalty_with_the_least_loss_on_other_parts_is_chosen():
    x_NF, y_N, weight_N = problem(60, 30, noise=6.0)
    part_N = np.arange(60) % 4
    losses = []
    weight_N = weight_N / weight_N.mean()
    z_NF = standardised(x_NF, weight_N)
    for penalty in PENALTIES:
        total = 0.0
        for part in range(4):
            model = Ridge(penalty * float((weight_N[:, None] * z_NF**2).sum()))
            inside = part_N == part
            model.fit(z_NF[~inside], y_N[~inside], weight_N[~inside])
            total += (weight_N[inside] * (model.predict(z_NF[inside]) - y_N[inside]) ** 2).sum()
        losses.append(total)
    assert fit(x_NF, y_N, weight_N, 0).penalty == PENALTIES[int(np.argmin(losses))]
    assert 0 < int(np.argmin(losses)) < len(PENALTIES) - 1


def test_of_a_target_that_features_do_not_show_the_mean_is_predicted():
    x_NF, _, _ = problem(200, 5)
    y_N = np.random.default_rng(5).normal(size=200)
    head = fit(x_NF, y_N, np.ones(200), 0)
    assert head.penalty >= 1.0
    assert np.std(x_NF @ head.weight.numpy().T) < 0.1


@settings(max_examples=15, deadline=None)
@given(shift=st.floats(-5, 5), scale=st.floats(0.01, 100), classes=st.sampled_from([0, 2]))
def test_units_of_features_do_not_matter(shift, scale, classes):
    x_NF, y_N, weight_N = problem(40, 3, classes)
    one, other = fit(x_NF, y_N, weight_N, classes), fit(scale * x_NF + shift, y_N, weight_N, classes)
    predictions = [x @ h.weight.numpy().T + h.bias.numpy() for x, h in ((x_NF, one), (scale * x_NF + shift, other))]
    np.testing.assert_allclose(*predictions, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 4])
def test_classes_without_windows_are_never_predicted(classes):
    x_NF, _, weight_N = problem()
    only = fit(x_NF, np.ones(120, np.int64), weight_N, classes)
    raw_NK = torch.from_numpy(x_NF) @ only.weight.T + only.bias
    assert torch.softmax(raw_NK, 1)[:, 1].min() > 1 - 1e-9
    if classes == 4:
        y_N = np.where(x_NF[:, 0] > np.median(x_NF[:, 0]), 3, 1)
        two = fit(x_NF, y_N, weight_N, 4)
        p_NK = torch.softmax(torch.from_numpy(x_NF) @ two.weight.T + two.bias, 1)
        assert p_NK[:, [0, 2]].max() < 1e-9 and (p_NK.argmax(1).numpy() == y_N).mean() > 0.9


def test_features_that_never_change_have_no_weight():
    x_NF, y_N, weight_N = problem()
    x_NF[:, 2] = 1e6
    head = fit(x_NF, y_N, weight_N, 0)
    assert head.weight[0, 2] == 0.0 and torch.isfinite(head.weight).all() and torch.isfinite(head.bias).all()
