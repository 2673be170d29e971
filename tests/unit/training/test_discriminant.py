"""The discriminant of bins against scikit-learn, and the choice of its penalty and temperature."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from raypipe.training.discriminant import INVERSE_TEMPERATURES, PENALTIES, fit_discriminant


def problem(n=200, features=6, bins=4, noise=1.0):
    rng = np.random.default_rng(0)
    y_N = rng.uniform(-2, 2, n)
    bin_N = np.searchsorted(np.quantile(y_N, np.arange(1, bins) / bins), y_N)
    values_K = np.array([y_N[bin_N == k].mean() for k in range(bins)])
    x_NF = rng.normal(size=(bins, features))[bin_N] + noise * rng.normal(size=(n, features)) @ rng.normal(
        size=(features, features)
    )
    return x_NF, bin_N, y_N, values_K


def fit(x_NF, bin_N, y_N, values_K, weight_N=None, parts=4, standardise="each"):
    weight_N = np.ones(len(x_NF)) if weight_N is None else weight_N
    part_N = torch.arange(len(x_NF)) % parts
    tensors = [torch.from_numpy(np.asarray(each).copy()) for each in (x_NF, bin_N, y_N, values_K, weight_N)]
    return fit_discriminant(*tensors, part_N, standardise=standardise)


def probabilities(head, x_NF):
    return torch.softmax(torch.from_numpy(x_NF) @ head.weight.T + head.bias, 1).numpy()


@pytest.mark.parametrize(("n", "features"), [(200, 6), (60, 90)])
def test_logits_are_those_of_scikit_learn_with_the_chosen_penalty(monkeypatch, n, features):
    monkeypatch.setattr("raypipe.training.discriminant.INVERSE_TEMPERATURES", (1.0,))
    x_NF, bin_N, y_N, values_K = problem(n, features)
    head = fit(x_NF, bin_N, y_N, values_K)
    z_NF = (x_NF - x_NF.mean(0)) / x_NF.std(0)
    # The penalty is relative to the mean variance in the directions that windows span.
    rank = min(features, n - 1)
    within_FF = sum(np.cov(z_NF[bin_N == k].T, bias=True) * (bin_N == k).mean() for k in range(4))
    share = head.penalty * np.trace(within_FF) / rank
    means_KF = np.array([z_NF[bin_N == k].mean(0) for k in range(4)])
    weight_FK = np.linalg.solve(within_FF + share * np.eye(features), means_KF.T)
    prior_K = np.bincount(bin_N) / n
    logits_NK = z_NF @ weight_FK - 0.5 * np.sum(means_KF.T * weight_FK, 0) + np.log(prior_K)
    expected = torch.softmax(torch.from_numpy(logits_NK), 1).numpy()
    np.testing.assert_allclose(probabilities(head, x_NF), expected, atol=1e-6)
    if features < n:  # scikit-learn shrinks to the mean variance: the same directions, on another scale
        shrinkage = head.penalty / (1 + head.penalty)
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(z_NF, bin_N)
        scale = 1 + head.penalty
        own_NK = scale * (logits_NK - np.log(prior_K)) + np.log(prior_K)
        np.testing.assert_allclose(own_NK, model.decision_function(z_NF), atol=2e-2)


def test_a_weight_is_a_number_of_windows():
    x_NF, bin_N, y_N, values_K = problem(80)
    count_N = np.arange(80) % 3 + 1
    part_N = torch.arange(80) % 4
    one = fit(x_NF, bin_N, y_N, values_K, count_N.astype(float))
    index_N = np.repeat(np.arange(80), count_N)
    tensors = [torch.from_numpy(each[index_N].copy()) for each in (x_NF, bin_N, y_N)]
    ones_N = torch.ones(len(index_N), dtype=torch.float64)
    other = fit_discriminant(
        *tensors, torch.from_numpy(values_K), ones_N, part_N[torch.from_numpy(index_N)], standardise="each"
    )
    torch.testing.assert_close(one.weight, other.weight)
    torch.testing.assert_close(one.bias, other.bias)


def test_penalty_and_temperature_have_the_least_squared_error_on_other_parts():
    x_NF, bin_N, y_N, values_K = problem(noise=3.0)
    head = fit(x_NF, bin_N, y_N, values_K)
    errors = {}
    for penalty in PENALTIES:
        for inverse in INVERSE_TEMPERATURES:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("raypipe.training.discriminant.PENALTIES", (penalty,))
                patch.setattr("raypipe.training.discriminant.INVERSE_TEMPERATURES", (inverse,))
                errors[penalty, inverse] = fit(x_NF, bin_N, y_N, values_K).loss
    chosen = min(errors, key=errors.get)
    assert head.penalty == chosen[0] and head.loss == errors[chosen]
    assert head.loss < np.var(y_N)


def test_a_bin_without_windows_has_no_probability():
    x_NF, bin_N, y_N, values_K = problem()
    kept = bin_N != 2
    head = fit(x_NF[kept], bin_N[kept], y_N[kept], values_K)
    found_NK = probabilities(head, x_NF)
    assert np.isfinite(found_NK).all() and found_NK[:, 2].max() == 0.0


def test_one_part_and_features_that_never_change_are_no_error():
    x_NF, bin_N, y_N, values_K = problem(40)
    x_NF[:, 1] = 7.0
    head = fit(x_NF, bin_N, y_N, values_K, parts=1, standardise="half")
    assert torch.isfinite(head.weight).all() and (head.weight[:, 1] == 0).all()
