from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from raypipe.training.optim import Ema, lr_factor


@given(st.integers(1, 400), st.floats(0, 1), st.sampled_from(["cosine", "constant"]))
def test_rises_to_the_peak_then_never_rises(total: int, warmup: float, kind: str) -> None:
    factors = [lr_factor(step, total, warmup, kind) for step in range(total)]  # type: ignore[arg-type]
    assert all(0 < factor <= 1 for factor in factors)
    rising = round(warmup * total)
    assert all(a < b for a, b in pairwise(factors[: rising + 1]))
    assert all(a >= b for a, b in pairwise(factors[rising:]))
    if rising < total:
        assert factors[rising] == 1.0


def test_shape() -> None:
    assert [lr_factor(step, 10, 0.4) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert lr_factor(7, 10, 0.4) == pytest.approx(0.5)
    assert lr_factor(10, 10, 0.4) == lr_factor(99, 10, 0.4) == pytest.approx(0.0)
    assert lr_factor(99, 10, 0.4, "constant") == 1.0


@pytest.mark.parametrize(("step", "total", "warmup"), [(-1, 10, 0.1), (0, 0, 0.1), (0, 10, 1.5)])
def test_out_of_range(step: int, total: int, warmup: float) -> None:
    with pytest.raises(ValueError, match="out of range"):
        lr_factor(step, total, warmup)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


def train(model: nn.Module, ema: Ema, steps: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()
        ema.update(model)


def test_average_is_the_recursion_and_buffers_are_live() -> None:
    model = network()
    ema = Ema(model, 0.3)
    weight = model[0].weight.detach().clone()  # type: ignore[index,union-attr]
    for t in range(1, 30):
        train(model, ema, 1)
        decay = min(0.3, (1 + t) / (10 + t))
        weight = decay * weight + (1 - decay) * model[0].weight.detach()  # type: ignore[index,union-attr]
    average = ema.state_dict()["average"]
    torch.testing.assert_close(average["0.weight"], weight)
    assert average["1.num_batches_tracked"] == 29
    assert torch.equal(average["1.running_var"], model[1].running_var)  # type: ignore[index]


def test_no_decay_follows_the_model() -> None:
    model = network()
    ema = Ema(model, 0.0)
    train(model, ema, 3)
    assert all(torch.equal(ema.state_dict()["average"][name], t) for name, t in model.state_dict().items())


def test_swapped_puts_everything_back() -> None:
    model = network()
    ema = Ema(model, 0.9)
    train(model, ema, 5)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyError), ema.swapped(model):
        assert all(torch.equal(ema.state_dict()["average"][name], t) for name, t in model.state_dict().items())
        assert not torch.equal(model.state_dict()["0.weight"], before["0.weight"])
        raise KeyError
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_resumed_average_goes_on_as_if_nothing_happened() -> None:
    torch.manual_seed(0)
    model = network()
    ema = Ema(model, 0.99)
    train(model, ema, 4)
    saved = ema.state_dict()
    other = copy.deepcopy(model)
    chance = torch.get_rng_state()
    train(model, ema, 4)
    resumed = Ema(network(), 0.99)
    resumed.load_state_dict(saved)
    torch.set_rng_state(chance)
    train(other, resumed, 4)
    assert resumed.steps == ema.steps == 8
    assert saved["steps"] == 4
    for name, tensor in ema.state_dict()["average"].items():
        assert torch.equal(resumed.state_dict()["average"][name], tensor)


def test_misuse() -> None:
    with pytest.raises(ValueError, match="another model"):
        Ema(network(), 0.9).load_state_dict(Ema(nn.Linear(2, 2), 0.9).state_dict())
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        Ema(network(), 1.0)
