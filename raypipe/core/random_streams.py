"""Random numbers that code of users draws from global generators, made to follow from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


@contextmanager
def seeded_numbers(seed: int) -> Iterator[None]:
    """Seed the global generators of NumPy and Python in the context, and restore them after it.

    Parameters
    ----------
    seed
        0 or more.
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and Python in the context, and restore them after it.

    Parameters
    ----------
    seed
        0 or more.
    device
        Its generator is seeded too, if it is a GPU.
    """
    import torch  # takes a second, which looking at a run need not

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), seeded_numbers(seed):
        torch.manual_seed(seed)
        yield
