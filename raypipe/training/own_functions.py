"""Losses and augmentations of users: functions from their files or from packages, called as raypipe's own are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raypipe.core.config import OwnAugmentConfig, OwnLossConfig
from raypipe.core.errors import UserError
from raypipe.core.metrics import Kind
from raypipe.core.own_calls import function_arguments
from raypipe.core.own_code import load_object
from raypipe.models.readout import distribution_mean

Loss = Callable[[Tensor, Tensor], Tensor]


def make_own_loss(cfg: OwnLossConfig, *, kind: Kind, class_weights: Tensor | None = None, bins: int = 0) -> Loss:
    """Build a user's loss of a batch: ``loss(outputs, target, **args) -> scalar``.

    It gets predictions and targets (B,) of a regression, both in standard deviations of the training targets, so that
    no broadcasting can pair windows with others. Of several values, it is called for each, and the mean is taken. It
    gets logits (B, K) and classes (B,) of a classification, after mixing fractions (B, K). Targets are copies, on which
    it may write: SAM's second pass has the same.

    Parameters
    ----------
    cfg
        Its name and arguments. A class is made with them, and then called.
    kind
        Kind of the target.
    class_weights
        (K,), see `losses.class_weights`; passed where the loss has a parameter ``class_weights``.
    bins
        Bins of a regression's distribution, whose mean the loss gets; 0 for outputs that are one number.

    Raises
    ------
    UserError
        There is no such loss, it does not take these arguments, or it has parameters to train.
    """
    return loss_of_batches(load_loss(cfg, class_weights), kind, bins)


def loss_of_batches(loss: Loss, kind: Kind, bins: int = 0) -> Loss:
    """Return a user's loss of whole batches of outputs and targets; see `make_own_loss`."""
    if kind == "classification":
        return lambda logits_BK, target: loss(logits_BK, target.clone())

    def mean_of_outputs(out_BK: Tensor, target: Tensor) -> Tensor:
        if target.ndim == 1:
            return loss((distribution_mean(out_BK) if bins else out_BK)[:, 0], target.clone())
        pairs = zip(out_BK.unbind(1), target.unbind(1), strict=True)
        return torch.stack([loss(out_B, target_B.clone()) for out_B, target_B in pairs]).mean()

    return mean_of_outputs


def load_loss(cfg: OwnLossConfig, class_weights: Tensor | None) -> Loss:
    """Return a user's function with its arguments, or an object of a user's class; see `make_own_loss`."""
    found = load_object(cfg.name, cfg.code, "loss/name")
    offered = {"class_weights": class_weights}
    if not isinstance(found, type):
        _require_callable(found, cfg.name, "loss")
        given = function_arguments(found, cfg.name, "loss", 2, offered, dict(cfg.args))
        return functools.partial(found, **given)
    made = found(**function_arguments(found, cfg.name, "loss", 0, offered, dict(cfg.args)))
    _require_callable(made, cfg.name, "loss")
    if isinstance(made, nn.Module):
        if next(made.parameters(), None) is not None:
            raise UserError(f"loss/name: {cfg.name} has parameters to train; only networks may have some")
        if class_weights is not None:
            made = made.to(class_weights.device)
    return made  # type: ignore[no-any-return]


def augment_own(cfg: OwnAugmentConfig, x_BCT: Tensor, sfreq: float, rng: np.random.Generator) -> Tensor:
    """Change windows by a user's function: ``change(x, **args)`` -> (B, C, T).

    Parameters
    ----------
    cfg
        Its name and arguments.
    x_BCT
        Windows, which it may change in place.
    sfreq
        Sampling rate in Hz, passed where the function has a parameter of this name.
    rng
        Source of all random numbers, passed as ``rng``.

    Raises
    ------
    UserError
        There is no such function, or it does not take these arguments.
    ValueError
        It returns something else.
    """
    out = _change_of(cfg)(x_BCT, {"sfreq": sfreq, "rng": rng})
    if not isinstance(out, Tensor) or out.shape != x_BCT.shape or out.dtype != x_BCT.dtype:
        given = f"a tensor {tuple(out.shape)} of {out.dtype}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
        raise ValueError(f"{cfg.name}: windows {tuple(x_BCT.shape)} of {x_BCT.dtype} gave {given}")
    return out


@functools.lru_cache(maxsize=64)
def _change_of(cfg: OwnAugmentConfig) -> Callable[[Tensor, dict[str, Any]], Any]:
    found = load_object(cfg.name, cfg.code, "augment/name")
    if isinstance(found, type):
        raise UserError(f"augment/name: {cfg.name} is a class, and must be a function of windows (B, C, T)")
    _require_callable(found, cfg.name, "augment")
    given = function_arguments(found, cfg.name, "augment", 1, {"sfreq": 0.0, "rng": None}, dict(cfg.args))
    return lambda x_BCT, offered: found(x_BCT, **{name: offered.get(name, value) for name, value in given.items()})


def _require_callable(found: object, name: str, section: str) -> None:
    if not callable(found):
        raise UserError(f"{section}/name: {name} is no function, but a {type(found).__name__}")
