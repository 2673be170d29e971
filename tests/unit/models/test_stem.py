"""The Conformer's stem: its algorithms compute the same two layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from raypipe.models.stem import Stem, fast_length

SHAPES = [(3, 5, 40, 4, 7), (2, 1, 41, 3, 8), (4, 7, 101, 6, 1), (1, 3, 16, 2, 16), (2, 129, 200, 8, 25)]


def upstream_of(y: Tensor) -> Tensor:
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype)


def run_stem(stem: Stem, x_BCT: Tensor) -> list[Tensor]:
    y = stem(x_BCT)
    return [y, *torch.autograd.grad(y, list(stem.parameters()), upstream_of(y))]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("algorithm", ["fourier", "direct"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_stem_equals_the_two_layers(
    shape: tuple[int, ...], algorithm: str, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(1)
    batch, channels, times, filters, kernel = shape
    stem = Stem(channels, times, filters=filters, kernel=kernel, algorithm="reference").to(dtype)
    x_BCT = torch.randn(batch, channels, times, dtype=dtype)
    expected = run_stem(stem.double(), x_BCT.double())
    stem.to(dtype).algorithm = algorithm
    for got, want in zip(run_stem(stem, x_BCT), expected, strict=True):
        assert got.shape == want.shape and got.dtype == dtype
        assert (got.double() - want).abs().max() <= tolerance * want.abs().max()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_of_windows_is_that_of_the_two_layers(shape: tuple[int, ...]) -> None:
    batch, channels, times, filters, kernel = shape
    stem = Stem(channels, times, filters=filters, kernel=kernel).double()
    x_BCT = torch.randn(batch, channels, times, dtype=torch.float64)
    gradients = []
    for algorithm, training in (("reference", True), ("fourier", True), ("fourier", False)):
        stem.train(training).algorithm = algorithm
        x = x_BCT.clone().requires_grad_()
        y = stem(x)
        gradients.append(torch.autograd.grad(y, x, upstream_of(y))[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradients[2], gradients[0], rtol=1e-10, atol=1e-10)


def test_outputs_do_not_wrap_around() -> None:
    """An impulse in the last sample must reach the last output only, not wrap around to the first."""
    stem = Stem(1, 30, filters=2, kernel=6).double()
    x_BCT = torch.zeros(1, 1, 30, dtype=torch.float64)
    x_BCT[..., -1] = 1.0
    y_BFT = stem(x_BCT) - stem(torch.zeros_like(x_BCT))
    assert y_BFT[..., :-1].abs().max() < 1e-14 < y_BFT[..., -1].abs().min()


def test_stem_keeps_its_precision_through_dtype_changes() -> None:
    stem = Stem(3, 20, filters=2, kernel=4).float().double()
    x_BCT = torch.randn(2, 3, 20, dtype=torch.float64)
    fourier = stem(x_BCT)
    stem.algorithm = "reference"
    torch.testing.assert_close(fourier, stem(x_BCT), rtol=1e-12, atol=1e-12)


def test_stem_shapes_are_the_two_layers() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in Stem(22, 100, filters=40, kernel=25).state_dict().items()}
    assert shapes == {
        "temporal.weight": (40, 1, 1, 25),
        "temporal.bias": (40,),
        "spatial.weight": (40, 40, 22, 1),
        "spatial.bias": (40,),
    }


def test_an_unknown_algorithm_is_refused() -> None:
    with pytest.raises(ValueError, match="fourier, direct, reference"):
        Stem(1, 9, kernel=2, algorithm="fft")(torch.zeros(1, 1, 9))


def test_fast_length_is_the_smallest_even_smooth_number() -> None:
    smooth = sorted(
        2**a * 3**b * 5**c * 7**d for a in range(1, 10) for b in range(7) for c in range(5) for d in range(4)
    )
    for n in range(1, 500):
        assert fast_length(n) == next(m for m in smooth if m >= n)
    assert (fast_length(200), fast_length(401)) == (200, 420)
