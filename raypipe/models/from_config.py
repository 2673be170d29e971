"""Build a network from a configuration, with errors that name the parameter to change."""

from __future__ import annotations

from raypipe.core.closed_form_config import ClosedFormConfig
from raypipe.core.errors import UserError
from raypipe.core.model_config import ModelConfig, OwnConfig
from raypipe.core.network_config import EegnetConfig, ShallowConfig, TcnConfig, VitConfig
from raypipe.models.builders import build_network
from raypipe.models.network import Network
from raypipe.models.sizes import fitting_kernels, kernel_sizes
from raypipe.models.window_checks import check_windows

MAX_WIDTH = 2**20
"""Most filters, heads, bins, or units of a layer."""
MAX_PADDING_VALUES = 2**26
"""Values that the dilated convolutions of a TCN add to a window, at most."""
MAX_TOKENS = 2**16
"""Tokens of a window of a ViT, at most."""
MAX_ATTENTION_WEIGHTS = 2**24
"""Attention weights of a block of a Conformer for a window, at most."""


def build_model(cfg: ModelConfig, *, n_channels: int, n_times: int, n_outputs: int, sfreq: float) -> Network:
    """Build the network for windows (n_channels, n_times) at `sfreq` Hz; weights are drawn from torch's generator.

    Raises
    ------
    UserError
        The windows are too short for the network, an option is for regression, or a user's network cannot be made.
    """
    if cfg.for_regression_only and n_outputs != 1:
        name = f"model/{cfg.for_regression_only}"
        raise UserError(
            f"{name}: for a regression of one value, and this target has {n_outputs} outputs (leave it out)"
        )
    check_windows(cfg, n_channels=n_channels, n_times=n_times, n_outputs=n_outputs, sfreq=sfreq)
    return build_network(cfg.model_dump(), n_channels=n_channels, n_times=n_times, n_outputs=n_outputs, sfreq=sfreq)


def check_sizes(cfg: ModelConfig, *, n_channels: int, n_times: int, n_outputs: int, sfreq: float) -> int:
    """Check that the network of a file from elsewhere can be built for these windows.

    Returns
    -------
    int
        Bytes of the tables that its stem computes from the window's length.

    Raises
    ------
    ValueError
        The windows are too short for the network, or a size of it takes more memory than its weights explain.
    """
    for name in ("filters", "heads", "expansion", "hidden", "patch", "bins"):
        if getattr(cfg, name, 0) > MAX_WIDTH:
            raise ValueError(f"model/{name} {getattr(cfg, name)}: at most {MAX_WIDTH:,} is read")
    try:
        check_windows(cfg, n_channels=n_channels, n_times=n_times, n_outputs=n_outputs, sfreq=sfreq)
    except UserError as error:
        raise ValueError(str(error)) from None
    if isinstance(cfg, OwnConfig):
        return 0
    if isinstance(cfg, TcnConfig):
        return _check_tcn(cfg, n_times)
    if isinstance(cfg, VitConfig):
        return _check_vit(cfg, n_channels, n_times)
    if isinstance(cfg, EegnetConfig):
        if cfg.filters * cfg.spatial > MAX_WIDTH:
            raise ValueError(f"model/spatial {cfg.spatial}: at most {MAX_WIDTH:,} spatial filters are read")
        return 0
    if isinstance(cfg, ClosedFormConfig):
        return 0
    kernel, pool, stride = kernel_sizes(sfreq, fitting_kernels(n_times, sfreq, cfg.kernels))
    if isinstance(cfg, ShallowConfig):
        return 4 * (n_times + 2) * kernel
    tokens = (n_times - kernel + 1 - pool) // stride + 1
    if cfg.heads * tokens**2 > MAX_ATTENTION_WEIGHTS:
        raise ValueError(f"{tokens:,} tokens in a window take {cfg.heads * tokens**2:,} attention weights")
    return 4 * (n_times + 2) * kernel


def _check_tcn(cfg: TcnConfig, n_times: int) -> int:
    # Dilations double from block to block, and padding with them.
    if cfg.depth > 26 or 6 * 2**cfg.depth * cfg.filters > MAX_PADDING_VALUES:
        raise ValueError(f"model/depth {cfg.depth}: its dilations are longer than any window of {n_times} samples")
    if n_times < 2:
        raise ValueError("windows of 1 sample are too short for a tcn")
    return 4 * cfg.bins * (n_times // 2)


def _check_vit(cfg: VitConfig, n_channels: int, n_times: int) -> int:
    if cfg.filters % cfg.heads:
        raise ValueError(f"model/filters ({cfg.filters}) must be a multiple of model/heads ({cfg.heads})")
    tokens = n_channels * (n_times // cfg.patch)
    if tokens > MAX_TOKENS:
        raise ValueError(f"model/patch {cfg.patch}: {tokens:,} patches in a window; at most {MAX_TOKENS:,} are read")
    return 0
