"""Stores of the same toy windows with different preprocessing."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.support.toys import ToyWindows, write_store


class Subset(ToyWindows):
    """Toy windows of some subjects, in another order of their names."""

    def __init__(self, keep, **how):
        super().__init__(**how)
        inside = np.isin(self.subjects, keep)
        self.x, self.targets, self.subjects = self.x[inside], self.targets[inside], self.subjects[inside]


def filtered(**how) -> ToyWindows:
    """Return the same windows with other channels and samples."""
    toy = ToyWindows(**how)
    toy.x = toy.x[:, :2, ::2].copy()
    toy.channels, toy.n_channels = toy.channels[:2], 2
    toy.sfreq, toy.crop_samples, toy.window_samples = 25.0, 32, 32
    return toy


def write_two_stores(root: Path, **how) -> dict[str, Path]:
    """Write toy windows and the same ones with other channels and samples; return their folders by name."""
    return {
        "broad": write_store(root / "broad", ToyWindows(**how)),
        "low": write_store(root / "low", filtered(**how)),
    }
