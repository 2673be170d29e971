"""Dropout masks drawn before a step, from a stream that belongs to a fold and an epoch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class DropoutSampler:
    """Dropout masks of one fold's epoch, step by step."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        self._scale_M = torch.empty(0, device=device)
        if device.type == "cuda":
            self._cuda = torch.Generator(device).manual_seed(seed)
        else:
            self._bits = np.random.SFC64(seed)

    def draw(self, plan: list[tuple[int, float]]) -> Tensor | None:
        """Masks (M,) of the sizes and rates of `plan`, one after the other; None where nothing is dropped.

        From 16 random bits a value: rates are met to 1/65536. The next call on a CPU overwrites them, since a step's
        are megabytes, and fresh memory costs more than the drawing.
        """
        if not plan:
            return None
        total = sum(size for size, _ in plan)
        if self.device.type == "cuda":
            bits_M = torch.empty(total, dtype=torch.int16, device=self.device)
            bits_M.random_(-(2**15), 2**15, generator=self._cuda)
        else:
            bits_M = torch.from_numpy(self._bits.random_raw(-(-total // 4)).view(np.int16)[:total])
        if self.device.type == "cuda" or len(self._scale_M) != total:
            self._scale_M = torch.empty(total, device=self.device)
        start = 0
        for size, rate in _runs(plan):
            part = self._scale_M[start : start + size]
            part.copy_(bits_M[start : start + size] >= round(rate * 2**16) - 2**15).mul_(1.0 / (1.0 - rate))
            start += size
        return self._scale_M


def _runs(plan: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """The plan with neighbours of one rate joined."""
    runs: list[tuple[int, float]] = []
    for size, rate in plan:
        if runs and runs[-1][1] == rate:
            runs[-1] = (runs[-1][0] + size, rate)
        else:
            runs.append((size, rate))
    return runs
