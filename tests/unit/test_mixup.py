from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from raypipe.config import MixupConfig
from raypipe.mixup import mix

NAMES = st.sampled_from(["mixup", "cutmix"])
ALPHAS = st.floats(0.05, 8.0)
SEEDS = st.integers(0, 2**32 - 1)


def tagged(n: int = 9, times: int = 23) -> tuple[Tensor, Tensor]:
    """Windows that hold their own row number everywhere: a mixed value tells what went into it."""
    y = torch.arange(n, dtype=torch.float64)
    return y[:, None, None].repeat(1, 2, times), y


def mixed(name: Any, alpha: float, seed: int, **options: Any) -> tuple[Tensor, Tensor]:
    x, y = tagged()
    cfg = MixupConfig(name=name, alpha=alpha)
    if options.get("kind") == "classification":
        y = y.long()
    return mix(cfg, x, y, rng=np.random.default_rng(seed), **{"kind": "regression", **options})


@given(NAMES, ALPHAS, SEEDS)
def test_target_follows_the_window(name: str, alpha: float, seed: int) -> None:
    """Target and window mix the same partner by the same weight: for tagged windows the mean IS the target."""
    x, y = mixed(name, alpha, seed)
    torch.testing.assert_close(x.mean((1, 2)), y, rtol=0, atol=1e-12)
    assert y.min() >= 0 and y.max() <= 8


@given(NAMES, ALPHAS, SEEDS)
def test_shares_follow_the_window(name: str, alpha: float, seed: int) -> None:
    x, shares = mixed(name, alpha, seed, kind="classification", n_classes=11)
    assert shares.shape == (9, 11) and shares.dtype == x.dtype
    torch.testing.assert_close(shares.sum(1), torch.ones(9).double())
    assert shares.min() >= 0 and shares.max() <= 1 and ((shares > 0).sum(1) <= 2).all()
    torch.testing.assert_close(x.mean((1, 2)), shares @ torch.arange(11).double(), rtol=0, atol=1e-12)


@given(ALPHAS, SEEDS)
def test_cutmix_takes_one_stretch_in_all_channels(alpha: float, seed: int) -> None:
    x, _ = mixed("cutmix", alpha, seed)
    assert torch.equal(x[:, 0], x[:, 1])
    foreign = (x[:, 0] != torch.arange(9)[:, None]).int()
    assert (foreign.diff(dim=1).abs().sum(1) <= 2).all()
    edges = torch.nn.functional.pad(foreign, (1, 1)).diff(dim=1)
    assert ((edges == 1).sum(1) <= 1).all()
    assert all(len(row.unique()) <= 2 for row in x[:, 0])


@given(NAMES, SEEDS)
def test_one_generator_decides(name: str, seed: int) -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index,union-attr]  # noqa: NPY002
    first, second = mixed(name, 0.3, seed), mixed(name, 0.3, seed)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])  # type: ignore[index]  # noqa: NPY002


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_input_is_not_changed(name: Any) -> None:
    x, y = tagged()
    before = x.clone(), y.clone()
    out = mix(MixupConfig(name=name), x, y, rng=np.random.default_rng(1), kind="regression")
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])
    assert not torch.equal(out[0], x) and out[0].data_ptr() != x.data_ptr() and out[1].data_ptr() != y.data_ptr()


def test_none_draws_nothing() -> None:
    rng = np.random.default_rng(1)
    x, y = tagged()
    out = mix(MixupConfig(), x, y, rng=rng, kind="regression")
    assert out[0] is x and out[1] is y
    assert rng.bit_generator.state == np.random.default_rng(1).bit_generator.state


def test_prob_is_the_share_of_batches() -> None:
    rng = np.random.default_rng(0)
    x, y = tagged(4, 3)
    cfg = MixupConfig(name="mixup", prob=0.25)
    mixes = [mix(cfg, x, y, rng=rng, kind="regression")[0] is not x for _ in range(1000)]
    assert 0.2 < np.mean(mixes) < 0.3


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_weights_are_beta_distributed(name: Any) -> None:
    x = torch.tensor([0.0, 1.0]).double()[:, None, None].repeat(2000, 1, 200)
    rng = np.random.default_rng(0)
    y = torch.arange(4000).double()
    _, out = mix(MixupConfig(name=name, alpha=0.5), x, y, rng=rng, kind="regression")
    partner = np.random.default_rng(0)
    partner.random()
    order = partner.permutation(4000)
    other = torch.from_numpy(order).double()
    moved = other != y
    kept = ((out - other) / (y - other))[moved]
    assert kept.mean().item() == pytest.approx(0.5, abs=0.03)
    assert kept.var().item() == pytest.approx(0.125, abs=0.01)  # 1 / (4 (2 alpha + 1))


def test_shapes_are_checked_and_single_windows_survive() -> None:
    x, y = tagged()
    with pytest.raises(ValueError, match="expected targets"):
        mix(MixupConfig(name="mixup"), x, y[:, None], rng=np.random.default_rng(0), kind="regression")
    out = mix(MixupConfig(name="cutmix"), x[:1], y[:1], rng=np.random.default_rng(0), kind="regression")
    assert torch.equal(out[0], x[:1]) and torch.equal(out[1], y[:1])


def test_dtypes_are_kept() -> None:
    x, y = tagged()
    out = mix(MixupConfig(name="mixup"), x.float(), y.float(), rng=np.random.default_rng(0), kind="regression")
    assert out[0].dtype == out[1].dtype == torch.float32
