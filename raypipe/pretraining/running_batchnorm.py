"""BatchNorm by what batches before were like, so that windows of one batch know nothing of each other.

Normalised by its own batch, a window's vector tells of the others: SimCLR may find the pair by that alone, which Chen
et al. (2020, sec. 2.2) prevent by statistics of all machines together and He et al. (2020, arXiv:1911.05722, sec. 3.3)
by shuffling. With the running mean and variance instead, neither workers nor micro-batches change what is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class RunningBatchNorm:
    """Keeps a BatchNorm's running statistics from outside, over all workers; the layer stays in evaluation mode.

    Parameters
    ----------
    layer
        The layer; its `momentum` is the share of a new batch.
    world
        Workers that share a batch; more than one need an initialised `torch.distributed`.
    """

    def __init__(self, layer: nn.BatchNorm1d, world: int = 1) -> None:
        self.layer, self.world = layer, world
        self._looks = False
        self._sums: list[Tensor] = []
        layer.register_forward_pre_hook(self._see)

    def _see(self, layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        if self._looks:
            x_FM = given[0].detach().double().transpose(0, 1).flatten(1)
            count_F = torch.full_like(x_FM[:, 0], x_FM.shape[1])
            self._sums.append(torch.stack((count_F, x_FM.sum(1), x_FM.square().sum(1))))

    @property
    def empty(self) -> bool:
        """Whether no batch has been seen yet."""
        return not bool(self.layer.num_batches_tracked)

    @contextmanager
    def looking(self) -> Iterator[Any]:
        """Take note of what passes through the layer."""
        self._looks, self._sums = True, []
        try:
            yield
        finally:
            self._looks = False

    def update(self) -> None:
        """Take in what was seen, the first batch whole; after its backward pass, which needs the layer as it was."""
        with torch.no_grad():
            sums_3F = torch.stack(self._sums).sum(0)
            if self.world > 1:
                dist.all_reduce(sums_3F)
            count, mean_F = float(sums_3F[0, 0]), sums_3F[1] / sums_3F[0]
            variance_F = (sums_3F[2] / sums_3F[0] - mean_F.square()).clamp_min(0.0) * (count / max(1.0, count - 1.0))
            share = 1.0 if self.empty else float(self.layer.momentum or 0.1)
            for buffer, new in ((self.layer.running_mean, mean_F), (self.layer.running_var, variance_F)):
                assert buffer is not None
                buffer.lerp_(new.to(buffer.dtype), share)
            assert self.layer.num_batches_tracked is not None
            self.layer.num_batches_tracked += 1
