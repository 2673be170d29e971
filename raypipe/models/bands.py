"""Frequency bands of models; this file needs nothing but Python.

Submissions contain it unchanged.
"""

from __future__ import annotations

import math
from typing import NamedTuple

RHYTHMS = ((1.0, 4.0), (4.0, 8.0), (8.0, 13.0), (13.0, 30.0), (30.0, 45.0))
"""Hz: delta, theta, alpha, beta, gamma."""
NAMED_BANDS = {"rhythms": RHYTHMS, "theta-alpha": RHYTHMS[1:3]}


class Bank(NamedTuple):
    """Frequency bands of a model: those of a name, or `n_bands` bands from `low` to `high` Hz."""

    bands: str = "rhythms"
    """One of `NAMED_BANDS`, `even` (bands of equal width) or `log` (bands of equal ratio)."""
    low: float = 4.0
    high: float = 40.0
    n_bands: int = 9

    def edges(self) -> list[tuple[float, float]]:
        """Return the lower and upper edge of each band in Hz."""
        if self.bands in NAMED_BANDS:
            return list(NAMED_BANDS[self.bands])
        steps = [step / self.n_bands for step in range(self.n_bands + 1)]
        if self.bands == "log":
            edges = [self.low * (self.high / self.low) ** step for step in steps]
        else:
            edges = [self.low + (self.high - self.low) * step for step in steps]
        return [(edges[band], edges[band + 1]) for band in range(self.n_bands)]

    def ranges(self, n_times: int, sfreq: float) -> list[tuple[int, int]]:
        """Return the first bin of each band's Fourier transform, and the one after its last.

        The bins of a band are those from its lower edge to below its upper edge. A band without any is left out: it
        is above half the sampling rate, or narrower than one over the window's length.
        """
        return [found for edges in self.edges() if (found := _bins(edges, n_times, sfreq))]

    def used_edges(self, n_times: int, sfreq: float) -> list[tuple[float, float]]:
        """Return the edges in Hz of the bands that are not left out; see `ranges`."""
        return [edges for edges in self.edges() if _bins(edges, n_times, sfreq)]


def _bins(edges: tuple[float, float], n_times: int, sfreq: float) -> tuple[int, int] | None:
    """Return the first bin of a band and the one after its last; None if it has no bin."""
    spacing = sfreq / n_times
    first = max(1, math.ceil(edges[0] / spacing - 1e-9))  # bin 0 is the offset
    end = min(n_times // 2 + 1, math.ceil(edges[1] / spacing - 1e-9))
    return (first, end) if first < end else None
