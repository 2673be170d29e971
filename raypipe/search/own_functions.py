"""Checks of users' losses and augmentations on random numbers, before anything is started."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from raypipe.core import own_code
from raypipe.core.config import OwnAugmentConfig, OwnLossConfig, TrialConfig
from raypipe.core.errors import UserError
from raypipe.core.foreign_code import code_errors
from raypipe.core.own_code import load_object
from raypipe.core.own_config import OwnCode
from raypipe.core.random_streams import seeded
from raypipe.data.window_store import WindowStore
from raypipe.search.kept_state import changed, integers
from raypipe.training.own_functions import Loss, augment_own, load_loss, loss_of_batches

WINDOWS = 8
"""Random windows that are tried."""
_CPU = torch.device("cpu")


class _Outputs(NamedTuple):
    """What a loss gets."""

    columns: int
    values: int
    """Of a regression's target."""
    classes: int
    mixed: bool
    """Targets of classes are fractions."""

    def draw(self) -> tuple[Tensor, Tensor]:
        """Return outputs and targets of a batch."""
        out_BK = torch.randn(WINDOWS, self.columns, requires_grad=True)
        if not self.classes:
            return out_BK, torch.randn(WINDOWS) if self.values < 2 else torch.randn(WINDOWS, self.values)
        target_B = torch.arange(WINDOWS) % self.classes
        mixed_BK = 0.7 * F.one_hot(target_B, self.classes) + 0.3 / self.classes
        return out_BK, mixed_BK if self.mixed else target_B

    def loss_of(self, loss: Loss) -> Loss:
        """Return a user's loss as it is called with them."""
        bins = 0 if self.classes or self.columns == self.values else self.columns
        return loss_of_batches(loss, "classification" if self.classes else "regression", bins)


def check_own_functions(configs: Iterable[TrialConfig], windows: WindowStore) -> None:
    """Check every loss and augmentation of a user's in some configurations.

    Raises
    ------
    UserError
        One does not take its arguments, fails, gives something else than a finite number or windows, has no gradient,
        or draws random numbers that a resumed training would not repeat.
    """
    shape = (windows.n_channels, windows.crop_samples, windows.sfreq)
    for config in configs:
        if isinstance(config.loss, OwnLossConfig):
            classes = len(windows.classes)
            mixed = bool(classes) and config.mixup.name != "none"
            bins = config.model.n_bins if windows.n_outputs == 1 else 0
            columns, values = max(windows.n_outputs, bins), 0 if classes else windows.n_outputs
            _check_loss(config.loss, _Outputs(columns, values, classes, mixed))
        if isinstance(config.augment, OwnAugmentConfig):
            _check_augmentation(config.augment, shape)


@functools.lru_cache(maxsize=256)
def _check_loss(config: OwnLossConfig, outputs: _Outputs) -> None:
    with _errors_of(config, "loss"), seeded(0, _CPU):
        made = _load(config, outputs)
        loss = outputs.loss_of(made)
        out_BK, target = outputs.draw()
        value = _value_of(lambda: loss(out_BK.clone(), target), config.name)
        again = _value_of(lambda: loss(out_BK.clone(), target), config.name)
        if not value.requires_grad:
            raise UserError(f"{config.name}: no gradient reaches the network's outputs")
        (gradient_BK,) = torch.autograd.grad(value, out_BK, allow_unused=True)
        if gradient_BK is None or not bool(gradient_BK.any()):
            raise UserError(f"{config.name}: no gradient reaches the network's outputs")
        if not gradient_BK.isfinite().all():
            raise UserError(f"{config.name}: its gradient is not finite on random numbers")
        if not torch.equal(value, again):
            raise UserError(
                f"{config.name}: the same outputs and targets give {value.item():.6g} and {again.item():.6g}"
            )
        _check_loss_forgets(config, outputs, made)


def _check_loss_forgets(config: OwnLossConfig, outputs: _Outputs, made: Loss) -> None:
    """Check that a loss, which no checkpoint holds, gives after some batches what a new one gives."""
    loss = outputs.loss_of(made)
    kept: list[dict[str, Any]] = []
    for seed in range(2, 5):
        with seeded(seed, _CPU):
            out_BK, target = outputs.draw()
            loss(out_BK.clone(), target)
        buffers = dict(made.named_buffers()) if isinstance(made, nn.Module) else {}
        kept.append(integers(made) | {name: buffer.tolist() for name, buffer in buffers.items()})
    if where := changed(*kept[-2:]):
        raise UserError(
            f"{config.name}: '{where}' changes from batch to batch, and no checkpoint holds what a loss keeps"
        )
    other = outputs.loss_of(own_code.made_anew(lambda: _load(config, outputs)))
    out_BK, target = outputs.draw()
    value, new = (_value_of(functools.partial(each, out_BK.clone(), target), config.name) for each in (loss, other))
    if not torch.equal(value, new):
        raise UserError(
            f"{config.name}: after some batches it gives {value.item():.6g}, and a new one {new.item():.6g}; it must "
            "keep nothing, and draw from the global generators of torch, NumPy or Python when it is called"
        )


def _load(config: OwnLossConfig, outputs: _Outputs) -> Loss:
    return load_loss(config, torch.ones(outputs.classes) if outputs.classes else None)


def _value_of(call: Callable[[], Tensor], name: str) -> Tensor:
    with seeded(1, _CPU):
        value = call()
    if not isinstance(value, Tensor) or value.ndim or not value.is_floating_point():
        shown = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise UserError(f"{name}: gave {shown}, and must give one number: the mean loss of a batch")
    if not value.isfinite():
        raise UserError(f"{name}: gave {value.item()} on random numbers")
    return value


@functools.lru_cache(maxsize=256)
def _check_augmentation(config: OwnAugmentConfig, shape: tuple[int, int, float]) -> None:
    n_channels, n_times, sfreq = shape
    with _errors_of(config, "augment"):
        x_BCT = 10.0 * torch.randn(WINDOWS, n_channels, n_times, generator=torch.Generator().manual_seed(0))

        def change(x_BCT: Tensor, seed: int) -> Tensor:
            with seeded(seed, _CPU):
                return augment_own(config, x_BCT.clone(), sfreq, np.random.default_rng(0))

        out_BCT = change(x_BCT, 0)
        if not out_BCT.isfinite().all():
            raise UserError(f"{config.name}: the changed windows are not finite")
        if not torch.equal(out_BCT, change(x_BCT, 1)):
            raise UserError(
                f"{config.name}: two calls give other windows; draw all random numbers from its parameter rng "
                "(numpy.random.Generator), so that a resumed training repeats them"
            )
        before = integers(function := load_object(config.name, config.code, "augment/name"))
        change(x_BCT[:1], 0)
        if where := changed(before, integers(function)):
            raise UserError(
                f"{config.name}: '{where}' changes from call to call, and no checkpoint holds what it keeps"
            )


def _errors_of(config: OwnCode, section: str) -> AbstractContextManager[None]:
    source = own_code.known_source(config.code)
    return code_errors(f"{section}/name: {config.name}", source.name if source else "")
