from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import pytorch_optimizer
import torch
from torch import Tensor, nn

from raypipe.models import Conformer
from raypipe.sam import Sam, frozen_statistics, optimizer_step


def network(*middle: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), *middle, nn.Tanh(), nn.Linear(8, 1))


def data(n: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 5, generator=generator), torch.randn(n, generator=generator)


def closure_of(model: nn.Module, calls: list[Tensor] | None = None) -> Callable[[], Tensor]:
    x, y = data()

    def closure() -> Tensor:
        out: Tensor = model(x).squeeze(1)
        if calls is not None:
            calls.append(out.detach().clone())
        return (out - y).square().mean()

    return closure


def adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("adaptive", "rho"), [(False, 0.05), (False, 0.5), (True, 0.5)])
def test_same_path_as_pytorch_optimizer(adaptive: bool, rho: float) -> None:
    ours = network()
    theirs = copy.deepcopy(ours)
    optimizer = adamw(ours)
    sam = Sam(optimizer, rho=rho, adaptive=adaptive)
    oracle = pytorch_optimizer.SAM(
        theirs.parameters(), torch.optim.AdamW, rho=rho, adaptive=adaptive, lr=1e-2, weight_decay=0.1
    )
    closure, theirs_closure = closure_of(ours), closure_of(theirs)

    def twice() -> Tensor:
        oracle.zero_grad()
        loss = theirs_closure()
        loss.backward()
        return loss

    for _ in range(10):
        step = optimizer_step(closure, ours, optimizer, sam)
        loss = twice()
        oracle.step(twice)
        assert step.loss == pytest.approx(loss.item(), abs=1e-6) and not step.skipped
    plain = network()
    optimizer = adamw(plain)
    for _ in range(10):
        optimizer_step(closure_of(plain), plain, optimizer)
    for a, b, c in zip(ours.parameters(), theirs.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
        assert not torch.allclose(a, c, rtol=0, atol=1e-6)  # the perturbation did something


@pytest.mark.parametrize("adaptive", [False, True])
def test_perturbation_has_radius_rho(adaptive: bool) -> None:
    model = network()
    before = weights(model)
    sam = Sam(adamw(model), rho=0.3, adaptive=adaptive)
    closure_of(model)().backward()  # type: ignore[no-untyped-call]
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    assert sam.perturb() and sam.perturbed
    moves = [p.detach() - b for p, b in zip(model.parameters(), before, strict=True)]
    if adaptive:  # the radius is measured in units of each weight
        moves = [m / b.abs() for m, b in zip(moves, before, strict=True)]
    assert math.sqrt(sum(m.square().sum().item() for m in moves)) == pytest.approx(0.3, rel=1e-3)
    assert all((m * g >= -1e-9).all() for m, g in zip(moves, grads, strict=True))  # uphill
    sam.restore()
    assert same(weights(model), before) and not sam.perturbed


def test_zero_gradient_is_harmless() -> None:
    model = network()
    before = weights(model)
    sam = Sam(adamw(model), rho=0.05)
    assert sam.perturb()  # no gradients at all
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    assert sam.perturb()
    assert same(weights(model), before)
    sam.restore()


def test_state_is_the_base_optimizers_and_never_mid_step() -> None:
    model = network()
    optimizer = adamw(model)
    sam = Sam(optimizer, rho=0.05)
    optimizer_step(closure_of(model), model, optimizer, sam)
    state = sam.state_dict()
    assert set(state["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}
    other = Sam(adamw(network()), rho=0.05)
    other.load_state_dict(state)
    torch.testing.assert_close(other.state_dict()["state"], state["state"])
    closure_of(model)().backward()  # type: ignore[no-untyped-call]
    sam.perturb()
    with pytest.raises(RuntimeError, match="wrong weights"):
        sam.state_dict()
    with pytest.raises(RuntimeError, match="perturbed already"):
        sam.perturb()


def test_both_passes_drop_the_same() -> None:
    model = network(nn.Dropout(0.5))
    calls: list[Tensor] = []
    optimizer = adamw(model)
    torch.manual_seed(3)
    optimizer_step(closure_of(model, calls), model, optimizer, Sam(optimizer, rho=1e-9))
    after_sam = torch.get_rng_state()
    torch.testing.assert_close(calls[0], calls[1], rtol=0, atol=1e-6)
    torch.manual_seed(3)
    closure_of(model)()
    assert torch.equal(torch.get_rng_state(), after_sam)  # a step costs one pass's worth of chance


def test_running_statistics_see_the_first_pass_only() -> None:
    model = network(nn.BatchNorm1d(8), nn.BatchNorm1d(8, momentum=None))
    once = copy.deepcopy(model)
    closure_of(once)()
    optimizer = adamw(model)
    optimizer_step(closure_of(model), model, optimizer, Sam(optimizer, rho=0.5))
    for (name, a), (_, b) in zip(model.named_buffers(), once.named_buffers(), strict=True):
        assert torch.equal(a, b), name
    assert all(m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm1d))


def test_frozen_statistics() -> None:
    model = network(nn.BatchNorm1d(8), nn.BatchNorm1d(8, track_running_stats=False))
    frozen = copy.deepcopy(model).eval()
    x, _ = data()
    expected, expected_frozen = model(x), frozen(x)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyError), frozen_statistics(model), frozen_statistics(frozen):
        assert torch.equal(model(x), expected) and torch.equal(frozen(x), expected_frozen)
        model(x * math.inf)
        raise KeyError
    torch.testing.assert_close(model.state_dict(), before)
    assert [m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm1d)] == [True, False]


@pytest.mark.parametrize("use_sam", [False, True])
@pytest.mark.parametrize("bad_call", [1, 2])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_not_finite_skips_the_step(use_sam: bool, bad_call: int, bad: float) -> None:
    model = network()
    optimizer = adamw(model)
    sam = Sam(optimizer, rho=0.05) if use_sam else None
    optimizer_step(closure_of(model), model, optimizer, sam, clip=1.0)
    before, state = weights(model), copy.deepcopy(optimizer.state_dict())
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        return closure_of(model)() * (bad if calls == bad_call else 1.0)

    step = optimizer_step(closure, model, optimizer, sam, clip=1.0)
    expected_skip = use_sam or bad_call == 1
    assert step.skipped == expected_skip
    if expected_skip:
        assert same(weights(model), before)
        torch.testing.assert_close(optimizer.state_dict(), state)
        assert all(p.grad is None for p in model.parameters())
    assert sam is None or not sam.perturbed


def test_infinite_gradient_of_a_finite_loss_skips() -> None:
    weight = nn.Parameter(torch.zeros(1))
    model = nn.ParameterList([weight])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for sam in (None, Sam(optimizer, rho=0.1)):
        step = optimizer_step(lambda: weight.sqrt().sum(), model, optimizer, sam)
        assert step.skipped and step.loss == 0.0 and weight.item() == 0.0


def test_exception_in_the_second_pass_restores_the_weights() -> None:
    model = network(nn.BatchNorm1d(8))
    optimizer = adamw(model)
    sam = Sam(optimizer, rho=0.5)
    before = weights(model)
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            assert not same(weights(model), before)
            raise KeyError("out of memory, say")
        return closure_of(model)()

    with pytest.raises(KeyError):
        optimizer_step(closure, model, optimizer, sam)
    assert same(weights(model), before) and not sam.perturbed
    assert model[1].track_running_stats  # type: ignore[index,union-attr]


def test_only_the_second_gradient_is_clipped() -> None:
    """With plain SGD of rate 1 the step IS the clipped gradient, taken where the unclipped one of pass one leads."""
    model = network()
    before = weights(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    step = optimizer_step(closure_of(model), model, optimizer, Sam(optimizer, rho=0.5), clip=1e-3)
    moved = [b - p.detach() for p, b in zip(model.parameters(), before, strict=True)]
    assert math.sqrt(sum(m.square().sum().item() for m in moved)) == pytest.approx(1e-3, rel=1e-2)
    assert step.grad_norm > 1e-2

    by_hand = network()
    closure_of(by_hand)().backward()  # type: ignore[no-untyped-call]
    Sam(torch.optim.SGD(by_hand.parameters(), lr=1.0), rho=0.5).perturb()
    by_hand.zero_grad()
    closure_of(by_hand)().backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(by_hand.parameters(), 1e-3)
    assert step.grad_norm == pytest.approx(norm.item(), rel=1e-5)
    for m, p in zip(moved, by_hand.parameters(), strict=True):
        torch.testing.assert_close(m, p.grad, rtol=1e-2, atol=1e-7)


def test_no_clip_leaves_gradients_alone() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    optimizer_step(closure_of(model), model, optimizer)
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    closure_of(model)().backward()  # type: ignore[no-untyped-call]
    assert same(grads, [p.grad for p in model.parameters() if p.grad is not None])


def test_sam_of_another_optimizer_is_refused() -> None:
    model = network()
    with pytest.raises(ValueError, match="another optimizer"):
        optimizer_step(closure_of(model), model, adamw(model), Sam(adamw(model), rho=0.1))


@pytest.mark.parametrize("adaptive", [False, True])
def test_conformer_learns_under_sam(adaptive: bool) -> None:
    torch.manual_seed(0)
    model = Conformer(4, 40, 1, kernel=5, pool=10, stride=5, filters=8, heads=2, depth=1, hidden=16, dropout=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    sam = Sam(optimizer, rho=1.0 if adaptive else 0.05, adaptive=adaptive)
    x_BCT, y_B = torch.randn(32, 4, 40), torch.randn(32)
    z = model.prepare(x_BCT)  # once for both passes and all steps

    def closure() -> Tensor:
        return (model(z, prepared=True).squeeze(1) - y_B).square().mean()  # type: ignore[no-any-return]

    losses = [optimizer_step(closure, model, optimizer, sam, clip=1.0).loss for _ in range(40)]
    assert losses[-1] < 0.75 * losses[0]
    assert model.batch_norm.num_batches_tracked == 40
