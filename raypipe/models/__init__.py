"""The networks, by name."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from raypipe.config import ModelConfig
from raypipe.errors import UserError, nearest
from raypipe.models.conformer import Conformer, kernel_sizes

__all__ = ["MODELS", "Conformer", "build_model", "fastest_stem", "kernel_sizes"]


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
    )


MODELS: dict[str, Callable[[ModelConfig, int, int, int, float], nn.Module]] = {"conformer": _conformer}
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
    return MODELS[cfg.name](cfg, n_channels, n_times, n_outputs, sfreq)


def fastest_stem(model: Conformer, x_BCT: Tensor, *, repeats: int = 3) -> tuple[str, dict[str, float]]:
    """Time `fourier` and `direct` on a batch like those to come; the model is left as it was.

    Parameters
    ----------
    model
        On the device it will train on.
    x_BCT
        Any windows of the right shape, on the same device.
    repeats
        Runs of each after a first that is not counted; the quickest counts.

    Returns
    -------
    choice, seconds
        The quicker algorithm (assign it to ``model.stem.algorithm``; a resumed run must keep it to repeat its
        numbers to the bit) and the seconds of one transform, forward and backward pass of each.
    """
    stem = model.stem
    before = stem.algorithm
    parameters = list(stem.parameters())
    seconds: dict[str, float] = {}
    x_BCT = x_BCT.detach()
    try:
        for algorithm in ("fourier", "direct"):
            stem.algorithm = algorithm
            runs: list[float] = []
            for _ in range(repeats + 1):
                _synchronise(x_BCT)
                start = time.perf_counter()
                with torch.enable_grad():
                    y_BGT = stem(x_BCT)
                    torch.autograd.grad(y_BGT, parameters, torch.ones_like(y_BGT))
                _synchronise(x_BCT)
                runs.append(time.perf_counter() - start)
            seconds[algorithm] = min(runs[1:])
    finally:
        stem.algorithm = before
    return min(seconds, key=lambda name: seconds[name]), seconds


def _synchronise(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
