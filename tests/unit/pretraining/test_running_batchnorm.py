"""BatchNorm by the statistics of earlier batches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from raypipe.pretraining.running_batchnorm import RunningBatchNorm


def batches(count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [5 + 3 * torch.randn(12, 4, 20, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("size", [12, 5, 1])
def test_statistics_are_batchnorms_own_whatever_the_pieces(size):
    own, layer = nn.BatchNorm1d(4), nn.BatchNorm1d(4).eval()
    running = RunningBatchNorm(layer)
    assert running.empty
    for number, x in enumerate(batches()):
        own.momentum = 0.1 if number else 1.0  # the first batch is taken whole
        own(x)
        with running.recording():
            for piece in x.split(size):
                layer(piece)
        running.update()
    assert not running.empty
    torch.testing.assert_close(layer.running_mean, own.running_mean)
    torch.testing.assert_close(layer.running_var, own.running_var)


def test_inputs_that_are_not_recorded_change_nothing():
    layer = nn.BatchNorm1d(4).eval()
    RunningBatchNorm(layer)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer(batches(1)[0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())


def test_a_large_offset_does_not_lose_variance_to_rounding():
    layer = nn.BatchNorm1d(1).eval()
    x = 1e4 + torch.randn(64, 1, 50, generator=torch.Generator().manual_seed(0))
    with (running := RunningBatchNorm(layer)).recording():
        layer(x)
    running.update()
    assert float(layer.running_var) == pytest.approx(float(x.double().var()), rel=1e-5)
    assert not running.empty
