"""Networks that predict a variance, from the head to the ensemble that weights windows by it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from raypipe.core.config import LossConfig
from raypipe.core.errors import UserError
from raypipe.core.metrics import score
from raypipe.core.network_config import ConformerConfig
from raypipe.core.parameters import parse_config
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.fit import fit_ensemble
from raypipe.ensembles.members import build_module, read_members
from raypipe.ensembles.methods import METHODS
from raypipe.ensembles.oof import read_oof_predictions
from raypipe.models.from_config import build_model
from raypipe.models.readout import bin_centres, decode_variance, distribution_moments
from raypipe.models.stacked import ConformerStack
from raypipe.packaging.bundle import export_bundle, load_ensemble
from raypipe.storage.records import Member
from raypipe.training.losses import make_loss
from raypipe.training.stacked_trainer import StackedTrainer
from raypipe.trial.local import run_trial
from tests.support.toys import ToyWindows, fold_trainer, make_run, tiny, write_store

NLL = {"model__variance": True, "loss__name": "nll"}
SHAPE = {"n_channels": 3, "n_times": 64, "n_outputs": 1, "sfreq": 50.0}


def test_moments_of_a_distribution():
    logits_BK = torch.randn(5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p_BK, x_K = logits_BK.softmax(1), bin_centres(logits_BK)
    mean_B, second_B = (p_BK * x_K).sum(1), (p_BK * x_K**2).sum(1)
    torch.testing.assert_close(distribution_moments(logits_BK), torch.stack([mean_B, second_B - mean_B**2], dim=1))


def test_beta_nll_is_the_likelihood_weighted_by_its_variance():
    out_B2 = torch.tensor([[0.3, 0.4], [-1.0, -0.7]], dtype=torch.float64, requires_grad=True)
    y_B = torch.tensor([0.1, 0.2], dtype=torch.float64)
    value_B, variance_B = out_B2.detach()[:, 0], out_B2.detach()[:, 1].exp()
    gaussian = torch.distributions.Normal(value_B, variance_B.sqrt())
    surprise_B = -gaussian.log_prob(y_B) - 0.5 * math.log(2 * math.pi)
    for power in (0.0, 0.5, 1.0):
        loss = make_loss(LossConfig(name="nll", variance_power=power), kind="regression")(out_B2, y_B)
        torch.testing.assert_close(loss.detach(), (surprise_B * variance_B**power).mean())
    # With the power 1 the value moves as it would by half the squared error.
    (slope,) = torch.autograd.grad(loss, out_B2)
    torch.testing.assert_close(slope[:, 0], (value_B - y_B) / 2)
    with pytest.raises(ValueError, match="log-variances"):
        make_loss(LossConfig(name="nll"), kind="regression")(out_B2[:, :1], y_B)
    with pytest.raises(UserError, match="'nll' is for regression"):
        make_loss(LossConfig(name="nll"), kind="classification", n_classes=2)


def test_incompatible_configurations_are_refused():
    for wrong, words in (
        ({"loss/name": "nll"}, "go together"),
        ({"model/variance": True}, "go together"),
        ({"model/variance": True, "model/bins": 8, "loss/name": "nll"}, "predict a variance already"),
        ({"model/name": "vit", "model/variance": True, "loss/name": "nll"}, "not for model/name=vit"),
        ({"model/name": "vit", "model/bins": 8}, "not for model/name=vit"),
    ):
        with pytest.raises(UserError, match=words):
            parse_config(wrong)
    with pytest.raises(UserError, match="model/variance: for a regression of one value, and this target has 3 outputs"):
        build_model(ConformerConfig(variance=True), **SHAPE | {"n_outputs": 3})


@pytest.mark.parametrize("name", ["conformer", "tcn"])
@pytest.mark.parametrize("options", [{"model__variance": True, "loss__name": "nll"}, {"model__bins": 16}])
def test_a_network_predicts_value_and_variance_in_evaluation(name, options):
    torch.manual_seed(0)
    config = tiny(model__name=name, **options).model
    models = [build_model(config, **SHAPE) for _ in range(2)]
    x_BCT = torch.randn(5, 3, 64)
    assert models[0].train()(x_BCT).shape == (5, options.get("model__bins", 2))
    answers = [model.eval()(x_BCT) for model in models]
    assert answers[0].shape == (5, 2) and (answers[0][:, 1] > 0).all()
    if name == "conformer":
        with torch.no_grad():
            torch.testing.assert_close(ConformerStack(models)(x_BCT), torch.stack(answers), atol=1e-5, rtol=1e-5)


def test_predicted_variances_stay_within_bounds():
    wild = decode_variance(torch.tensor([[0.0, 1e4], [0.0, -1e4]]))
    assert torch.isfinite(wild).all() and (wild[:, 1] > 0).all()


def noisy(subjects: int = 30, each: int = 12) -> ToyWindows:
    """Windows whose third channel is shifted where the target is mostly noise."""
    toy = ToyWindows(subjects=subjects, each=each)
    rng = np.random.default_rng(1)
    hard = rng.random(len(toy)) < 0.5
    toy.x[hard, 2] += 3.0
    toy.targets = (toy.targets + np.where(hard, 1.5, 0.1) * rng.normal(size=len(toy))).astype(np.float32)
    toy.hard = hard
    return toy


def test_the_variance_head_learns_which_targets_are_noisy():
    toy = noisy()
    config = tiny(**NLL, epochs=30, patience=30, optim__lr=1e-2, batch_size=32, model__norm="none", model__dropout=0.0)
    one = fold_trainer(config, toy, np.arange(240), np.arange(240, 360), fold=0)
    for _ in range(config.epochs):
        given = one.run_epoch().predictions
    hard = toy.hard[240:]
    assert np.median(given[hard, 1]) > 3 * np.median(given[~hard, 1])
    wrong = (given[:, 0] - toy.targets[240:]) ** 2
    assert wrong[hard].mean() > 3 * wrong[~hard].mean()  # and it is right about it


def test_stacked_folds_equal_one_by_one():
    toy = ToyWindows(subjects=12, each=6)
    config = tiny(**NLL, sam__name="sam")
    index = np.arange(len(toy))
    sides = [(index[index % 3 != fold], index[index % 3 == fold]) for fold in (0, 1)]
    apart = [fold_trainer(config, toy, *sides[fold], fold=fold).run_epoch() for fold in (0, 1)]
    stack = StackedTrainer([fold_trainer(config, toy, *sides[fold], fold=fold) for fold in (0, 1)])
    for one, other in zip(apart, stack.run_epoch(), strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4) and one.predictions.shape[1] == 2
        np.testing.assert_allclose(one.predictions, other.predictions, rtol=2e-3, atol=2e-3)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Trials that predict a variance (a head, and bins), and one that predicts none."""
    root = tmp_path_factory.mktemp("variance")
    windows = WindowStore(write_store(root / "store", noisy(subjects=40)))
    run = make_run(root / "run", windows)
    kinds = [NLL, {"model__bins": 16, "loss__name": "kl", "model__name": "tcn"}, {}, {"shrink": 0.5, **NLL}]
    for number, changes in enumerate(kinds):
        run.add_trial(number, tiny(epochs=6, batch_size=16, optim__lr=1e-2, **changes))
        run_trial(run, windows, number)
    return run, windows


def test_trials_store_variances_with_their_predictions(made):
    run, windows = made
    for number in (0, 1, 3):
        oof = run.oof(number)
        assert (
            oof.predictions.shape[1] == 1 and oof.variances.shape == (len(oof.windows),) and (oof.variances > 0).all()
        )
        best = run.history(number)[run.result(number).best_epoch - 1]
        assert score("nrmse", windows.targets[oof.windows], oof.predictions) == pytest.approx(best.score)
    assert run.oof(2).variances is None
    members = read_oof_predictions(run, [Member(2), Member(0)], windows.subjects, windows.targets)
    assert not members.variances[0].any() and (members.variances[1] > 0).all()
    assert members.select_members([0]).variances is None


@pytest.mark.parametrize("method", ["sample", "member-sample", "boosting"])
@pytest.mark.parametrize("most", [None, 6])
def test_the_shipped_module_weights_by_predicted_variances_as_scored(made, tmp_path, method, most):
    run, windows = made
    fitted = fit_ensemble(run, windows=windows, method=method, max_members=most)
    assert method not in fitted.excluded and len(fitted.members) == (4 if most is None else 2)
    held = fitted.held_out
    module = build_module(*read_members(run, windows, fitted.members, fitted.weights.tolist(), fitted.rule))
    x_NCT = torch.from_numpy(windows.gather(held.windows))
    for some in (slice(None), slice(0, 3)):  # one by one, and stacked
        with torch.no_grad():
            np.testing.assert_allclose(module(x_NCT[some]).numpy(), held.predictions[some], atol=2e-5)
    export_bundle(run, fitted, tmp_path / "bundle", windows=windows)
    given = load_ensemble(tmp_path / "bundle").predict(windows.gather(held.windows))
    np.testing.assert_allclose(given, held.predictions, atol=2e-5)
    if method != "boosting" and most is None:
        flat = fitted.rule["scale"][[member.trial for member in fitted.members].index(2)]
        assert flat == 0.0 and max(fitted.rule["scale"]) > 0  # one weight for all windows


@pytest.mark.parametrize("method", ["auto", "sample", "member-sample"])
def test_members_without_a_variance_may_be_all_that_fit(tmp_path, method):
    windows = WindowStore(write_store(tmp_path / "store", noisy(subjects=15, each=6)))
    run = make_run(tmp_path / "run", windows)
    for number, changes in enumerate([{}, {"optim__lr": 3e-3}, NLL]):
        run.add_trial(number, tiny(epochs=2, batch_size=16, **changes))
        run_trial(run, windows, number)
    for most in (3, 6):
        fitted = fit_ensemble(run, windows=windows, method=method, max_members=most)
        assert len(fitted.members) <= most // 3 and np.isfinite(fitted.held_out.predictions).all()
    rule = (
        METHODS[method].fit(read_oof_predictions(run, [Member(0), Member(1)], windows.subjects, windows.targets))
        if (method != "auto")
        else None
    )
    assert rule is None or rule["scale"] == [0.0, 0.0]
