"""Builders of the networks, by the name that a configuration gives."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from raypipe.core.config import ModelConfig
from raypipe.core.errors import UserError, nearest
from raypipe.models.conformer import Conformer, kernel_sizes
from raypipe.models.tcn import Tcn
from raypipe.models.vit import ViT


def _conformer(cfg: ModelConfig, n_channels: int, n_times: int, n_outputs: int, sfreq: float) -> nn.Module:
    kernel, pool, stride = kernel_sizes(sfreq, cfg.kernels)
    shortest = kernel + pool - 1
    if n_times < shortest:
        hint = "" if cfg.kernels == "short" else ", or model/kernels=short"
        raise UserError(
            f"windows of {n_times} samples ({n_times / sfreq:g} s at {sfreq:g} Hz) are too short for the conformer's "
            f"kernel of {kernel} and pool of {pool} samples: it needs {shortest} samples or more{hint}"
        )
    return Conformer(
        n_channels,
        n_times,
        n_outputs,
        kernel=kernel,
        pool=pool,
        stride=stride,
        filters=cfg.filters,
        depth=cfg.depth,
        heads=cfg.heads,
        expansion=cfg.expansion,
        hidden=cfg.hidden,
        dropout=cfg.dropout,
        features=cfg.features,
        norm=cfg.norm,
        bins=cfg.bins,
        variance=cfg.variance,
    )


def _vit(cfg: ModelConfig, n_channels: int, n_times: int, n_outputs: int, sfreq: float) -> nn.Module:
    if n_times < 2 * cfg.patch:
        raise UserError(
            f"windows of {n_times} samples ({n_times / sfreq:g} s at {sfreq:g} Hz) hold no two patches of "
            f"model/patch={cfg.patch} samples"
        )
    return ViT(
        n_channels,
        n_times,
        n_outputs,
        patch=cfg.patch,
        width=cfg.filters,
        depth=cfg.depth,
        heads=cfg.heads,
        expansion=cfg.expansion,
        dropout=cfg.dropout,
        norm=cfg.norm,
    )


def _tcn(cfg: ModelConfig, n_channels: int, n_times: int, n_outputs: int, sfreq: float) -> nn.Module:
    return Tcn(
        n_channels,
        n_times,
        n_outputs,
        filters=cfg.filters,
        depth=cfg.depth,
        dropout=cfg.dropout,
        bins=cfg.bins,
        norm=cfg.norm,
        variance=cfg.variance,
    )


MODELS: dict[str, Callable[[ModelConfig, int, int, int, float], nn.Module]] = {
    "conformer": _conformer,
    "tcn": _tcn,
    "vit": _vit,
}
"""Builders by the name that `ModelConfig.name` gives."""


def build_model(cfg: ModelConfig, *, n_channels: int, n_times: int, n_outputs: int, sfreq: float) -> nn.Module:
    """Build the network for windows of `n_channels` x `n_times` at `sfreq` Hz.

    Weights come from torch's global generator.

    Raises
    ------
    UserError
        The windows are too short for the network, or there is no network of that name.
    """
    if cfg.name not in MODELS:
        raise UserError(f"model/name: there is no network '{cfg.name}'; {nearest(cfg.name, MODELS)}")
    if cfg.bins and n_outputs != 1:
        raise UserError(f"model/bins: for regression only, and this task has {n_outputs} classes (use 0)")
    if cfg.variance and n_outputs != 1:
        raise UserError(f"model/variance: for regression only, and this task has {n_outputs} classes (use False)")
    return MODELS[cfg.name](cfg, n_channels, n_times, n_outputs, sfreq)
