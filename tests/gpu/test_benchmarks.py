"""The device computes as fast as benchmarks assume."""

from __future__ import annotations

import torch

from benchmarks.timing import matmul_peak


def test_products_in_bfloat16_are_faster_than_in_float32():
    assert matmul_peak("cuda", torch.bfloat16) > matmul_peak("cuda", torch.float32)
