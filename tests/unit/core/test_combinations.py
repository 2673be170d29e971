"""Combinations that cannot train, or of which a part does nothing, are refused in one line."""

from __future__ import annotations

import pytest

from raypipe.core.combinations import check_kind
from raypipe.core.errors import UserError
from raypipe.core.parameters import parse_config

VIT = {"model/name": "vit"}
PRETRAINED = VIT | {"init/name": "pretrained"}
COVARIANCE = {"model/name": "covariance"}
MAE = VIT | {"pretrain/name": "mae"}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            VIT | {"model/bins": 8},
            "parameter 'model/bins' is for model/name=conformer, eegnet, shallow, tcn, covariance or linear, not ",
        ),
        (
            VIT | {"loss/name": "kl"},
            "loss/name=kl needs model/name=conformer, eegnet, shallow or tcn: vit predicts one number",
        ),
        (VIT | {"loss/name": "nll"}, "loss/name=nll needs model/name=conformer, eegnet, shallow or tcn"),
        (PRETRAINED | {"init/tune": "frozen", "sam/name": "sam", "sam/only": "norm"}, "leave sam/only=norm out"),
        (PRETRAINED | {"init/tune": "lora", "sam/name": "asam", "sam/only": "norm"}, "trains no normalisation layer"),
        (PRETRAINED | {"init/tune": "lora", "model/depth": 0}, "model/depth=0 has none; use init/tune=frozen"),
        (MAE | {"sam/name": "sam"}, "sam/name=sam has no effect with pretrain/name=mae: leave it out"),
        (MAE | {"mixup/name": "mixup"}, "mixup/name=mixup has no effect"),
        (MAE | {"optim/ema": 0.9}, "optim/ema=0.9 has no effect"),
        (MAE | {"sampling": "subject"}, "sampling=subject has no effect"),
        (MAE | {"early_stop": "fold"}, "early_stop=fold has no effect"),
        (MAE | {"shrink": 0.5}, "shrink=0.5 has no effect"),
        (MAE | {"loss/name": "focal"}, "loss/name=focal has no effect"),
        ({"loss/gamma": 2.0}, "parameter 'loss': gamma is for name=focal, not for name=plain: leave it out"),
        ({"loss/name": "huber", "loss/beta": 1.0}, "beta is for name=focal, not for name=huber"),
        ({"loss/name": "focal", "loss/delta": 2.0}, "delta is for name=huber, not for name=focal"),
        ({"loss/name": "huber", "loss/width": 0.5}, "width is for name=kl"),
        ({"loss/variance_power": 1.0}, "variance_power is for name=nll"),
        (COVARIANCE | {"epochs": 16}, "epochs=16: model/name=covariance is fitted in one epoch: leave it out"),
        (COVARIANCE | {"optim/lr": 0.1}, "optim/lr=0.1 has no effect with model/name=covariance, which is fitted in"),
        (COVARIANCE | {"sam/name": "sam"}, "sam/name=sam has no effect"),
        (COVARIANCE | {"batch_size": 8}, "batch_size=8 has no effect"),
        (COVARIANCE | {"loss/name": "focal"}, "loss/name=focal has no effect"),
        (COVARIANCE | {"model/n_bands": 3}, "n_bands is for bands=even or log: leave it out"),
        (COVARIANCE | {"model/bands": "log", "model/low": 50.0}, r"low \(50 Hz\) must be below high \(40 Hz\)"),
        (COVARIANCE | {"model/lag": 0.5}, "lag is for order above 1"),
        (COVARIANCE | {"model/bins": 1}, "bins=1 can tell no targets apart: set 0, or 2 or more"),
        (COVARIANCE | {"model/order": 2, "model/prototypes": 2}, "order and prototypes both add signals"),
        ({"model/name": "linear", "model/rate": 10.0}, "rate is for predictors=time-courses"),
        (
            {"model/name": "linear", "model/predictors": "time-courses", "model/bands": "log"},
            "bands is for predictors=band",
        ),
    ],
)
def test_combinations_are_refused_in_one_line(params, message):
    with pytest.raises(UserError, match=message) as caught:
        parse_config(params, "spaces/x.py")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("spaces/x.py: ")


@pytest.mark.parametrize(
    "params",
    [
        MAE,
        VIT | {"pretrain/name": "simclr", "model/dropout": 0.1},
        PRETRAINED | {"init/tune": "full", "sam/name": "sam", "sam/only": "norm"},
        PRETRAINED | {"init/tune": "frozen", "sam/name": "sam"},
        {"loss/name": "kl", "model/bins": 8, "loss/width": 0.5, "sam/name": "sam"},
        COVARIANCE | {"epochs": 1, "sampling": "subject", "shrink": 0.5, "loss/balanced": False, "seed": 3},
        {"model/name": "linear"},
    ],
)
def test_others_are_accepted_also_as_they_are_stored(params):
    config = parse_config(params)
    assert type(config).model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("params", "kind", "message"),
    [
        ({"loss/name": "huber"}, "classification", "'huber' is for regression"),
        ({"loss/smoothing": 0.1}, "regression", "smoothed for classes only"),
        ({"model/bins": 8}, "classification", "model/bins: it is for regression"),
        ({"loss/name": "nll", "model/variance": True}, "classification", "'nll' is for regression"),
    ],
)
def test_a_configuration_for_another_kind_of_target_is_refused(params, kind, message):
    config = parse_config(params)
    check_kind(config, "regression" if kind == "classification" else "classification")
    with pytest.raises(UserError, match=message):
        check_kind(config, kind)
