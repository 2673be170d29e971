"""Combinations of parameters that cannot train, or of which a part would do nothing; they are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raypipe.core.effects import UNUSED_IN_PRETRAINING, USED_IN_CLOSED_FORM
from raypipe.core.errors import UserError
from raypipe.core.metrics import Kind
from raypipe.core.model_config import MODELS
from raypipe.core.text import either

if TYPE_CHECKING:
    from raypipe.core.config import LossConfig, OwnLossConfig, TrialConfig

ENCODERS = either(name for name, model in MODELS.items() if model.encodes)
"""The models that can be pretrained, for messages."""


def check_combination(config: TrialConfig) -> None:
    """Check that the sections of a configuration fit together.

    Raises
    ------
    ValueError
        Two do not; the message names both.
    """
    _check_closed_form(config)
    _check_pretraining(config)
    _check_initial_weights(config)
    _check_loss(config)
    _check_cycles(config)
    _check_augmentation(config)


def _check_augmentation(config: TrialConfig) -> None:
    norm = getattr(config.model, "norm", "none")
    if config.augment.name == "amplitude" and norm in ("channel", "robust"):
        raise ValueError(
            f"augment/name=amplitude has no effect with model/norm={norm}, which scales each channel (use window)"
        )


def _check_closed_form(config: TrialConfig) -> None:
    from raypipe.core.parameters import changed_parameters

    if not config.model.closed_form:
        return
    for name, value in changed_parameters(config).items():
        if name == "epochs":
            raise ValueError(f"epochs={value}: model/name={config.model.name} is fitted in one epoch: leave it out")
        if not name.startswith("model/") and name not in USED_IN_CLOSED_FORM:
            raise ValueError(
                f"{name}={value} has no effect with model/name={config.model.name}, which is fitted in closed form: "
                "leave it out"
            )


def _check_pretraining(config: TrialConfig) -> None:
    from raypipe.core.parameters import changed_parameters

    if config.pretrain.name == "none":
        return
    if not config.model.encodes:
        raise ValueError(f"pretraining needs model/name={ENCODERS}, not {config.model.name}")
    if config.pretrain.name == "mae" and config.model.name != "vit":
        raise ValueError("pretrain/name=mae needs model/name=vit: it leaves patches out before the first layer")
    if config.init.name != "none":
        raise ValueError("a trial either pretrains (pretrain/name) or starts from a pretrained encoder (init/name)")
    for name, value in changed_parameters(config).items():
        if name in UNUSED_IN_PRETRAINING:
            raise ValueError(f"{name}={value} has no effect with pretrain/name={config.pretrain.name}: leave it out")


def _check_initial_weights(config: TrialConfig) -> None:
    init = config.init
    if init.name == "none":
        return
    if not config.model.encodes:
        raise ValueError(f"init/name=pretrained needs model/name={ENCODERS}, not {config.model.name}")
    if init.tune == "full":
        return
    if config.sam.name != "none" and config.sam.only == "norm":
        raise ValueError(f"init/tune={init.tune} trains no normalisation layer: leave sam/only=norm out")
    if init.tune == "lora" and not config.model.n_blocks:
        raise ValueError("init/tune=lora changes the blocks, and model/depth=0 has none; use init/tune=frozen")


def _check_loss(config: TrialConfig) -> None:
    loss, model = config.loss.name, config.model
    if loss in ("kl", "nll") and not hasattr(model, "bins"):
        having = either(
            name for name, other in MODELS.items() if "bins" in other.model_fields and not other.closed_form
        )
        raise ValueError(f"loss/name={loss} needs model/name={having}: {model.name} predicts one number")
    if loss == "kl" and not model.n_bins:
        raise ValueError("loss/name=kl needs a distribution: set model/bins (such as 64)")
    if (loss == "nll") != (model.uncertainty == "variance"):
        raise ValueError("loss/name=nll and model/variance=True go together: set both or neither")


def _check_cycles(config: TrialConfig) -> None:
    if config.optim.schedule != "cyclic":
        return
    if config.epochs < config.optim.cycles:
        raise ValueError(f"{config.optim.cycles} cycles (optim/cycles) need as many epochs (given {config.epochs})")
    if config.early_stop == "fold":
        raise ValueError("optim/schedule=cyclic needs early_stop=trial: folds end their cycles together")
    if config.pretrain.name != "none":
        raise ValueError("optim/schedule=cyclic is for training, not for pretraining")


def check_kind(config: TrialConfig, kind: Kind, n_outputs: int = 1) -> None:
    """Check that a configuration suits the kind of target, and of a regression the number of its values.

    Raises
    ------
    UserError
        It does not; the message names the parameter.
    """
    if config.pretrain.name != "none":
        return
    check_loss(config.loss, kind)
    if kind == "classification" and config.model.for_regression_only:
        name = f"model/{config.model.for_regression_only}"
        raise UserError(f"{name}: it is for regression, this target is a classification (leave it out)")
    if kind == "regression" and n_outputs > 1:
        _check_one_value(config, n_outputs)


def _check_one_value(config: TrialConfig, n_outputs: int) -> None:
    """Refuse what predicts the distribution of one value, where a target has several."""
    if config.loss.name in ("kl", "nll"):
        raise UserError(f"loss/name: '{config.loss.name}' is for one value, this target has {n_outputs} (use 'plain')")
    if config.model.for_regression_only:
        name = f"model/{config.model.for_regression_only}"
        raise UserError(f"{name}: it is for one value, this target has {n_outputs} (leave it out)")


def check_loss(loss: LossConfig | OwnLossConfig, kind: Kind) -> None:
    """Check that a loss suits the kind of target; raises as `check_kind`."""
    if kind == "regression" and loss.smoothing:
        raise UserError("loss/smoothing: labels are smoothed for classes only, this target is a regression (use 0)")
    if kind == "classification" and loss.name in ("huber", "kl", "nll"):
        raise UserError(
            f"loss/name: '{loss.name}' is for regression, this target is a classification (use 'plain' or 'focal')"
        )
