"""The share of a GPU that Ray reserves for a worker."""

from __future__ import annotations

import math

PARTS = 10_000
"""Parts of a GPU, or of a core, that Ray counts."""


def reserved_gpu_share(share: float) -> float:
    """Return the share that is reserved for a worker: the largest of which as many workers fit on one GPU.

    Of 0.6 this is 1: one worker fits on a GPU, and what is left is of no use. Ray sums the GPUs of a machine when it
    chooses one, so three workers of 0.6 would be sent to a machine with two GPUs, and wait there for ever.

    Parameters
    ----------
    share
        Share of a GPU that a worker asks for, at most 1; it is also its share of the memory.
    """
    if not share:
        return 0.0
    workers = max(1, min(PARTS, math.floor(1 / share + 1e-9)))  # 1 / (1 / 93) is less than 93
    return PARTS // workers / PARTS
