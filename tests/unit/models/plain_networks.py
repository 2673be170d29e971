"""EEGNet and ShallowFBCSPNet written down layer by layer, for comparison."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PlainEEGNet(nn.Module):
    """Lawhern et al. 2018, table 2; the temporal convolution keeps all channels."""

    def __init__(self, channels: int, times: int, outputs: int, *, f: int, d: int, kernel: int, pool: int, p: float):
        super().__init__()
        g = f * d
        self.first = nn.Sequential(
            nn.Conv2d(1, f, (1, kernel), padding=(0, kernel // 2), bias=False),
            nn.BatchNorm2d(f, eps=1e-3),
            nn.Conv2d(f, g, (channels, 1), groups=f, bias=False),
            nn.BatchNorm2d(g, eps=1e-3),
            nn.ELU(),
            nn.AvgPool2d((1, pool)),
            nn.Dropout(p),
        )
        self.second = nn.Sequential(
            nn.Conv2d(g, g, (1, 16), padding=(0, 8), groups=g, bias=False),
            nn.Conv2d(g, g, 1, bias=False),
            nn.BatchNorm2d(g, eps=1e-3),
            nn.ELU(),
            nn.AvgPool2d((1, 8)),
            nn.Dropout(p),
            nn.Flatten(),
        )
        self.head = nn.Linear(self.second(self.first(torch.zeros(2, 1, channels, times))).shape[1], outputs)
        for norm in (self.first[1], self.first[3], self.second[2]):
            norm.reset_running_stats()

    def forward(self, x_BCT: Tensor) -> Tensor:
        out: Tensor = self.head(self.second(self.first(x_BCT[:, None])))
        return out


class PlainShallow(nn.Module):
    """Schirrmeister et al. 2017, section 2.4.3."""

    def __init__(
        self, channels: int, times: int, outputs: int, *, filters: int, kernel: int, pool: int, stride: int, p: float
    ):
        super().__init__()
        self.time = nn.Conv2d(1, filters, (1, kernel))
        self.space = nn.Conv2d(filters, filters, (channels, 1), bias=False)
        self.norm = nn.BatchNorm2d(filters)
        self.pool = nn.AvgPool2d((1, pool), (1, stride))
        self.drop = nn.Dropout(p)
        self.head = nn.Linear(filters * ((times - kernel + 1 - pool) // stride + 1), outputs)

    def forward(self, x_BCT: Tensor) -> Tensor:
        power = self.pool(self.norm(self.space(self.time(x_BCT[:, None]))) ** 2)
        out: Tensor = self.head(self.drop(torch.log(torch.clamp(power, min=1e-6))).flatten(1))
        return out


def copy_in_order(source: nn.Module, target: nn.Module, *, without: tuple[str, ...] = ()) -> None:
    """Copy the tensors of a state to another, in order, whatever their names; the shapes differ by axes of one."""
    theirs = target.state_dict()
    ours = [tensor for name, tensor in source.state_dict().items() if name not in without]
    assert len(ours) == len(theirs)
    target.load_state_dict({name: own.view(t.shape) for (name, t), own in zip(theirs.items(), ours, strict=True)})
