"""A linear map of band power, or of time courses.

This file needs torch (2.2 or later) and its neighbours bands.py, closed_form.py and network.py: submissions contain
all unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor

if __package__:
    from raypipe.models.bands import Bank
    from raypipe.models.closed_form import ClosedForm, spectrum
    from raypipe.models.network import DropoutMasks
else:  # in a submission, where the files are in one folder
    from bands import Bank  # type: ignore[import-not-found,no-redef,unused-ignore]
    from closed_form import ClosedForm, spectrum  # type: ignore[import-not-found,no-redef,unused-ignore]
    from network import DropoutMasks  # type: ignore[import-not-found,no-redef,unused-ignore]

_MIN_POWER = 1e-6
"""Square microvolts, added to the power of which the logarithm is taken."""


class Linear(ClosedForm):
    """Map windows (B, C, T) to (B, n_outputs) by a linear map of features of channels or spatial components.

    Parameters
    ----------
    n_channels, n_times, n_outputs, sfreq
        As of any network, and Hz.
    predictors
        `band-power`, the logarithm of each signal's power in each band; `time-courses`, means of each signal over
        intervals of 1 / `rate` seconds (samples at the end that fill no interval are not used).
    bank
        Frequency bands of `band-power`.
    components
        Spatial components that replace the channels; 0, or no less than the channels, for the channels.
    rate
        Values of a time course per second.
    scale
        `none`, or `window`, signals divided by the root mean square of all of the window's.
    bins
        See `ClosedForm`.
    """

    def __init__(
        self,
        n_channels: int,
        n_times: int,
        n_outputs: int,
        sfreq: float,
        *,
        predictors: str,
        bank: Bank,
        components: int = 0,
        rate: float = 20.0,
        scale: str = "none",
        bins: int = 0,
    ) -> None:
        super().__init__(n_channels, n_times, n_outputs, components=components, bins=bins)
        self.predictors, self.scale, self.ranges = predictors, scale, bank.ranges(n_times, sfreq)
        self.step = min(n_times, max(1, round(sfreq / rate)))
        each = len(self.ranges) if predictors == "band-power" else n_times // self.step
        self.set_head_shape(self.n_signals * each)

    def scaled_signals(self, x_BCT: Tensor) -> Tensor:
        """Return the signals (B, S, T), divided as `scale` says."""
        y_BST = self.signals(x_BCT)
        if self.scale == "window":
            y_BST = y_BST / y_BST.square().mean((1, 2), keepdim=True).clamp_min(_MIN_POWER).sqrt()
        return y_BST

    def front(self, x: Tensor, *, prepared: bool = False, masks: DropoutMasks | None = None) -> Tensor:
        """Return the features (B, F) of windows (B, C, T)."""
        y_BST = self.scaled_signals(x if prepared else self.prepare(x))
        if self.predictors == "band-power":
            power_BSN = torch.view_as_real(spectrum(y_BST)).square().sum(-1)
            bands = [power_BSN[..., first:end].sum(-1) for first, end in self.ranges]
            return torch.log(torch.cat(bands, dim=1) + _MIN_POWER)
        n = y_BST.shape[-1] // self.step
        return y_BST[..., : n * self.step].reshape(y_BST.shape[0], -1, self.step).mean(-1)
