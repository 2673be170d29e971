"""Views of windows for contrastive learning: changes that leave alone what a window is about.

Choice of changes after Mohsenvand et al. 2020 (Contrastive representation learning for EEG).
"""

from __future__ import annotations

import torch
from torch import Tensor

SCALE, SHIFT, CUT, DROP, STOP, NOISE, ROLL = 0.5, 0.5, 0.3, 0.2, 2.0, 0.3, 0.1
"""Largest change of the log2 of amplitude; of the offset, in spreads; share of time masked; of channels dropped; half
width of the band-stop in Hz; noise in spreads; share of the window's length that it is shifted by."""


def augment(
    x_BCT: Tensor, sfreq: float, generator: torch.Generator, *, strength: float = 1.0, time_shift: bool = False
) -> Tensor:
    """A random view of each window, drawn from `generator` (of the CPU, whatever the device).

    Per window: channels' amplitudes scaled, offsets added, a stretch of time zeroed, channels zeroed, a band taken out
    by a brick-wall filter, white noise added; each change is drawn anew.

    Parameters
    ----------
    x_BCT
        Windows, in any unit.
    sfreq
        In Hz.
    strength
        Of all changes; 0 gives the windows back.
    time_shift
        Whether windows are also rolled in time; only where the answer does not lie in time.
    """
    batch, channels, times = x_BCT.shape
    device = x_BCT.device

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).to(device)

    spread_BC1 = x_BCT.std(2, keepdim=True, correction=0)
    centre_BC1 = x_BCT.mean(2, keepdim=True)
    x_BCT = x_BCT - centre_BC1
    # Draws come in one order, whatever is used of them: a worker's windows get the same ones in any layout.
    gain_BC1 = 2.0 ** (strength * SCALE * (2 * draw(batch, channels, 1) - 1))
    offset_BC1 = strength * SHIFT * (2 * draw(batch, channels, 1) - 1)
    length_B1 = strength * CUT * times * draw(batch, 1)
    start_B1 = draw(batch, 1) * (times - length_B1)
    dropped_BC1 = draw(batch, channels, 1) < strength * DROP
    stop_B1 = draw(batch, 1) * sfreq / 2
    level_B11 = strength * NOISE * draw(batch, 1, 1)
    noise_BCT = torch.randn(batch, channels, times, generator=generator).to(device)
    roll_B1 = (strength * ROLL * times * (2 * draw(batch, 1) - 1)).round().long()
    half_B1 = strength * STOP * draw(batch, 1)

    spectrum_BCW = torch.fft.rfft(x_BCT, dim=2)
    hertz_W = torch.fft.rfftfreq(times, 1.0 / sfreq, device=device)
    out_BW = (hertz_W - stop_B1).abs() < half_B1
    x_BCT = torch.fft.irfft(spectrum_BCW.masked_fill(out_BW[:, None], 0.0), n=times, dim=2)
    x_BCT = x_BCT * gain_BC1 + offset_BC1 * spread_BC1 + level_B11 * spread_BC1 * noise_BCT
    sample_T = torch.arange(times, device=device)
    cut_BT = (sample_T >= start_B1) & (sample_T < start_B1 + length_B1)
    x_BCT = x_BCT.masked_fill(cut_BT[:, None], 0.0).masked_fill(dropped_BC1, 0.0)
    if time_shift:
        from_BT = (sample_T - roll_B1) % times
        x_BCT = x_BCT.gather(2, from_BT[:, None].expand(-1, channels, -1))
    return x_BCT + torch.where(dropped_BC1, 0.0, centre_BC1)
