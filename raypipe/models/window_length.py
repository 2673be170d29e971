"""Which windows are long enough for a network, by its configuration; without torch."""

from __future__ import annotations

from raypipe.core.errors import UserError
from raypipe.core.model_config import ModelConfig
from raypipe.core.network_config import ConformerConfig, EegnetConfig, ShallowConfig, VitConfig
from raypipe.models.sizes import eegnet_sizes, fitting_kernels, kernel_sizes, shortest_window


def check_length(cfg: ModelConfig, n_times: int, sfreq: float) -> None:
    """Check that windows of `n_times` samples at `sfreq` Hz are long enough for a network.

    Raises
    ------
    UserError
        They are too short.
    """
    windows = describe_windows(n_times, sfreq)
    if isinstance(cfg, VitConfig) and n_times < 2 * cfg.patch:
        raise UserError(f"{windows} are too short for two patches of model/patch={cfg.patch} samples")
    if isinstance(cfg, EegnetConfig):
        kernel, pool = eegnet_sizes(sfreq, cfg.kernels, n_times)
        if n_times < shortest_window(kernel, pool):
            raise UserError(
                f"{windows} are too short for the eegnet's pools: it needs "
                f"{shortest_window(kernel, pool)} samples or more"
            )
    if isinstance(cfg, ConformerConfig | ShallowConfig):
        kernel, pool, _ = kernel_sizes(sfreq, fitting_kernels(n_times, sfreq, cfg.kernels))
        if n_times < kernel + pool - 1:
            raise UserError(
                f"{windows} are too short for the {cfg.name}'s kernel of {kernel} and pool of {pool} samples: it needs "
                f"{kernel + pool - 1} samples or more"
            )


def replaced_kernels(cfg: ModelConfig, n_times: int, sfreq: float) -> str | None:
    """Return a line on kernels that windows are too short for, and those that are used in their place; or None."""
    windows = describe_windows(n_times, sfreq)
    if isinstance(cfg, EegnetConfig):
        kernel, _ = eegnet_sizes(sfreq, cfg.kernels)
        cut = f"{windows} are too short for the eegnet's kernel of {kernel} samples, which is cut to their length"
        return cut if kernel > n_times else None
    if not isinstance(cfg, ConformerConfig | ShallowConfig):
        return None
    used = fitting_kernels(n_times, sfreq, cfg.kernels)
    if used == cfg.kernels:
        return None
    return (
        f"{windows} are too short for model/kernels={cfg.kernels} of the {cfg.name}, which uses those of '{used}' "
        "instead"
    )


def describe_windows(n_times: int, sfreq: float) -> str:
    """Return the length of windows in words."""
    return f"windows of {n_times} samples ({n_times / sfreq:g} s at {sfreq:g} Hz)"
