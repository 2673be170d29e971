from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from raypipe.core.metrics import score
from raypipe.ensembles.inference import weighted_mean
from raypipe.ensembles.methods import METHODS
from raypipe.ensembles.weights import confidence_weights, fit_temperature, squared_error
from tests.support.member_predictions import best_error, classes, independent, mse, values

numbers = st.floats(-1e3, 1e3, width=32)


@given(
    arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9), st.just(1)), elements=numbers),
    st.sampled_from(["best", "confidence", "equal", "inverse-mse"]),
)
def test_weights_are_not_negative_and_sum_to_one(predictions_MN1, method):
    y = np.linspace(-1, 1, predictions_MN1.shape[1])
    weights = np.array(METHODS[method].fit(values(predictions_MN1[:, :, 0], y))["weights"])
    assert weights.shape == (len(predictions_MN1),)
    assert np.all(weights >= 0) and np.isclose(weights.sum(), 1.0)


@given(
    arrays(np.float32, (7, 2), elements=numbers),
    st.integers(1, 5),
    st.sampled_from(["best", "confidence", "equal", "inverse-mse"]),
)
def test_an_ensemble_of_equals_is_its_member(member_NO, count, method):
    members = classes(n=20, sharpness=[1.0] * count).select_windows(np.arange(7))
    members = replace(members, predictions=np.stack([member_NO.astype(float)] * count), targets=np.zeros(7, int))
    combined = members.combine(METHODS[method].fit(members))
    np.testing.assert_allclose(combined, member_NO, rtol=1e-6, atol=1e-9)


@settings(max_examples=25)
@given(st.lists(st.floats(0.1, 10.0), min_size=2, max_size=4), st.integers(0, 2**31))
def test_confidence_reaches_the_optimum_for_independent_errors(spreads, seed):
    rng = np.random.default_rng(seed)
    n = 4096
    # Exactly uncorrelated errors of exactly these sizes, so that the optimum is exact: 1 / sum(1 / s^2).
    errors_NT = np.linalg.qr(rng.normal(size=(n, len(spreads))))[0] * np.sqrt(n) * np.array(spreads)
    y = rng.normal(size=n)
    oof = [(y + e)[:, None] for e in errors_NT.T]
    weights = confidence_weights(oof, y, "regression")
    optimum = 1.0 / np.sum(np.array(spreads) ** -2.0)
    assert squared_error(weighted_mean(oof, weights), y, "regression") == pytest.approx(optimum, rel=1e-6)
    for _ in range(5):
        other = rng.dirichlet(np.ones(len(spreads)))
        assert squared_error(weighted_mean(oof, other), y, "regression") >= optimum * (1 - 1e-9)


def test_weights_of_hand_made_predictions():
    y = np.array([0.0, 1.0, 2.0, 3.0])
    near, far = (y + 1)[:, None], (y - 2)[:, None]  # mean squared errors 1 and 4
    # Two shares of the near one and one of the far one cancel their errors: the power 1/2 finds that.
    np.testing.assert_allclose(confidence_weights([near, far], y, "regression"), [2 / 3, 1 / 3])
    np.testing.assert_array_equal(confidence_weights([y[:, None], far], y, "regression"), [1, 0])
    np.testing.assert_array_equal(METHODS["best"].fit(values([far[:, 0], near[:, 0]], y))["weights"], [0, 1])
    sure, unsure = np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]])
    assert squared_error(unsure, np.array([0]), "classification") == 0.5
    np.testing.assert_array_equal(confidence_weights([unsure, sure], np.array([0]), "classification"), [0, 1])


def test_confidence_keeps_a_weak_trial_from_spoiling_the_mean():
    rng = np.random.default_rng(0)
    y = rng.normal(size=500)
    shared = 0.2 * rng.normal(size=500)
    strong = [(y + shared + 0.05 * rng.normal(size=500))[:, None] for _ in range(2)]
    weak = (y + shared + 0.6 * rng.normal(size=500))[:, None]
    weights = confidence_weights([*strong, weak], y, "regression")
    best = min(squared_error(one, y, "regression") for one in strong)
    assert squared_error(weighted_mean([*strong, weak], weights), y, "regression") < best
    assert squared_error(np.mean([*strong, weak], axis=0), y, "regression") > best


@pytest.mark.parametrize("name", ["inverse-mse", "confidence", "greedy", "softmax"])
def test_weights_per_member_reach_the_optimum_for_independent_errors(name):
    members, optimum = independent((0.5, 0.7, 1.0, 1.4))
    # Greedy counts and the softmax have no weight for every optimum: a few per cent, where the others have 2.
    assert mse(members, name) < optimum * (1.02 if name in ("inverse-mse", "confidence") else 1.06)
    assert mse(members, "equal") > 1.1 * optimum


def test_weights_per_window_reach_the_optimum_of_heteroscedastic_errors():
    rng = np.random.default_rng(1)
    n = 8_000
    y = rng.normal(size=n)
    variances_MN = np.exp(rng.normal(size=(4, n)))
    factor_M = np.array([0.5, 1.0, 2.0, 4.0])  # predicted variances are off by these
    true_MN = factor_M[:, None] * variances_MN
    members = values(y + np.sqrt(true_MN) * rng.normal(size=(4, n)), y, variances_MN)
    optimum = best_error(members, true_MN)
    assert mse(members, "member-sample") < 1.02 * optimum
    assert mse(members, "sample") > 1.05 * optimum  # one calibration for all cannot correct each member's factor
    assert mse(members, "sample") < mse(members, "equal")
    assert mse(members, "inverse-mse") > 1.3 * optimum
    even = values(y + np.sqrt(variances_MN) * rng.normal(size=(4, n)), y, variances_MN)
    assert mse(even, "sample") < 1.02 * best_error(even, variances_MN)


def test_temperatures_undo_exaggeration():
    members = classes(sharpness=(1.0, 5.0))
    calibrated, exaggerated = (
        fit_temperature(p_NK, members.targets, np.ones(len(p_NK))) for p_NK in members.predictions
    )
    assert exaggerated / calibrated == pytest.approx(5.0, rel=0.2)
    rule = METHODS["member-sample"].fit(members)
    combined = members.combine(rule)
    np.testing.assert_allclose(combined.sum(1), 1.0, rtol=1e-6)
    assert score("auc", members.targets, combined) > members.scores().max()


def test_a_member_without_variances_has_one_weight_for_all_windows():
    rng = np.random.default_rng(3)
    y = rng.normal(size=6_000)
    variances_MN = np.exp(rng.normal(size=(2, 6_000)))
    wrong_MN = np.concatenate([np.sqrt(variances_MN), np.full((1, 6_000), 1.3)]) * rng.normal(size=(3, 6_000))
    members = values(y + wrong_MN, y, np.concatenate([variances_MN, np.zeros((1, 6_000))]))
    for name in ("sample", "member-sample"):
        rule = METHODS[name].fit(members)
        assert rule["scale"][2] == 0.0 and rule["floor"][2] == pytest.approx(1.3**2, rel=0.05)
        assert rule["scale"][:2] == pytest.approx([1.0, 1.0], abs=0.1)
        assert mse(members, name) < 1.02 * best_error(
            members, np.concatenate([variances_MN, np.full((1, 6_000), 1.69)])
        )


def test_snapshots_are_those_of_the_best_trial():
    members = replace(independent((1.0, 2.0, 3.0, 1.5))[0], trials=[7, 4, 4, 7])
    assert METHODS["snapshots"].fit(members)["weights"] == [0.5, 0.0, 0.0, 0.5]
    assert METHODS["snapshots"].unusable_reason(members) is None
    for trials in (None, [1, 2, 3, 4]):
        assert "optim/schedule=cyclic" in METHODS["snapshots"].unusable_reason(replace(members, trials=trials))
