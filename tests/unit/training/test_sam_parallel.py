"""Two gloo processes on this machine, started once: they run every scenario, the tests compare what they kept."""

from __future__ import annotations

import copy
import math
import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from raypipe.training.sam import Method, Sam
from raypipe.training.step import Step, optimizer_step

STEPS, EACH = 5, 8
RHO = 0.3


class Scenario(NamedTuple):
    """What both processes do; rank 1 meets the trouble."""

    method: Method | None = "sam"
    m_sharpness: Literal["worker", "global"] = "worker"
    clip: float = 0.0
    trouble: Literal["none", "loss", "gradient", "constant"] = "none"
    at_pass: int = 1
    scaled: bool = False
    views: bool = False
    norm: bool = False


class Kept(NamedTuple):
    """What a process reports, weights and optimiser before the first and after every step."""

    weights: list[Tensor]
    states: list[dict[str, Any]]
    steps: list[Step]
    calls: list[int]
    scales: list[float]
    batches_seen: int


TROUBLED_STEP = 2
PATHS = {
    f"{method}-{m_sharpness}": Scenario(method, m_sharpness, clip=0.5)  # type: ignore[arg-type]
    for method in ("sam", "asam")
    for m_sharpness in ("worker", "global")
}
PATHS |= {
    "plain": Scenario(None),
    "looksam": Scenario("looksam"),
    "looksam-views": Scenario("looksam", views=True),
    "msam": Scenario("msam"),
}
TROUBLED = {
    f"{method}-{m_sharpness}-{trouble}-{at_pass}": Scenario(method, m_sharpness, 0.0, trouble, at_pass)  # type: ignore[arg-type]
    for method, m_sharpness, passes in [
        (None, "worker", 1),
        ("sam", "worker", 2),
        ("sam", "global", 2),
        ("looksam", "worker", 2),
        ("msam", "worker", 1),
    ]
    for trouble in ("loss", "gradient", "constant")
    for at_pass in range(1, passes + 1)
}
SCALED = {
    f"scaled-{method}-{at_pass}": Scenario(method, "worker", 0.0, "gradient", at_pass, scaled=True)  # type: ignore[arg-type]
    for method in ("sam", "looksam")
    for at_pass in (1, 2)
}
SCENARIOS = PATHS | TROUBLED | SCALED | {"norm": Scenario(norm=True)}


def network(*middle: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), *middle, nn.Tanh(), nn.Linear(8, 1)).double()


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(STEPS, 2 * EACH, 5, generator=generator), torch.randn(STEPS, 2 * EACH, generator=generator)
    return list(zip(x.double(), y.double(), strict=True))


def adamw(parameters: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)


def play(scenario: Scenario, rank: int | None) -> Kept:
    """Take the steps, on half of every batch as a worker or on all of it (None) alone."""
    bare = network(nn.BatchNorm1d(8)) if scenario.norm else network()
    model = bare if rank is None else DistributedDataParallel(bare, gradient_as_bucket_view=scenario.views)
    optimizer = adamw(bare.parameters())
    sam = None if scenario.method is None else Sam(optimizer, rho=RHO, method=scenario.method, every=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if scenario.scaled else None
    kept = Kept([], [], [], [], [], 0)

    def note() -> None:
        kept.weights.append(parameters_to_vector(bare.parameters()).detach().clone())
        kept.states.append(copy.deepcopy(optimizer.state_dict()))
        kept.scales.append(scaler.get_scale() if scaler else 1.0)

    note()
    for number, (x, y) in enumerate(batches()):
        if rank is not None:
            x, y = x[rank * EACH : (rank + 1) * EACH], y[rank * EACH : (rank + 1) * EACH]
        calls = 0

        def closure(x: Tensor = x, y: Tensor = y, number: int = number) -> Tensor:
            nonlocal calls
            calls += 1
            loss = (model(x).squeeze(1) - y).square().mean()
            if rank == 1 and number == TROUBLED_STEP and calls == scenario.at_pass:
                if scenario.trouble == "loss":
                    loss = loss * math.nan
                elif scenario.trouble == "constant":  # the gradient stays finite
                    loss = loss + math.inf
                elif scenario.trouble == "gradient":  # the loss stays finite
                    loss.register_hook(lambda gradient: gradient * math.inf)
            return loss

        step = optimizer_step(
            closure, model, optimizer, sam, scenario.clip, scaler=scaler, m_sharpness=scenario.m_sharpness
        )
        kept.steps.append(step)
        kept.calls.append(calls)
        note()
    seen = [int(m.num_batches_tracked) for m in bare.modules() if isinstance(m, nn.BatchNorm1d)]
    return kept._replace(batches_seen=sum(seen))


def work(rank: int, folder: str) -> None:
    """Life of a process."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    meet, patience = f"file://{folder}/meet", timedelta(minutes=2)  # a rank that waits for ever ends the tests
    dist.init_process_group("gloo", init_method=meet, timeout=patience, rank=rank, world_size=2)
    try:
        kept = {name: play(scenario, rank)._asdict() for name, scenario in SCENARIOS.items()}
        torch.save(kept, Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Kept, Kept]]:
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=2)
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2))
    return {name: (Kept(**first[name]), Kept(**second[name])) for name in SCENARIOS}


def gradient(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    model = network()
    vector_to_parameters(weights, model.parameters())
    (model(x).squeeze(1) - y).square().mean().backward()
    return parameters_to_vector([p.grad for p in model.parameters() if p.grad is not None])


def worker_path(scenario: Scenario) -> Iterator[Tensor]:
    """m-sharpness by the book: each half climbs by its own gradient, the two sharp gradients are averaged."""
    weights = parameters_to_vector(network().parameters()).detach().requires_grad_()
    optimizer = adamw([weights])
    for x, y in batches():
        sharp = []
        for half in (slice(0, EACH), slice(EACH, None)):
            home = weights.detach()
            climb = gradient(home, x[half], y[half])
            if scenario.method == "asam":
                climb = climb * home.square() / (climb * home.abs()).norm()
            else:
                climb = climb / climb.norm()
            sharp.append(gradient(home + RHO * climb, x[half], y[half]))
        weights.grad = (sharp[0] + sharp[1]) / 2
        nn.utils.clip_grad_norm_([weights], scenario.clip)
        optimizer.step()
        yield weights.detach().clone()


@pytest.mark.parametrize("name", SCENARIOS)
def test_ranks_are_identical(ranks: dict[str, tuple[Kept, Kept]], name: str) -> None:
    """Bit for bit, after every step; and training goes on to its end."""
    first, second = ranks[name]
    assert torch.equal(torch.stack(first.weights), torch.stack(second.weights))
    torch.testing.assert_close(first.states, second.states, rtol=0, atol=0)
    assert first.scales == second.scales and first.calls == second.calls
    assert [step.skipped for step in first.steps] == [step.skipped for step in second.steps]
    assert all(weights.isfinite().all() for weights in first.weights)
    assert not torch.equal(first.weights[-1], first.weights[-2])


@pytest.mark.parametrize("name", ["sam-global", "asam-global", "plain", "looksam", "looksam-views", "msam"])
def test_two_halves_are_one_whole(ranks: dict[str, tuple[Kept, Kept]], name: str) -> None:
    """With the averaged gradient, two workers on half a batch each take the path of one process on the whole."""
    kept, alone = ranks[name][0], play(SCENARIOS[name], None)
    torch.testing.assert_close(torch.stack(kept.weights), torch.stack(alone.weights), rtol=1e-9, atol=1e-11)
    for both, one in zip(zip(kept.steps, ranks[name][1].steps, strict=True), alone.steps, strict=True):
        assert both[0].grad_norm == pytest.approx(one.grad_norm, rel=1e-9)
        assert (both[0].loss + both[1].loss) / 2 == pytest.approx(one.loss, rel=1e-9) or name == "msam"
    assert kept.calls == alone.calls


@pytest.mark.parametrize("name", ["sam-worker", "asam-worker"])
def test_each_worker_climbs_by_its_own_gradient(ranks: dict[str, tuple[Kept, Kept]], name: str) -> None:
    weights = torch.stack(ranks[name][0].weights[1:])
    torch.testing.assert_close(weights, torch.stack(list(worker_path(SCENARIOS[name]))), rtol=1e-9, atol=1e-11)
    averaged = ranks[name.replace("worker", "global")][0]
    assert not torch.allclose(weights, torch.stack(averaged.weights[1:]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TROUBLED | SCALED)
def test_trouble_of_one_rank_skips_the_step_of_all(ranks: dict[str, tuple[Kept, Kept]], name: str) -> None:
    """Weights and optimiser stay as they were, and the step after is taken again."""
    for kept in ranks[name]:
        assert [step.skipped for step in kept.steps] == [number == TROUBLED_STEP for number in range(STEPS)]
        assert torch.equal(kept.weights[TROUBLED_STEP], kept.weights[TROUBLED_STEP + 1])
        before, after = kept.states[TROUBLED_STEP : TROUBLED_STEP + 2]
        torch.testing.assert_close(before, after, rtol=0, atol=0)
        assert before["state"][0]["step"] == TROUBLED_STEP


@pytest.mark.parametrize("name", SCALED)
def test_overflow_of_one_rank_halves_the_scale_of_all(ranks: dict[str, tuple[Kept, Kept]], name: str) -> None:
    for kept in ranks[name]:
        assert kept.scales == [1024.0] * (TROUBLED_STEP + 1) + [512.0] * (STEPS - TROUBLED_STEP)


def test_batch_norm_counts_each_batch_once(ranks: dict[str, tuple[Kept, Kept]]) -> None:
    assert [kept.batches_seen for kept in ranks["norm"]] == [STEPS, STEPS]
    assert ranks["norm"][0].calls == [2] * STEPS
