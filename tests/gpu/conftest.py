"""Tests of what only a CUDA device shows. `make gpu` runs them; elsewhere each is skipped.

They need torch, pytest and pydantic, but not Ray, Optuna, MNE or Typer.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

NO_DEVICE = "no CUDA device"


@pytest.hookimpl(tryfirst=True)  # before pytest selects by markers
def pytest_collection_modifyitems(items):
    """Mark the tests of this folder, and skip them where no CUDA device is."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason=NO_DEVICE))


@pytest.fixture(autouse=True)
def free_memory():
    """Give a test all memory of the device, and start its peak at what is in use."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    yield
    torch.cuda.empty_cache()
