"""Copies from the host to the device that computes, for which the host does not wait."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(values: Tensor | NDArray[Any], device: torch.device) -> Tensor:
    """Return values on a device, as they are on a CPU; on a GPU through pinned memory, whose copy runs by itself."""
    tensor = torch.as_tensor(values)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
