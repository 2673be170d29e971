"""Augmented views of windows for contrastive learning: changes that keep what a window is about.

The choice of changes follows Mohsenvand et al. 2020 (Contrastive representation learning for EEG).
"""

from __future__ import annotations

import torch
from torch import Tensor

from raypipe.training.augmentations import remove_band, shift_in_time

MAX_GAIN = 0.5
"""Largest change of a channel's amplitude, in log2."""
MAX_OFFSET = 0.5
"""Largest offset of a channel, in standard deviations."""
MAX_CUT = 0.3
"""Largest fraction of time that is set to zero."""
DROP_RATE = 0.2
"""Probability that a channel is set to zero."""
MAX_STOP = 2.0
"""Largest half width of the band-stop filter in Hz."""
MAX_NOISE = 0.3
"""Largest standard deviation of white noise, in standard deviations of the channel."""
MAX_SHIFT = 0.1
"""Largest shift in time, as a fraction of the window's length."""


def augment(
    x_BCT: Tensor, sfreq: float, generator: torch.Generator, *, strength: float = 1.0, time_shift: bool = False
) -> Tensor:
    """Return a random view (B, C, T) of each window.

    Per window: channel amplitudes are scaled, offsets added, an interval set to zero, channels set to zero, a band
    removed by a brick-wall filter, and white noise added.

    Parameters
    ----------
    x_BCT
        Windows, in any unit.
    sfreq
        Sampling rate in Hz.
    generator
        A generator of the CPU, whatever the device of the windows.
    strength
        Factor of all changes; 0 returns the windows.
    time_shift
        Whether windows are also shifted in time (circularly); not for targets that depend on response timing.
    """
    batch, channels, times = x_BCT.shape
    device = x_BCT.device

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).to(device)

    spread_BC1 = x_BCT.std(2, keepdim=True, correction=0)
    centre_BC1 = x_BCT.mean(2, keepdim=True)
    x_BCT = x_BCT - centre_BC1
    # All numbers are drawn, in a fixed order, even if some are not used: views do not depend on the options.
    gain_BC1 = 2.0 ** (strength * MAX_GAIN * (2 * draw(batch, channels, 1) - 1))
    offset_BC1 = strength * MAX_OFFSET * (2 * draw(batch, channels, 1) - 1)
    length_B1 = strength * MAX_CUT * times * draw(batch, 1)
    start_B1 = draw(batch, 1) * (times - length_B1)
    dropped_BC1 = draw(batch, channels, 1) < strength * DROP_RATE
    stop_B1 = draw(batch, 1) * sfreq / 2
    level_B11 = strength * MAX_NOISE * draw(batch, 1, 1)
    noise_BCT = torch.randn(batch, channels, times, generator=generator).to(device)
    roll_B1 = (strength * MAX_SHIFT * times * (2 * draw(batch, 1) - 1)).round().long()
    half_B1 = strength * MAX_STOP * draw(batch, 1)

    x_BCT = remove_band(x_BCT, sfreq, stop_B1, half_B1)
    x_BCT = x_BCT * gain_BC1 + offset_BC1 * spread_BC1 + level_B11 * spread_BC1 * noise_BCT
    sample_T = torch.arange(times, device=device)
    cut_BT = (sample_T >= start_B1) & (sample_T < start_B1 + length_B1)
    x_BCT = x_BCT.masked_fill(cut_BT[:, None], 0.0).masked_fill(dropped_BC1, 0.0)
    if time_shift:
        x_BCT = shift_in_time(x_BCT, roll_B1)
    return x_BCT + torch.where(dropped_BC1, 0.0, centre_BC1)
