"""AdamW without torch's compiler, the learning rate, and the moving average of weights."""

from __future__ import annotations

import copy
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from raypipe.core.config import InitConfig
from raypipe.core.model_config import MODELS
from raypipe.models.from_config import build_model
from raypipe.training.finetuning import parameter_groups
from raypipe.training.optim import AdamW, Ema, lr_factor, norm_parameters

ROOT = Path(__file__).parents[3]

EPOCH = """
import sys
import numpy as np
from raypipe.training.stacked_trainer import StackedTrainer
from tests.support.toys import ToyWindows, fold_trainer, tiny

folds = [
    fold_trainer(tiny(sam__name="sam", optim__ema=0.9), ToyWindows(), np.arange(40), np.arange(40, 64), fold=fold)
    for fold in range(2)
]
for fold in folds:
    fold.run_epoch()
    fold.load_state_dict(fold.state_dict())
StackedTrainer(folds).run_epoch()
print([name for name in ("torch._dynamo", "sympy", "sklearn") if name in sys.modules])
"""


def test_the_same_path_as_torchs_to_the_bit() -> None:
    torch.manual_seed(0)
    models = [torch.nn.Linear(5, 3)]
    models.append(copy.deepcopy(models[0]))
    ours = AdamW(models[0].parameters(), lr=1e-2, betas=(0.8, 0.9), weight_decay=0.1)
    theirs = torch.optim.AdamW(models[1].parameters(), lr=1e-2, betas=(0.8, 0.9), weight_decay=0.1, fused=True)
    for step in range(5):
        for model, optimizer in zip(models, (ours, theirs), strict=True):
            optimizer.zero_grad()
            model(torch.full((2, 5), float(step))).square().sum().backward()
            optimizer.step()
        ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        assert a.equal(b) and a.requires_grad


def test_gradients_in_another_memory_layout_give_the_same_step() -> None:
    """torch's fused kernel ignores strides."""
    torch.manual_seed(0)
    a, b = (torch.nn.Parameter(torch.zeros(3, 4, dtype=torch.float64)) for _ in range(2))
    gradient = torch.randn(4, 3, dtype=torch.float64).t()
    a.grad, b.grad = gradient, gradient.contiguous()
    for parameter in (a, b):
        AdamW([parameter], lr=1e-2).step()
    assert a.equal(b)
    torch.testing.assert_close(a.detach(), -1e-2 * gradient.sign(), rtol=1e-4, atol=0)


def test_training_imports_no_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", EPOCH], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


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


def test_a_weight_that_is_not_trained_is_no_average():
    """As a mask of minus infinity, whose average with itself is no number."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = nn.Parameter(torch.tensor([[0.0, -torch.inf], [0.0, 0.0]]), requires_grad=False)
    ema = Ema(model, 0.9)
    ema.update(model)
    assert torch.equal(ema.state_dict()["average"]["1.weight"], model[1].weight)


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


def test_resumed_average_equals_an_uninterrupted_one() -> None:
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


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if not model.closed_form])
def test_weights_decay_and_biases_and_norms_do_not(name) -> None:
    model = build_model(MODELS[name](), n_channels=3, n_times=300, n_outputs=2, sfreq=100)
    groups = parameter_groups(model, InitConfig())
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert sorted(map(id, grouped)) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    for parameter in grouped:
        parameter.grad = torch.zeros_like(parameter)
    AdamW(groups, lr=0.1, weight_decay=0.5).step()
    norms = {id(parameter) for parameter in norm_parameters(model)}
    for key, after in model.named_parameters():
        kept = not after.requires_grad or key.endswith("bias") or id(after) in norms or key == "places.unknown"
        assert after.equal(before[key]) == (kept or not before[key].any()), key
        if not kept:
            torch.testing.assert_close(after, 0.95 * before[key])


class Own(nn.Module):
    """Norms and biases of more than one dimension, as networks of one's own may have; names tell what decays."""

    def __init__(self) -> None:
        super().__init__()
        self.decays = nn.ModuleList([nn.Linear(4, 4, bias=False), nn.Conv1d(4, 4, 3, bias=False)])
        self.kept = nn.ModuleList([nn.LayerNorm((4, 8)), nn.RMSNorm((4, 8)), nn.GroupNorm(2, 4), nn.BatchNorm1d(4)])
        self.channel_bias = nn.Parameter(torch.ones(1, 4, 1))
        self.kept_factor = nn.Parameter(torch.ones(()))


def test_norms_and_biases_of_any_shape_do_not_decay() -> None:
    model = Own()
    groups = parameter_groups(model, InitConfig())
    decay = {id(p): group.get("weight_decay") for group in groups for p in group["params"]}
    found = {name: decay[id(p)] for name, p in model.named_parameters()}
    assert found == {name: None if name.startswith("decays") else 0.0 for name in found} and len(found) == 11
