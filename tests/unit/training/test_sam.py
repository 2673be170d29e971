from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import pytorch_optimizer
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from raypipe.core.config import SamConfig, TrialConfig
from raypipe.models.conformer import Conformer
from raypipe.training.optim import norm_parameters
from raypipe.training.sam import Method, Sam
from raypipe.training.step import StepResult, TrainState, frozen_statistics
from tests.unit.training.steps import optimizer_step

METHODS: list[Method] = ["sam", "asam", "looksam", "msam"]


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
    sam = Sam(optimizer, rho=rho, method="asam" if adaptive else "sam")
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
    sam = Sam(adamw(model), rho=0.3, method="asam" if adaptive else "sam")
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
    state = TrainState(model, optimizer, sam=sam)
    optimizer_step(closure_of(model), model, optimizer, sam)
    saved = state.state_dict()
    assert set(saved["optimizer"]["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}
    fresh = network()
    other = TrainState(fresh, adamw(fresh))
    other.load_state_dict(saved)
    torch.testing.assert_close(other.state_dict(), saved)
    closure_of(model)().backward()  # type: ignore[no-untyped-call]
    sam.perturb()
    with pytest.raises(RuntimeError, match="wrong weights"):
        state.state_dict()
    with pytest.raises(RuntimeError, match="perturbed already"):
        sam.perturb()


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
    with pytest.raises(KeyError), frozen_statistics([model, frozen]):
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
    """With plain SGD of rate 1 the step is the clipped gradient at the weights that the first pass perturbed."""
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
    sam = Sam(optimizer, rho=1.0 if adaptive else 0.05, method="asam" if adaptive else "sam")
    x_BCT, y_B = torch.randn(32, 4, 40), torch.randn(32)
    z = model.prepare(x_BCT)  # once for both passes and all steps

    def closure() -> Tensor:
        return (model(z, prepared=True).squeeze(1) - y_B).square().mean()  # type: ignore[no-any-return]

    losses = [optimizer_step(closure, model, optimizer, sam, clip=1.0).loss for _ in range(40)]
    assert losses[-1] < 0.75 * losses[0]
    assert model.batch_norm.num_batches_tracked == 40


# LookSAM, MSAM and SAM on some parameters, against the papers' formulas in float64, all parameters in one vector

Gradient = Callable[[Tensor], Tensor]
Rule = Callable[[int, Tensor, Gradient, Tensor], Tensor]


def batch(number: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + number)
    return torch.randn(12, 5, generator=generator).double(), torch.randn(12, generator=generator).double()


def loss_of(model: nn.Module, number: int) -> Tensor:
    x, y = batch(number)
    return (model(x).squeeze(1) - y).square().mean()  # type: ignore[no-any-return]


def vector(model: nn.Module) -> Tensor:
    return parameters_to_vector(model.parameters()).detach().clone()


def by_the_book(rule: Rule, numbers: Iterable[int]) -> Tensor:
    """Weights (steps, P) of AdamW with the gradient that `rule` makes of step, weights, gradient function, momentum."""
    weights = vector(network().double()).requires_grad_()
    optimizer = torch.optim.AdamW([weights], lr=1e-2, weight_decay=0.1)
    path = []
    for number in numbers:

        def gradient(at: Tensor, number: int = number) -> Tensor:
            model = network().double()
            vector_to_parameters(at, model.parameters())
            loss_of(model, number).backward()  # type: ignore[no-untyped-call]
            return parameters_to_vector([p.grad for p in model.parameters() if p.grad is not None])

        momentum = optimizer.state[weights].get("exp_avg", torch.zeros_like(weights))
        weights.grad = rule(number, weights.detach().clone(), gradient, momentum)
        optimizer.step()
        path.append(weights.detach().clone())
    return torch.stack(path)


def ours(numbers: Iterable[int], calls: list[int] | None = None, **options: Any) -> Tensor:
    """Weights (steps, P) of the same with `Sam`."""
    model = network().double()
    optimizer = adamw(model)
    sam = Sam(optimizer, **options)
    path = []
    for number in numbers:

        def closure(number: int = number) -> Tensor:
            if calls is not None:
                calls.append(number)
            return loss_of(model, number)

        assert not optimizer_step(closure, model, optimizer, sam).skipped and not sam.perturbed
        path.append(vector(model))
    return torch.stack(path)


def plain_rule(number: int, w: Tensor, gradient: Gradient, v: Tensor) -> Tensor:
    return gradient(w)


def sam_rule(number: int, w: Tensor, gradient: Gradient, v: Tensor) -> Tensor:
    g = gradient(w)
    return gradient(w + 0.2 * g / g.norm())


def looksam_rule(every: int, alpha: float, rho: float = 0.2) -> Rule:
    """Algorithm 1 of Liu et al. 2022."""
    g_v = torch.empty(0)

    def rule(number: int, w: Tensor, gradient: Gradient, v: Tensor) -> Tensor:
        nonlocal g_v
        g = gradient(w)
        if number % every:
            return g + alpha * g.norm() / g_v.norm() * g_v
        g_s = gradient(w + rho * g / g.norm())
        cosine = g @ g_s / (g.norm() * g_s.norm())
        g_v = g_s - g_s.norm() * cosine * g / g.norm()
        return g_s

    return rule


def msam_rule(number: int, w: Tensor, gradient: Gradient, v: Tensor) -> Tensor:
    return gradient(w - 0.5 * v / v.norm()) if v.any() else gradient(w)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def apart(a: Tensor, b: Tensor) -> bool:
    return (a - b).abs().max().item() > 1e-4


@pytest.mark.parametrize(("every", "alpha"), [(2, 0.7), (3, 0.2), (5, 1.5)])
def test_looksam_is_algorithm_1(every: int, alpha: float) -> None:
    calls: list[int] = []
    path = ours(range(11), calls, rho=0.2, method="looksam", every=every, alpha=alpha)
    close(path, by_the_book(looksam_rule(every, alpha), range(11)))
    assert [calls.count(number) for number in range(11)] == [1 if number % every else 2 for number in range(11)]
    close(path[0], by_the_book(sam_rule, range(1))[0])  # the first step is SAM's, those between are neither's
    assert apart(path, by_the_book(sam_rule, range(11))) and apart(path[1:], by_the_book(plain_rule, range(11))[1:])


def test_looksam_is_unmoved_by_the_scale_of_the_loss() -> None:
    """The part that is kept of small gradients is orthogonal to the plain gradient, too."""
    for scale in (1.0, 1e-7):
        model = network().double()
        sam = Sam(adamw(model), rho=0.2, method="looksam")
        (loss_of(model, 0) * scale).backward()  # type: ignore[no-untyped-call]
        plain = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        sam.perturb()
        model.zero_grad()
        (loss_of(model, 0) * scale).backward()  # type: ignore[no-untyped-call]
        sam.keep_orthogonal()
        kept, along = parameters_to_vector(sam._orthogonal.values()), parameters_to_vector(plain)
        assert abs(torch.cosine_similarity(kept, along, dim=0, eps=0.0).item()) < 1e-9


class Skipping(nn.Module):
    """Two layers of one shape, of which a step may leave one out (LayerDrop)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleDict({name: nn.Linear(3, 3, bias=False) for name in "ab"}).double()

    def gradients(self, used: str, number: int) -> dict[str, Tensor]:
        """Compute the gradients of a batch with the layers in `used` alone."""
        self.zero_grad()
        x = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
        torch.stack([self.layers[name](x).tanh() for name in used]).sum(0).square().mean().backward()  # type: ignore[no-untyped-call]
        return self.present()

    def present(self) -> dict[str, Tensor]:
        found = {name: self.layers[name].weight.grad for name in "ab"}
        return {name: grad.clone() for name, grad in found.items() if isinstance(grad, Tensor)}


@pytest.mark.parametrize("second", ["a", "b", "ab"])
@pytest.mark.parametrize("later", ["a", "b", "ab"])
@pytest.mark.parametrize("earlier", ["", "ab"])
def test_looksam_adds_a_kept_part_to_its_own_layer(second: str, later: str, earlier: str) -> None:
    """Layers that a step left out get no other layer's part, and none of an earlier second gradient."""
    model = Skipping()
    sam = Sam(adamw(model), rho=0.2, method="looksam", alpha=0.7)
    for number, used in enumerate(filter(None, [earlier, second])):
        plain = model.gradients(used, number)
        sam.perturb()
        sharp = model.gradients(used, number)
        sam.restore()
        sam.keep_orthogonal()
    g, h = (torch.cat([grads[name].flatten() for name in second]) for grads in (plain, sharp))
    v = dict(zip(second, (h - (h @ g) / (g @ g) * g).view(-1, 3, 3), strict=True))
    before = model.gradients(later, 5)
    sam.add_orthogonal()
    after = model.present()
    both = sorted(set(second) & set(later))
    assert after.keys() == before.keys() == set(later)
    for name in later:
        if name not in both:
            assert torch.equal(after[name], before[name])
            continue
        length, unit = (torch.stack([tensors[name] for name in both]).norm() for tensors in (before, v))
        close(after[name], before[name] + 0.7 * length / unit * v[name])


def test_looksam_keeps_what_both_passes_have() -> None:
    model = Skipping()
    sam = Sam(adamw(model), rho=0.2, method="looksam")
    model.gradients("ab", 0)
    sam.perturb()
    model.gradients("b", 0)
    sam.restore()
    sam.keep_orthogonal()
    before = model.gradients("ab", 1)
    sam.add_orthogonal()
    assert torch.equal(model.present()["a"], before["a"]) and apart(model.present()["b"], before["b"])


def test_restart_computes_a_second_gradient_again() -> None:
    """Nothing is kept: the steps that follow are those of a new `Sam`."""
    model = network().double()
    optimizer = adamw(model)
    sam = Sam(optimizer, rho=0.2, method="looksam", every=4)
    calls: list[int] = []

    def closure() -> Tensor:
        calls.append(1)
        return loss_of(model, len(passes))

    passes: list[int] = []
    for number in range(9):
        if number in (2, 7):
            sam.restart()
        assert sam.needs_second_pass == (number in (0, 2, 6, 7))
        before = len(calls)
        optimizer_step(closure, model, optimizer, sam)
        passes.append(len(calls) - before)
    assert passes == [2, 1, 2, 1, 1, 1, 2, 2, 1]
    copied, state = copy.deepcopy(model), copy.deepcopy(optimizer.state_dict())
    other = adamw(copied)
    other.load_state_dict(state)
    fresh = Sam(other, rho=0.2, method="looksam", every=4)
    sam.restart()
    assert sam.needs_second_pass and fresh.needs_second_pass
    for number in range(20, 23):
        optimizer_step(lambda number=number: loss_of(model, number), model, optimizer, sam)  # type: ignore[misc]
        optimizer_step(lambda number=number: loss_of(copied, number), copied, other, fresh)  # type: ignore[misc]
    assert torch.equal(vector(model), vector(copied))


@pytest.mark.parametrize("bad_call", [1, 2])
@pytest.mark.parametrize("earlier", [0, 2])
def test_looksam_keeps_nothing_of_a_second_gradient_that_was_skipped(bad_call: int, earlier: int) -> None:
    """The next step computes a second gradient again and is not affected."""
    model = network().double()
    optimizer = adamw(model)
    sam = Sam(optimizer, rho=0.2, method="looksam", every=2)
    for number in range(earlier):
        optimizer_step(lambda number=number: loss_of(model, number), model, optimizer, sam)  # type: ignore[misc]
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        return loss_of(model, 50) * (math.nan if calls == bad_call else 1.0)

    assert optimizer_step(closure, model, optimizer, sam).skipped and calls == bad_call
    calls = 10
    assert sam.needs_second_pass and not optimizer_step(closure, model, optimizer, sam).skipped and calls == 12
    assert not sam.needs_second_pass and not optimizer_step(closure, model, optimizer, sam).skipped and calls == 13


def test_msam_is_the_formula() -> None:
    """One pass per step, at weights moved against AdamW's first moment; the first step is a plain one."""
    calls: list[int] = []
    path = ours(range(10), calls, rho=0.5, method="msam")
    close(path, by_the_book(msam_rule, range(10)))
    assert calls == list(range(10))
    close(path[0], by_the_book(plain_rule, range(1))[0])
    assert apart(path, by_the_book(plain_rule, range(10)))


def test_msam_restores_the_weights_between_steps() -> None:
    """The pass is at radius rho from the weights before the step; a skipped step restores them."""
    model = network().double()
    optimizer = adamw(model)
    sam = Sam(optimizer, rho=0.5, method="msam")
    seen: list[Tensor] = []
    for number in range(5):
        before = vector(model)
        momentum = [optimizer.state[p]["exp_avg"].clone() for p in model.parameters() if p in optimizer.state]

        def closure(number: int = number) -> Tensor:
            seen.append(vector(model))
            return loss_of(model, number) * (math.inf if number == 3 else 1.0)

        step = optimizer_step(closure, model, optimizer, sam)
        assert not sam.perturbed and not sam.needs_second_pass
        moved = seen[-1] - before
        assert moved.norm().item() == pytest.approx(0.5 if number else 0.0, rel=1e-9)
        if momentum:
            assert torch.cosine_similarity(moved, parameters_to_vector(momentum), dim=0).item() == pytest.approx(-1.0)
        assert step.skipped == (number == 3) and (not step.skipped or torch.equal(vector(model), before))
    assert len(seen) == 5


def test_msam_continues_from_a_saved_state() -> None:
    """The momentum is part of the optimiser's saved state."""
    path = ours(range(8), rho=0.5, method="msam")
    model = network().double()
    optimizer = adamw(model)
    sam = Sam(optimizer, rho=0.5, method="msam")
    for number in range(8):
        if number == 4:
            weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
            model = network().double()
            model.load_state_dict(weights)
            optimizer = adamw(model)
            optimizer.load_state_dict(state)
            sam = Sam(optimizer, rho=0.5, method="msam")
        optimizer_step(lambda m=model, n=number: loss_of(m, n), model, optimizer, sam)  # type: ignore[misc]
    assert torch.equal(vector(model), path[-1])


def test_msam_knows_the_momentum_of_sgd() -> None:
    model = network()
    for momentum in (0.9, 0.0):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
        sam = Sam(optimizer, rho=0.3, method="msam")
        optimizer_step(closure_of(model), model, optimizer, sam)
        before = vector(model)
        assert sam.perturb() and sam.perturbed == bool(momentum)
        assert (vector(model) - before).norm().item() == pytest.approx(0.3 if momentum else 0.0, rel=1e-4)
        sam.restore()
        assert torch.equal(vector(model), before)


# SAM-ON


class Normed(nn.Module):
    """Every kind of normalisation layer; the names of their parameters begin with n."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(5, 8)
        self.scale = nn.Parameter(torch.ones(8))
        self.n_batch = nn.BatchNorm1d(8)
        self.n_inner = nn.ModuleDict(
            {"layer": nn.LayerNorm(8), "rms": nn.RMSNorm(8), "bare": nn.LayerNorm(8, 1e-5, False)}
        )
        self.n_group = nn.GroupNorm(2, 8)
        self.n_instance = nn.InstanceNorm1d(8, affine=True)
        self.last = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.n_batch(self.first(x) * self.scale)
        x = self.n_group(self.n_inner["bare"](self.n_inner["rms"](self.n_inner["layer"](x))))
        x = self.n_instance(torch.stack([x, x.sin()], dim=2)).tanh().mean(2)
        return self.last(x)  # type: ignore[no-any-return]


def test_norm_parameters_are_those_of_norm_layers() -> None:
    model = Normed()
    named = {id(p): name for name, p in model.named_parameters()}
    found = [named[id(p)] for p in norm_parameters(model)]
    assert sorted(found) == sorted(name for name in named.values() if name.startswith("n_")) and len(found) == 9
    conformer = Conformer(4, 40, 1, kernel=5, pool=10, stride=5, filters=8, heads=2, depth=2, hidden=16, dropout=0.1)
    named = {id(p): name for name, p in conformer.named_parameters()}
    found = [named[id(p)] for p in norm_parameters(conformer)]
    assert sorted(found) == sorted(name for name in named.values() if "norm" in name) and len(found) == 10
    assert norm_parameters(network()) == []


@pytest.mark.parametrize("method", METHODS)
def test_only_chosen_parameters_move(method: Method) -> None:
    """They move by rho in all, along their own gradients; the step changes all parameters."""
    model = Normed()
    optimizer = adamw(model)
    sam = Sam(optimizer, rho=0.3, method=method, parameters=norm_parameters(model))
    chosen = {id(p) for p in norm_parameters(model)}
    optimizer_step(closure_of(model), model, optimizer)  # MSAM needs a momentum, ASAM weights that are not zero
    before = weights(model)
    closure_of(model)().backward()  # type: ignore[no-untyped-call]
    assert sam.perturb()
    moves = [p.detach() - b for p, b in zip(model.parameters(), before, strict=True)]
    if method == "asam":
        moves = [m / b.abs() for m, b in zip(moves, before, strict=True)]
    assert all(bool(m.any()) == (id(p) in chosen) for m, p in zip(moves, model.parameters(), strict=True))
    assert math.sqrt(sum(m.square().sum().item() for m in moves)) == pytest.approx(0.3, rel=1e-3)
    sam.restore()
    assert same(weights(model), before)
    optimizer_step(closure_of(model), model, optimizer, sam)
    assert not any(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_sam_on_is_the_formula() -> None:
    """Only the first layer's weights (40 of the vector's 57) are perturbed."""

    def rule(number: int, w: Tensor, gradient: Gradient, v: Tensor) -> Tensor:
        g = gradient(w)
        g[40:] = 0.0
        return gradient(w + 0.2 * g / g.norm())

    model = network().double()
    optimizer = adamw(model)
    sam = Sam(optimizer, rho=0.2, parameters=[next(model.parameters())])
    for number in range(6):
        optimizer_step(lambda number=number: loss_of(model, number), model, optimizer, sam)  # type: ignore[misc]
    close(vector(model), by_the_book(rule, range(6))[-1])
    assert apart(vector(model), by_the_book(sam_rule, range(6))[-1])


@pytest.mark.parametrize("name", ["none", *METHODS])
@pytest.mark.parametrize("every", [2, 5])
def test_passes_are_what_a_run_costs(name: Any, every: int) -> None:
    """`TrialConfig.passes` is the mean number of passes per step."""
    config = TrialConfig(sam=SamConfig(name=name, every=every))
    model = network()
    optimizer = adamw(model)
    sam = None if name == "none" else Sam(optimizer, rho=config.sam.rho, method=name, every=config.sam.every)
    calls: list[Tensor] = []
    for _ in range(40):
        optimizer_step(closure_of(model, calls), model, optimizer, sam)
    assert len(calls) / 40 == pytest.approx(config.passes)


def test_infinite_loss_of_the_second_pass_skips() -> None:
    """Also if its gradient is finite, as that of a float32 mean square that is out of range."""
    model = network()
    optimizer = adamw(model)
    sam = Sam(optimizer, rho=0.05)
    before = weights(model)
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        return closure_of(model)() + (math.inf if calls == 2 else 0.0)

    step = optimizer_step(closure, model, optimizer, sam)
    assert step.skipped and math.isfinite(step.loss) and same(weights(model), before)


# float16


class Scaler(torch.amp.GradScaler):
    """GradScaler that counts its updates."""

    updates = 0

    def update(self, *args: Any, **options: Any) -> None:
        self.updates += 1
        super().update(*args, **options)


def overflowing(loss: Tensor) -> Tensor:
    """Return the same loss with infinite gradients."""
    loss.register_hook(lambda gradient: gradient * math.inf)
    return loss


@pytest.mark.parametrize("method", [None, *METHODS])
def test_scaling_changes_nothing(method: Method | None) -> None:
    """A power of two is exact: norms, radii and weights are equal bit for bit to those without; one update per step.

    One so large that the norm of scaled gradients would overflow: all norms are of unscaled ones.
    """
    paths, seen, norms = [], [], []
    for scaler in (None, Scaler("cpu", init_scale=2.0**100)):
        model = network(nn.Dropout(0.2))
        optimizer = adamw(model)
        sam = None if method is None else Sam(optimizer, rho=0.3, method=method, every=2)
        visited: list[Tensor] = []

        def closure(model: nn.Module = model, visited: list[Tensor] = visited) -> Tensor:
            visited.append(vector(model))
            return closure_of(model)()

        torch.manual_seed(5)
        steps = [optimizer_step(closure, model, optimizer, sam, clip=0.1, scaler=scaler) for _ in range(6)]
        assert not any(step.skipped for step in steps) and any(step.grad_norm > 0.1 for step in steps)
        paths.append(vector(model))
        seen.append(torch.stack(visited))
        norms.append([(step.loss, step.grad_norm) for step in steps])
        assert scaler is None or (scaler.updates == 6 and scaler.get_scale() == 2.0**100)
    assert torch.equal(*paths) and torch.equal(*seen) and norms[0] == norms[1]
    if method == "sam":
        assert (seen[1][1] - seen[1][0]).norm().item() == pytest.approx(0.3, rel=1e-4)


@pytest.mark.parametrize(
    ("method", "bad_pass"), [(None, 1), ("msam", 1), *((m, n) for m in ("sam", "asam", "looksam") for n in (1, 2))]
)
def test_overflow_skips_restores_and_lowers_the_scale(method: Method | None, bad_pass: int) -> None:
    """Also in the second pass; the next step is taken as usual."""
    model = network()
    optimizer = adamw(model)
    sam = None if method is None else Sam(optimizer, rho=0.3, method=method, every=2)
    scaler = Scaler("cpu", init_scale=2.0**10)
    for _ in range(2):
        optimizer_step(closure_of(model), model, optimizer, sam, scaler=scaler)
    before, state, updates = weights(model), copy.deepcopy(optimizer.state_dict()), scaler.updates
    twin = copy.deepcopy(model)
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        return overflowing(closure_of(model)()) if calls == bad_pass else closure_of(model)()

    step = optimizer_step(closure, model, optimizer, sam, scaler=scaler)
    assert step.skipped and math.isfinite(step.loss) and calls == bad_pass
    assert same(weights(model), before) and (sam is None or not sam.perturbed)
    torch.testing.assert_close(optimizer.state_dict(), state, rtol=0, atol=0)
    assert scaler.updates == updates + 1 and scaler.get_scale() == 2.0**9
    assert all(p.grad is None for p in model.parameters())
    after = optimizer_step(closure_of(model), model, optimizer, sam, scaler=scaler)
    assert not after.skipped and scaler.updates == updates + 2 and scaler.get_scale() == 2.0**9

    other = adamw(twin)
    other.load_state_dict(state)
    optimizer_step(closure_of(twin), twin, other, sam and Sam(other, rho=0.3, method=sam.method, every=2))
    assert same(weights(model), weights(twin))


@pytest.mark.parametrize("method", [None, *METHODS])
def test_scale_moves_as_in_pytorchs_recipe(method: Method | None) -> None:
    """It falls at an overflow of any pass and rises after a number of good steps in a row."""
    bad = {2: 1, 6: 2, 7: 1}  # pass that overflows, by step
    recipe = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3)
    weight = nn.Parameter(torch.zeros(1))
    expected = []
    for number in range(14):
        optimizer = torch.optim.SGD([weight], lr=0.0)
        optimizer.zero_grad()
        loss = overflowing(weight.sum()) if number in bad else weight.sum()
        recipe.scale(loss).backward()  # type: ignore[no-untyped-call]
        recipe.step(optimizer)
        recipe.update()
        expected.append(recipe.get_scale())
    assert expected[1] > expected[2] < expected[5] > expected[7]

    model = network()
    base = adamw(model)
    sam = None if method is None else Sam(base, rho=0.1, method=method, every=2)
    scaler = Scaler("cpu", init_scale=64.0, growth_interval=3)
    scales, skipped = [], []
    for number in range(14):
        calls = 0
        at = min(bad.get(number, 0), 2 if sam is not None and sam.needs_second_pass else 1)

        def closure(at: int = at) -> Tensor:
            nonlocal calls
            calls += 1
            return overflowing(closure_of(model)()) if calls == at else closure_of(model)()

        skipped.append(optimizer_step(closure, model, base, sam, scaler=scaler).skipped)
        scales.append(scaler.get_scale())
    assert scales == expected and scaler.updates == 14
    assert skipped == [number in bad for number in range(14)]


@pytest.mark.parametrize("method", [None, *METHODS])
def test_float16_finds_its_scale_and_learns(method: Method | None) -> None:
    """Autocast to float16, from a scale that is out of range: some steps are skipped, and all weights stay finite."""
    model = network()
    optimizer = adamw(model)
    sam = None if method is None else Sam(optimizer, rho=0.5 if method == "asam" else 0.05, method=method)
    scaler = Scaler("cpu", init_scale=2.0**22)
    x, y = data()

    def closure() -> Tensor:
        with torch.autocast("cpu", torch.float16):
            out: Tensor = model(x).squeeze(1)
        return (out.float() - y).square().mean()

    taken: list[StepResult] = [
        optimizer_step(closure, model, optimizer, sam, clip=1.0, scaler=scaler) for _ in range(60)
    ]
    skips = sum(step.skipped for step in taken)
    assert taken[0].skipped and skips < 20 and not any(step.skipped for step in taken[20:])
    assert scaler.get_scale() == 2.0 ** (22 - skips) and scaler.updates == 60
    assert all(p.isfinite().all() for p in model.parameters()) and taken[-1].loss < 0.75 * taken[0].loss
