"""Augmentation of training windows: random changes that keep the target (Rommel et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from raypipe.core.config import AugmentConfig, OwnAugmentConfig
from raypipe.training.own_functions import augment_own
from raypipe.training.transfer import to_device

_DB_PER_E = 20.0 / np.log(10.0)


def augment_batch(
    cfg: AugmentConfig | OwnAugmentConfig, x_BCT: Tensor, *, sfreq: float, rng: np.random.Generator
) -> Tensor:
    """Change each window of a batch with the chance `prob`; see `AugmentConfig` for the kinds.

    Parameters
    ----------
    cfg
        The kind, how often and how strong; with `none` nothing is drawn from `rng`.
    x_BCT
        Windows in any unit; not changed.
    sfreq
        Sampling rate in Hz.
    rng
        Source of all random numbers: two equal generators give two equal batches, on any device but for rounding.
    """
    if cfg.name == "none":
        return x_BCT
    rows = np.flatnonzero(rng.random(len(x_BCT)) < cfg.prob)
    if not len(rows):
        return x_BCT
    rows_R = to_device(rows, x_BCT.device)
    changed_RCT = (
        augment_own(cfg, x_BCT[rows_R], sfreq, rng)
        if isinstance(cfg, OwnAugmentConfig)
        else KINDS[cfg.name](cfg, x_BCT[rows_R], sfreq, rng)
    )
    return x_BCT.index_copy(0, rows_R, changed_RCT)


def _uniform(x_BCT: Tensor, rng: np.random.Generator, *shape: int) -> Tensor:
    """Draw uniform numbers from -1 to 1, in the type and on the device of the windows."""
    return to_device(torch.from_numpy(rng.uniform(-1.0, 1.0, shape)).to(x_BCT.dtype), x_BCT.device)


def _noise(cfg: AugmentConfig, x_BCT: Tensor, sfreq: float, rng: np.random.Generator) -> Tensor:
    noise_BCT = to_device(torch.from_numpy(rng.standard_normal(x_BCT.shape, np.float32)), x_BCT.device)
    return x_BCT + cfg.noise * x_BCT.std(2, keepdim=True, correction=0) * noise_BCT.to(x_BCT.dtype)


def _amplitude(cfg: AugmentConfig, x_BCT: Tensor, sfreq: float, rng: np.random.Generator) -> Tensor:
    return x_BCT * torch.exp(cfg.gain / _DB_PER_E * _uniform(x_BCT, rng, *x_BCT.shape[:2], 1))


def _time_shift(cfg: AugmentConfig, x_BCT: Tensor, sfreq: float, rng: np.random.Generator) -> Tensor:
    most = min(round(cfg.shift * sfreq), x_BCT.shape[2] - 1)
    shift_B1 = rng.integers(-most, most, size=(len(x_BCT), 1), endpoint=True)
    return shift_in_time(x_BCT, to_device(shift_B1, x_BCT.device))


def _channel_dropout(cfg: AugmentConfig, x_BCT: Tensor, sfreq: float, rng: np.random.Generator) -> Tensor:
    dropped_BC1 = rng.random((*x_BCT.shape[:2], 1)) < cfg.dropped
    return x_BCT.masked_fill(to_device(dropped_BC1, x_BCT.device), 0.0)


def _band_stop(cfg: AugmentConfig, x_BCT: Tensor, sfreq: float, rng: np.random.Generator) -> Tensor:
    centre_B1 = to_device(torch.from_numpy(rng.uniform(0.0, sfreq / 2, (len(x_BCT), 1))), x_BCT.device)
    return remove_band(x_BCT, sfreq, centre_B1, torch.full_like(centre_B1, cfg.bandwidth / 2))


def _sign_flip(cfg: AugmentConfig, x_BCT: Tensor, sfreq: float, rng: np.random.Generator) -> Tensor:
    return -x_BCT


def _fourier_surrogate(cfg: AugmentConfig, x_BCT: Tensor, sfreq: float, rng: np.random.Generator) -> Tensor:
    times = x_BCT.shape[2]
    spectrum_BCW = torch.fft.rfft(x_BCT)
    phase_B1W = np.deg2rad(cfg.phase) * _uniform(x_BCT, rng, len(x_BCT), 1, spectrum_BCW.shape[2])
    phase_B1W[..., 0] = 0.0  # the mean, and the last frequency of an even number of samples, are real
    if times % 2 == 0:
        phase_B1W[..., -1] = 0.0
    surrogate_BCT: Tensor = torch.fft.irfft(spectrum_BCW * torch.polar(torch.ones_like(phase_B1W), phase_B1W), n=times)
    return surrogate_BCT


KINDS: dict[str, Callable[[AugmentConfig, Tensor, float, np.random.Generator], Tensor]] = {
    "noise": _noise,
    "amplitude": _amplitude,
    "time-shift": _time_shift,
    "channel-dropout": _channel_dropout,
    "band-stop": _band_stop,
    "sign-flip": _sign_flip,
    "fourier-surrogate": _fourier_surrogate,
}
"""Augmentations by the value of ``augment/name``."""


def remove_band(x_BCT: Tensor, sfreq: float, centre_B1: Tensor, half_B1: Tensor) -> Tensor:
    """Remove the frequencies (Hz) nearer to a centre than `half_B1`, by a brick-wall filter over the window."""
    hertz_W = torch.fft.rfftfreq(x_BCT.shape[2], 1.0 / sfreq, device=x_BCT.device)
    out_BW = (hertz_W - centre_B1).abs() < half_B1
    spectrum_BCW = torch.fft.rfft(x_BCT, dim=2)
    kept_BCT: Tensor = torch.fft.irfft(spectrum_BCW.masked_fill(out_BW[:, None], 0.0), n=x_BCT.shape[2], dim=2)
    return kept_BCT


def shift_in_time(x_BCT: Tensor, shift_B1: Tensor) -> Tensor:
    """Shift windows circularly by a number of samples each; a positive one is later."""
    times = x_BCT.shape[2]
    from_BT = (torch.arange(times, device=x_BCT.device) - shift_B1) % times
    return x_BCT.gather(2, from_BT[:, None].expand(-1, x_BCT.shape[1], -1))
