"""Settings of torch under which a GPU computes the same numbers, bit for bit, whenever it is asked to."""

from __future__ import annotations

import os

import torch

WORKSPACE = ":4096:8"
"""Fixed workspaces of cuBLAS, without which its sums may be added in another order."""


def use_deterministic_algorithms(device: torch.device) -> None:
    """Make a GPU compute the same numbers after a restart; on a CPU, which does so anyway, change nothing.

    TF32 is off. It would round the products of float32 to 10 bits, in cuDNN's convolutions by default. An operation
    without a deterministic algorithm is computed all the same, with torch's warning.
    """
    if device.type != "cuda":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", WORKSPACE)  # read when a process multiplies its first matrices
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # for debugging only
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
