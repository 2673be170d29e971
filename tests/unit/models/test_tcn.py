from __future__ import annotations

import numpy as np
import pytest
import torch

from raypipe.core.errors import UserError
from raypipe.core.model_config import MODELS
from raypipe.core.network_config import ConformerConfig
from raypipe.core.parameters import parse_config
from raypipe.models.conformer import Conformer
from raypipe.models.from_config import build_model
from raypipe.models.readout import BIN_RANGE, bin_centres, distribution_mean
from raypipe.models.tcn import Tcn

SHAPE = {"n_channels": 5, "n_times": 60, "sfreq": 100.0}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(name, **options):
    own = {"heads": 2, "hidden": 16, "kernels": "short"} if name == "conformer" else {}
    return build_model(MODELS[name](filters=8, depth=2, **own, **options), n_outputs=1, **SHAPE)


def test_the_mean_of_a_peaked_distribution_is_its_peak():
    logits_BK = torch.full((3, 71), -50.0)
    logits_BK[torch.arange(3), torch.tensor([0, 35, 70])] = 50.0
    torch.testing.assert_close(distribution_mean(logits_BK)[:, 0], torch.tensor([-BIN_RANGE, 0.0, BIN_RANGE]))
    torch.testing.assert_close(distribution_mean(torch.zeros(2, 9)), torch.zeros(2, 1))
    value_B1 = torch.tensor([[2.0], [9.0]])
    assert distribution_mean(value_B1) is value_B1 and bin_centres(logits_BK).shape == (71,)


@pytest.mark.parametrize("name", ["tcn", "conformer"])
@pytest.mark.parametrize("bins", [0, 16])
def test_shapes_in_training_and_evaluation(name, bins):
    model = build(name, bins=bins)
    x_BCT = torch.randn(4, 5, 60)
    assert model.train()(x_BCT).shape == (4, bins or 1)
    predicted_B1 = model.eval()(x_BCT)  # with bins, a second column: the variance
    assert predicted_B1.shape == (4, 2 if bins else 1) and predicted_B1[:, 0].abs().max() < 4
    one_by_one = torch.cat([model(x_BCT[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(one_by_one, predicted_B1, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(1e6 * x_BCT), predicted_B1, atol=1e-4, rtol=1e-4)
    assert torch.isfinite(model(torch.zeros(1, 5, 60))).all()


@pytest.mark.parametrize("bins", [0, 16])
def test_prepared_windows_with_masks_equal_the_whole_pass(bins):
    model = Tcn(5, 60, 1, filters=8, depth=2, bins=bins, dropout=0.5).train()
    x_BCT = torch.randn(4, 5, 60)
    plan = model.dropout_plan(4)
    masks_M = torch.cat([(torch.rand(n) >= p).float() / (1 - p) for n, p in plan])
    prepared = model.prepare(x_BCT)
    whole = model(prepared, prepared=True, dropout_M=masks_M)
    torch.testing.assert_close(model(x_BCT, dropout_M=masks_M), whole)
    assert masks_M.numel() == sum(n for n, _ in plan) == 2 * 4 * 8 * 30
    with pytest.raises(ValueError, match="expected windows"):
        model(torch.randn(4, 5, 61))


def test_the_prediction_follows_the_time_of_a_burst():
    """With all weight on one channel's amplitude, the prediction follows the time of a burst."""
    model = Tcn(1, 200, 1, filters=1, depth=0, kernel=3, bins=64, norm="none").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.spatial.weight.fill_(1.0)
        model.temporal.weight[0, 0, 1] = 1.0
        model.head_norm.weight.fill_(1.0)
        model.head.weight.fill_(20.0)
    x_BCT = torch.zeros(3, 1, 200)
    for row, at in enumerate((20, 100, 180)):
        x_BCT[row, 0, at - 3 : at + 3] = 10.0
    predicted = model(x_BCT)[:, 0]
    place = 2 * BIN_RANGE * (torch.tensor([20.0, 100.0, 180.0]) / 199 - 0.5)
    assert (predicted - place).abs().max() < 0.15


def test_stacked_with_vmap_gives_equal_outputs():
    """Folds are trained as one program (`raypipe.training.stacked_trainer`)."""
    models = [Tcn(5, 60, 1, filters=8, depth=2, bins=16, dropout=0.0).train() for _ in range(2)]
    x_SBCT = torch.randn(2, 4, 5, 60)
    parameters = {
        n: torch.stack([dict(m.named_parameters())[n] for m in models]) for n, _ in models[0].named_parameters()
    }
    stacked = torch.func.vmap(lambda p, x: torch.func.functional_call(models[0], p, (x,)))(
        {n: p.detach() for n, p in parameters.items()}, x_SBCT
    )
    for model, x_BCT, out in zip(models, x_SBCT, stacked, strict=True):
        torch.testing.assert_close(model(x_BCT), out, atol=1e-5, rtol=1e-5)


def test_options_that_do_not_fit_are_refused():
    for wrong in (lambda: Tcn(5, 60, 1, kernel=4), lambda: Tcn(5, 1, 1), lambda: Tcn(5, 60, 3, bins=8)):
        with pytest.raises(ValueError):
            wrong()
    with pytest.raises(ValueError, match="bins and variance are for regressions of one value"):
        Conformer(5, 100, 2, kernel=5, pool=5, stride=5, bins=8)
    with pytest.raises(UserError, match="model/bins: for a regression of one value, and this target has 3 outputs"):
        build_model(ConformerConfig(bins=8), n_outputs=3, **SHAPE)
    with pytest.raises(UserError, match="loss/name=kl needs a distribution"):
        parse_config({"loss/name": "kl"})
    with pytest.raises(UserError, match="0, or 2 or more"):
        parse_config({"model/bins": 1})


def test_kl_is_zero_for_its_gaussian_and_other_losses_use_the_mean():
    from raypipe.core.config import LossConfig
    from raypipe.training.losses import make_loss

    target_B = torch.tensor([-1.0, 0.4, 9.0])
    kl = make_loss(LossConfig(name="kl", width=0.3), kind="regression")
    centre_K = bin_centres(torch.zeros(1, 64))
    best_BK = -0.5 * ((centre_K - target_B.clamp(-BIN_RANGE, BIN_RANGE)[:, None]) / 0.3).square()
    assert abs(float(kl(best_BK, target_B))) < 1e-6
    for _ in range(5):
        assert float(kl(best_BK + torch.randn(3, 64), target_B)) > 1e-3
    logits_BK = torch.randn(3, 64)
    plain = make_loss(LossConfig(), kind="regression", bins=64)
    torch.testing.assert_close(
        plain(logits_BK, target_B), make_loss(LossConfig(), kind="regression")(distribution_mean(logits_BK), target_B)
    )
    with pytest.raises(ValueError, match="kl needs logits"):
        kl(torch.zeros(3, 1), target_B)
    with pytest.raises(UserError, match="'kl' is for regression"):
        make_loss(LossConfig(name="kl"), kind="classification", n_classes=2)
    assert np.isfinite(float(kl(torch.zeros(3, 64), target_B)))
