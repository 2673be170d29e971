"""ShallowFBCSPNet (Schirrmeister et al. 2017, doi:10.1002/hbm.23730), with the Conformer's fast stem.

This file needs torch (2.2 or later) and its neighbours network.py, readout.py and stem.py: submissions contain them
unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

if __package__:
    from raypipe.models.network import Dropout, DropoutMasks, Network, check_length
    from raypipe.models.stem import Stem
else:  # in a submission, where the files are in one folder
    from network import Dropout, DropoutMasks, Network, check_length  # type: ignore[import-not-found,no-redef,unused-ignore]
    from stem import Stem  # type: ignore[import-not-found,no-redef,unused-ignore]

_LOG_FLOOR = 1e-6
"""Smallest power whose logarithm is taken."""


class Shallow(Network):
    """Log band power of spatial and temporal filters that are learned (Schirrmeister et al. 2017, section 2.4.3).

    stem -> BatchNorm -> square -> average pool -> log -> dropout -> Linear.

    Parameters
    ----------
    n_channels, n_times, n_outputs, norm, bins, variance
        See `Network`.
    kernel, pool, stride
        Lengths in samples; see `sizes.kernel_sizes`.
    filters
        Temporal filters, and spatial filters.
    dropout
        Dropout rate before the last layer.

    Raises
    ------
    ValueError
        The window is shorter than kernel and pool need.

    Notes
    -----
    Compared with braindecode's ShallowFBCSPNet, names differ and ``stem.spatial`` has a bias of zeros. The stem's
    biases are not trained: BatchNorm follows.
    """

    stackable = True

    def __init__(
        self,
        n_channels: int,
        n_times: int,
        n_outputs: int,
        *,
        kernel: int = 25,
        pool: int = 75,
        stride: int = 15,
        filters: int = 40,
        dropout: float = 0.5,
        norm: str = "channel",
        bins: int = 0,
        variance: bool = False,
    ) -> None:
        super().__init__(n_channels, n_times, n_outputs, norm=norm, bins=bins, variance=variance)
        check_length(n_times, kernel, pool)
        self.n_features = filters * ((n_times - kernel + 1 - pool) // stride + 1)
        self.stem = Stem(n_channels, n_times, filters=filters, kernel=kernel)
        self.batch_norm = nn.BatchNorm1d(filters)
        self.pool = nn.AvgPool1d(pool, stride)
        self.drop = Dropout(dropout)
        self.head = nn.Linear(self.n_features, bins or n_outputs + variance)
        for layer in (self.stem.temporal, self.stem.spatial, self.head):
            nn.init.xavier_uniform_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        for layer in (self.stem.temporal, self.stem.spatial):
            assert layer.bias is not None
            layer.bias.requires_grad_(False)

    def prepare(self, x_BCT: Tensor) -> Tensor:
        """Normalise windows, and transform them for the Fourier stem; see `Conformer.prepare`."""
        return self.stem.prepare(super().prepare(x_BCT))

    def use_stem(self, algorithm: str) -> None:
        """Choose how the stem is computed; see `Stem`."""
        self.stem.algorithm = algorithm

    def dropout_plan(self, batch: int) -> list[tuple[int, float]]:
        """Return size and rate of each dropout mask that a training pass over `batch` windows takes, in order."""
        return [(batch * self.n_features, self.drop.p)] if self.drop.p else []

    def front(self, x: Tensor, *, prepared: bool = False, masks: DropoutMasks | None = None) -> Tensor:
        """Run stem and BatchNorm: windows to (B, filters, T - kernel + 1)."""
        out: Tensor = self.batch_norm(self.stem(x if prepared else self.prepare(x), prepared=True))
        return out

    def back(self, y_BFT: Tensor, masks: DropoutMasks | None = None) -> Tensor:
        """Compute log power and its linear combination from the result of `front`."""
        power_BFN = torch.log(self.pool(y_BFT.square()).clamp_min(_LOG_FLOOR))
        return self.decode(self.head(self.drop(power_BFN, masks).flatten(1)))
