"""BatchNorm with statistics of earlier batches, so that windows of one batch do not influence each other.

With statistics of its own batch, a window's vector depends on the other windows. SimCLR may find the pair by that
alone. Chen et al. (2020, sec. 2.2) prevent it by statistics over all machines, He et al. (2020, arXiv:1911.05722, sec.
3.3) by shuffling. With the running mean and variance, neither workers nor micro-batches change what is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn


class RunningBatchNorm:
    """Update a BatchNorm's running statistics from outside, over all workers; the layer stays in evaluation mode.

    Parameters
    ----------
    layer
        The layer; its `momentum` is the weight of a new batch.
    world
        Workers that share a batch; more than one need an initialised `torch.distributed`.
    """

    def __init__(self, layer: nn.BatchNorm1d, world: int = 1) -> None:
        self.layer, self.world = layer, world
        self._recording = False
        self._sums: list[Tensor] = []
        layer.register_forward_pre_hook(self._record)

    def _record(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self._recording:
            x_FM = inputs[0].detach().double().transpose(0, 1).flatten(1)
            count_F = torch.full_like(x_FM[:, 0], x_FM.shape[1])
            self._sums.append(torch.stack((count_F, x_FM.sum(1), x_FM.square().sum(1))))

    @property
    def empty(self) -> bool:
        """Return whether there was no batch yet."""
        return not bool(self.layer.num_batches_tracked)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the inputs of the layer within the context."""
        self._recording, self._sums = True, []
        try:
            yield
        finally:
            self._recording = False

    def update(self) -> None:
        """Update the running statistics with the recorded inputs; the first batch replaces them.

        Call it after the backward pass, which needs the statistics of the forward pass.
        """
        with torch.no_grad():
            sums_3F = torch.stack(self._sums).sum(0)
            if self.world > 1:
                dist.all_reduce(sums_3F)
            count, mean_F = float(sums_3F[0, 0]), sums_3F[1] / sums_3F[0]
            variance_F = (sums_3F[2] / sums_3F[0] - mean_F.square()).clamp_min(0.0) * (count / max(1.0, count - 1.0))
            weight = 1.0 if self.empty else float(self.layer.momentum or 0.1)
            for buffer, new in ((self.layer.running_mean, mean_F), (self.layer.running_var, variance_F)):
                assert buffer is not None
                buffer.lerp_(new.to(buffer.dtype), weight)
            assert self.layer.num_batches_tracked is not None
            self.layer.num_batches_tracked += 1
