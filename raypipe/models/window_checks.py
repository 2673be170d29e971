"""Which windows suit a model, by its configuration; without torch."""

from __future__ import annotations

from raypipe.core.closed_form_config import ClosedFormConfig, CovarianceConfig, LinearConfig
from raypipe.core.errors import UserError
from raypipe.core.model_config import ModelConfig
from raypipe.core.network_config import ConformerConfig, EegnetConfig, ShallowConfig, VitConfig
from raypipe.models.bands import Bank
from raypipe.models.sizes import eegnet_sizes, fitting_kernels, kernel_sizes, n_groups, shortest_window

MAX_COVARIANCE_VALUES = 2**20
"""Values of the covariances of a window, at most."""


def check_windows(cfg: ModelConfig, *, n_channels: int, n_times: int, n_outputs: int, sfreq: float) -> None:
    """Check that a model can be made for windows (n_channels, n_times) at `sfreq` Hz.

    Raises
    ------
    UserError
        They are too short for it or its delays, have no frequency in any of its bands or no more than one interval, or
        its covariances are too large.
    """
    _check_length(cfg, n_times, sfreq)
    if isinstance(cfg, CovarianceConfig):
        bands = _check_bands(cfg, n_times, sfreq)
        _check_covariances(cfg, n_channels, n_outputs, bands)
        _check_delays(cfg, n_times, sfreq)
    elif isinstance(cfg, LinearConfig) and cfg.predictors == "band-power":
        _check_bands(cfg, n_times, sfreq)
    elif isinstance(cfg, LinearConfig) and round(sfreq / cfg.rate) >= n_times:
        raise UserError(
            f"{_describe(n_times, sfreq)} have one interval at model/rate={cfg.rate:g}, whose mean is removed: set "
            f"more than {sfreq / n_times:g}"
        )


def replaced_kernels(cfg: ModelConfig, n_times: int, sfreq: float) -> str | None:
    """Return a line on kernels that windows are too short for, and those that are used in their place; or None."""
    windows = _describe(n_times, sfreq)
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


def _check_length(cfg: ModelConfig, n_times: int, sfreq: float) -> None:
    windows = _describe(n_times, sfreq)
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


def _check_bands(cfg: ClosedFormConfig, n_times: int, sfreq: float) -> int:
    """Return the number of bands that have a frequency; raise a UserError where none has."""
    found = Bank(cfg.bands, cfg.low, cfg.high, cfg.n_bands).ranges(n_times, sfreq)
    if not found:
        raise UserError(f"{_describe(n_times, sfreq)} have no frequency in any band of model/bands={cfg.bands}")
    return len(found)


def _check_covariances(cfg: CovarianceConfig, n_channels: int, n_outputs: int, bands: int) -> None:
    signals = min(cfg.components or n_channels, n_channels)
    if cfg.prototypes:
        signals = 2 * n_groups(n_outputs) * min(cfg.prototypes, signals)
    dimension = cfg.order * signals
    if bands * dimension**2 > MAX_COVARIANCE_VALUES:
        raise UserError(
            f"model/name=covariance: covariances of {dimension} signals in {bands} bands have {bands * dimension**2:,} "
            f"values, of at most {MAX_COVARIANCE_VALUES:,}; set fewer model/components, model/order or bands"
        )


def _check_delays(cfg: CovarianceConfig, n_times: int, sfreq: float) -> None:
    """Check that no copy is delayed by the whole window, which would be the signal itself."""
    delay = (cfg.order - 1) * max(1, round(cfg.lag * sfreq))
    if delay >= n_times:
        raise UserError(
            f"{_describe(n_times, sfreq)} are no longer than the delay of {delay} samples of the last copy by "
            f"model/order={cfg.order} and model/lag={cfg.lag:g}"
        )


def _describe(n_times: int, sfreq: float) -> str:
    return f"windows of {n_times} samples ({n_times / sfreq:g} s at {sfreq:g} Hz)"
