"""Build a network from a configuration, with errors that name the parameter to change."""

from __future__ import annotations

from raypipe.core.config import ModelConfig
from raypipe.core.errors import UserError, nearest
from raypipe.models.builders import BUILDERS, build_network
from raypipe.models.conformer import kernel_sizes
from raypipe.models.network import Network


def build_model(cfg: ModelConfig, *, n_channels: int, n_times: int, n_outputs: int, sfreq: float) -> Network:
    """Build the network for windows (n_channels, n_times) at `sfreq` Hz; weights are drawn from torch's generator.

    Raises
    ------
    UserError
        The windows are too short for the network, there is no network of that name, or an option is for regression.
    """
    if cfg.name not in BUILDERS:
        raise UserError(f"model/name: there is no network '{cfg.name}'; {nearest(cfg.name, BUILDERS)}")
    if cfg.bins and n_outputs != 1:
        raise UserError(f"model/bins: for regression only, and this task has {n_outputs} classes (use 0)")
    if cfg.variance and n_outputs != 1:
        raise UserError(f"model/variance: for regression only, and this task has {n_outputs} classes (use False)")
    _check_length(cfg, n_times, sfreq)
    return build_network(cfg.model_dump(), n_channels=n_channels, n_times=n_times, n_outputs=n_outputs, sfreq=sfreq)


def _check_length(cfg: ModelConfig, n_times: int, sfreq: float) -> None:
    windows = f"windows of {n_times} samples ({n_times / sfreq:g} s at {sfreq:g} Hz)"
    if cfg.name == "vit" and n_times < 2 * cfg.patch:
        raise UserError(f"{windows} are too short for two patches of model/patch={cfg.patch} samples")
    if cfg.name == "conformer":
        kernel, pool, _ = kernel_sizes(sfreq, cfg.kernels)
        shortest = kernel + pool - 1
        if n_times < shortest:
            hint = "" if cfg.kernels == "short" else ", or model/kernels=short"
            raise UserError(
                f"{windows} are too short for the conformer's kernel of {kernel} and pool of {pool} samples: it needs "
                f"{shortest} samples or more{hint}"
            )
