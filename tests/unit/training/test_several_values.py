"""Training on targets of several values: equal columns give the fit of one, and columns may be in any order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raypipe.core.combinations import check_kind
from raypipe.core.config import LossConfig, MixupConfig, OwnLossConfig
from raypipe.core.errors import UserError
from raypipe.core.parameters import parse_config
from raypipe.models.from_config import build_model
from raypipe.storage.out_of_fold import EpochPredictions
from raypipe.training.linear_head import fit_head
from raypipe.training.loader import FoldData, WindowLoader
from raypipe.training.losses import make_loss
from raypipe.training.mixup import mix
from raypipe.training.own_functions import make_own_loss
from raypipe.trial.evaluator import constant_baseline
from raypipe.trial.local import run_trial
from tests.support.toys import ToyWindows, make_run, tiny

RNG = np.random.default_rng(0)
CLOSED = [
    {"model/name": "linear", "model/predictors": "time-courses"},
    {"model/name": "covariance", "model/standardise": "half"},
]


def fit(y, n=80):
    x_NF = torch.from_numpy(np.random.default_rng(1).normal(size=(n, 6)))
    weight_N = torch.ones(n, dtype=torch.float64)
    return fit_head(x_NF, torch.as_tensor(y), weight_N, torch.arange(n) % 4, 0)


def targets(k, n=80):
    x_NF = np.random.default_rng(1).normal(size=(n, 6))
    return x_NF @ RNG.normal(size=(6, k)) + 3 * RNG.normal(size=(n, k))


def test_equal_values_have_the_fit_and_the_loss_of_one():
    y_NK = targets(1)
    one, three = fit(y_NK[:, 0]), fit(np.repeat(y_NK, 3, axis=1))
    assert three.penalty == one.penalty and three.loss == pytest.approx(one.loss)
    for k in range(3):
        np.testing.assert_allclose(three.weight[k], one.weight[0], atol=1e-6)
    np.testing.assert_allclose(three.bias, one.bias[[0, 0, 0]], atol=1e-6)


def test_values_in_another_order_have_their_fits_in_this_order():
    y_NK = targets(3)
    found, moved = fit(y_NK), fit(y_NK[:, [2, 0, 1]])
    assert moved.penalty == found.penalty
    np.testing.assert_allclose(moved.weight, found.weight[[2, 0, 1]], atol=1e-6)


@pytest.mark.parametrize("loss", ["plain", "focal", "huber"])
def test_a_loss_is_the_mean_over_the_values(loss):
    function = make_loss(LossConfig(name=loss), kind="regression")
    pred, y = torch.randn(9, 3), torch.randn(9, 3)
    each = [function(pred[:, k : k + 1], y[:, k]) for k in range(3)]
    torch.testing.assert_close(function(pred, y), torch.stack(each).mean())
    with pytest.raises(ValueError, match="regression needs"):
        function(pred[:, :1], y)


def test_a_loss_of_the_users_is_called_for_each_value(monkeypatch):
    monkeypatch.setattr("raypipe.training.own_functions.load_object", lambda *_: lambda out, y: (out - y).abs().mean())
    function = make_own_loss(OwnLossConfig(name="mine.py:loss", code="x"), kind="regression")
    pred, y = torch.randn(9, 2), torch.randn(9, 2)
    torch.testing.assert_close(function(pred, y), (pred - y).abs().mean())


@pytest.mark.parametrize("kind", ["mixup", "cmixup", "cutmix", "cutmix-channels"])
def test_equal_values_are_mixed_as_one(kind):
    config = MixupConfig(name=kind, prob=1.0)
    x_BCT, y_B = torch.randn(8, 3, 20), torch.randn(8)
    one_x, one_y = mix(config, x_BCT, y_B, rng=np.random.default_rng(3), kind="regression")
    two_x, two_y = mix(config, x_BCT, y_B[:, None].expand(-1, 2), rng=np.random.default_rng(3), kind="regression")
    torch.testing.assert_close(two_x, one_x)
    torch.testing.assert_close(two_y, one_y[:, None].expand(-1, 2))


@pytest.mark.parametrize("scale", ["standard", "robust"])
def test_each_value_is_standardised_by_its_own_training_targets(scale):
    windows = ToyWindows(outputs=["a", "b"])
    windows.targets = windows.targets * np.float32([1, 50]) + np.float32([0, 7])
    train, validation = np.arange(48), np.arange(48, 64)
    data = FoldData(tiny(target_scale=scale, shrink=0.25), WindowLoader(windows), train, validation, fold=0)
    found = data.targets(train, None)
    for k in range(2):
        single = ToyWindows()
        single.targets = windows.targets[:, k]
        one = FoldData(tiny(target_scale=scale, shrink=0.25), WindowLoader(single), train, validation, fold=0)
        torch.testing.assert_close(found[:, k], one.targets(train, None))
        raw = torch.randn(5, 2)
        np.testing.assert_allclose(data.decode(raw)[:, k], one.decode(raw[:, k : k + 1])[:, 0], rtol=1e-6)


@pytest.mark.parametrize("parameters", CLOSED)
def test_a_trial_on_equal_values_predicts_what_one_on_one_value_does(tmp_path, parameters):
    one, two = ToyWindows(), ToyWindows(outputs=["a", "b"])
    two.targets[:, 1] = two.targets[:, 0]
    found = []
    for name, windows in (("one", one), ("two", two)):
        run = make_run(tmp_path / name, windows)
        bins = {"model/bins": 3} if name == "two" and "linear" in parameters.values() else {}  # which have no effect
        run.add_trial(0, parse_config(parameters | bins))
        found.append((run_trial(run, windows, 0), run.oof(0).predictions, constant_baseline(run, windows)))
    (first, pred_N1, base), (second, pred_N2, bases) = found
    assert second.score == pytest.approx(first.score, rel=1e-5) and bases == pytest.approx(base)
    np.testing.assert_allclose(pred_N2, np.repeat(pred_N1, 2, axis=1), atol=1e-5)


@pytest.mark.parametrize("model", ["conformer", "eegnet", "shallow", "tcn"])
def test_a_network_learns_each_value(tmp_path, model):
    windows = ToyWindows(outputs=["a", "b"])
    run = make_run(tmp_path / "run", windows)
    run.add_trial(0, tiny(model__name=model, epochs=1, early_stop="trial"))
    result = run_trial(run, windows, 0)
    assert result.state == "complete", result.reason
    assert run.oof(0).predictions.shape == (len(run.folds.search_index(windows.subjects)), 2)
    assert list(run.weights(0, 0)["target.centre"].shape) == [2]
    stored = run.epoch_predictions(0, run.history(0)[0])
    np.testing.assert_array_equal(stored.predictions, run.oof(0).predictions)


def test_epoch_predictions_of_values_and_probabilities_are_read_back():
    values = RNG.normal(size=(5, 3)).astype(np.float32)
    again = EpochPredictions.from_npz(EpochPredictions(values, None, True).to_npz())
    np.testing.assert_array_equal(again.predictions, values)
    p = RNG.dirichlet(np.ones(3), 5).astype(np.float32)
    np.testing.assert_allclose(EpochPredictions.from_npz(EpochPredictions(p).to_npz()).predictions, p, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss__name": "kl", "model__bins": 8}, "'kl' is for one value, this target has 2"),
        ({"loss__name": "nll", "model__variance": True}, "'nll' is for one value"),
        ({"model__bins": 8}, "model/bins: it is for one value, this target has 2"),
    ],
)
def test_what_predicts_the_distribution_of_one_value_is_refused_in_one_line(changes, message):
    config = tiny(**changes)
    check_kind(config, "regression")
    with pytest.raises(UserError, match=message) as caught:
        check_kind(config, "regression", 2)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="a regression of one value"):
        build_model(tiny(model__bins=8).model, n_channels=3, n_times=64, n_outputs=2, sfreq=50.0)
