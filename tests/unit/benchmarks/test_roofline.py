"""Operations and bytes of operators, and the floors made from them."""

from __future__ import annotations

import argparse
import math
from functools import partial

import pytest
import torch

from benchmarks.roofline import Peaks, count, count_at, floors
from benchmarks.step import METHODS, as_on_gpu, step_on_cpu

PEAKS = Peaks({torch.float32: 1e9, torch.bfloat16: 4e9}, bandwidth=1e9)


@pytest.mark.parametrize(
    ("work", "flops", "size"),
    [
        (lambda a, b: a @ b, 2 * 8 * 16 * 4, 4 * (8 * 16 + 16 * 4 + 8 * 4)),
        (lambda a, b: a + a, 0, 4 * 3 * 8 * 16),
        (lambda a, b: a.add_(1.0), 0, 4 * 2 * 8 * 16),
        (lambda a, b: a.zero_(), 0, 4 * 8 * 16),
        (lambda a, b: a.copy_(torch.ops.aten.detach(a[:1]).expand(8, 16)), 0, 4 * (16 + 8 * 16)),
        (lambda a, b: torch._foreach_add_([a, a.clone()], 1.0), 0, 4 * (2 + 2 * 2) * 8 * 16),
    ],
    ids=["product", "sum", "in place", "overwritten", "expanded", "foreach"],
)
def test_operations_and_bytes_of_operators(work, flops, size):
    operations = count(lambda: work(torch.ones(8, 16), torch.ones(16, 4)))
    operations = [each for each in operations if each.name != "ones" and each.name != "fill_"]
    assert sum(each.flops for each in operations) == flops
    assert sum(each.bytes for each in operations) == size


def test_views_and_allocations_cost_nothing():
    x = torch.ones(8, 16)
    assert count(lambda: (x.view(16, 8).T[1:], torch.empty(4), x.expand(2, 8, 16), x.detach())) == []


def test_a_product_of_complex_numbers_is_four_of_real_ones_and_a_transform_has_its_usual_operations():
    a = torch.ones(2, 8, 16, dtype=torch.complex64)
    (product,) = count(lambda: torch.bmm(a, a.transpose(1, 2)))
    assert product.flops == 4 * 2 * 2 * 8 * 16 * 8
    (transform,) = count(lambda: torch.fft.fft(a))
    assert transform.flops == 5 * 2 * 8 * 16 * math.log2(16)


def test_a_backward_pass_is_counted_also_of_stacked_models():
    w, x = torch.ones(3, 4, 4, requires_grad=True), torch.ones(3, 2, 4)
    step = lambda: torch.func.vmap(torch.matmul)(x, w).sum().backward()  # noqa: E731
    assert sum(each.flops for each in count(step)) == 2 * (2 * 3 * 2 * 4 * 4)


def test_floors_take_the_slower_of_arithmetic_and_memory_of_each_operator():
    def step():
        a = torch.ones(64, 64)  # 16 KiB written
        (a @ a).bfloat16()

    found = floors(count(step), PEAKS)
    product, passes = 2 * 64**3 / 1e9, 64 * 64 * (4 + 4 + 2) / 1e9
    assert found.all_at_peak == pytest.approx(product)
    assert found.by_kernel == pytest.approx(product + passes)
    assert next(iter(found.largest)) == "mm"
    assert found.figures(2 * found.by_kernel)["share of the floor by kernel"] == pytest.approx(0.5)


def test_small_operators_take_a_launch_at_least():
    peaks = Peaks(PEAKS.flops, PEAKS.bandwidth, launch=1.0)
    a = torch.ones(4)
    assert floors(count(lambda: a + a + a), peaks).with_launches == 2.0
    assert floors(count(lambda: a + a + a), PEAKS).with_launches == floors(count(lambda: a + a + a), PEAKS).by_kernel


def test_half_precision_has_its_own_peak():
    a = torch.ones(64, 64, dtype=torch.bfloat16)
    assert floors(count(lambda: a @ a), PEAKS).all_at_peak == pytest.approx(2 * 64**3 / 4e9)


def test_counts_of_a_large_batch_follow_from_small_ones():
    def step_of(batch):
        x, w = torch.ones(batch, 6), torch.ones(6, 4)
        return lambda: (x @ w).T @ (x @ w) + ((x @ x.T).sum() + w.sum())

    expected = count(step_of(100))
    found = count_at(step_of, 100)
    assert [each.name for each in found] == [each.name for each in expected]
    for figure in ("flops", "bytes"):
        of = [getattr(each, figure) for each in expected]
        assert [getattr(each, figure) for each in found] == pytest.approx(of)
    with pytest.raises(ValueError, match="differ"):
        count_at(lambda batch: lambda: [torch.ones(2) + 1 for _ in range(batch)], 100)


def test_counts_of_a_training_step_follow_from_small_batches():
    args = argparse.Namespace(channels=4, samples=200, precision="float32", device="cpu")
    step_of = partial(step_on_cpu, args, METHODS["SAM"], "fourier", 2)
    step = step_of(24)
    step()
    expected, found = count(step), count_at(step_of, 24)
    assert [each.name for each in found] == [each.name for each in expected]
    assert sum(each.flops for each in found) == pytest.approx(sum(each.flops for each in expected))
    assert sum(each.bytes for each in found) == pytest.approx(sum(each.bytes for each in expected))


def test_operators_of_a_gpus_step_are_those_of_its_own_path():
    args = argparse.Namespace(channels=4, samples=150, precision="float32", device="cpu")

    def names():
        return [each.name for each in count(step_on_cpu(args, METHODS["SAM"], "fourier", 1, 4))]

    with as_on_gpu():
        assert torch.ones(1).is_cuda and torch.nn.Parameter(torch.ones(1)).is_cuda
        on_gpu = names()
    assert not torch.ones(1).is_cuda
    assert "avg_pool2d" in on_gpu and "avg_pool2d" not in names(), "a CPU takes means by a product"
