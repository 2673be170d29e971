"""Dropout masks of whole steps, each drawn at once on the device that computes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

DropoutPlan = Callable[[int], list[tuple[int, float]]]
"""Returns sizes and rates of the masks of a batch, by its number of windows (`Network.dropout_plan`)."""


class DropoutSampler:
    """Draw the dropout masks of one fold's epoch, step by step, from a random stream of their own."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        self._dropout_M = torch.empty(0, device=device)
        if device.type == "cuda":
            self._cuda = torch.Generator(device).manual_seed(seed)
        else:
            self._bits = np.random.SFC64(seed)

    def draw(self, plan: list[tuple[int, float]]) -> Tensor | None:
        """Return masks (M,) of the sizes and rates of `plan`, one after the other; None for an empty plan.

        A value needs 16 random bits, so rates are exact to 1/65536. The next call on a CPU overwrites the masks: those
        of one step are megabytes, and new memory takes longer than drawing.
        """
        if not plan:
            return None
        total = sum(size for size, _ in plan)
        if self.device.type == "cuda":
            bits_M = torch.empty(total, dtype=torch.int16, device=self.device)
            bits_M.random_(-(2**15), 2**15, generator=self._cuda)
        else:
            bits_M = torch.from_numpy(self._bits.random_raw(-(-total // 4)).view(np.int16)[:total])
        if self.device.type == "cuda" or len(self._dropout_M) != total:
            self._dropout_M = torch.empty(total, device=self.device)
        start = 0
        for size, rate in _runs(plan):
            part = self._dropout_M[start : start + size]
            part.copy_(bits_M[start : start + size] >= round(rate * 2**16) - 2**15).mul_(1.0 / (1.0 - rate))
            start += size
        return self._dropout_M


def _runs(plan: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Join neighbours of one rate."""
    runs: list[tuple[int, float]] = []
    for size, rate in plan:
        if runs and runs[-1][1] == rate:
            runs[-1] = (runs[-1][0] + size, rate)
        else:
            runs.append((size, rate))
    return runs
