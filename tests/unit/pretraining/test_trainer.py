"""The pretraining loop: two gloo processes on this machine train what one process does."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from raypipe.core.errors import InterruptedEpochError, UserError
from raypipe.pretraining.fold_trainer import PretrainTrainer
from raypipe.pretraining.objective import worker_sizes
from raypipe.pretraining.simclr import gather, nt_xent
from raypipe.pretraining.trainer import Pretrainer
from raypipe.training.loader import WindowLoader
from tests.support.toys import ToyWindows, tiny

VIT = {"model__name": "vit", "model__filters": 8, "model__patch": 16, "batch_size": 10, "epochs": 4}
KINDS = ("mae", "simclr", "conformer")
"""The last is SimCLR of a Conformer."""
STEPS = 20


def config(kind: str, **changes):
    own = {} if kind == "mae" else {"pretrain__negatives": "same-subject"}
    model = VIT
    if kind == "conformer":
        model = {name: value for name, value in VIT.items() if name != "model__patch"} | {"model__name": "conformer"}
    return tiny(**(model | {"pretrain__name": "mae" if kind == "mae" else "simclr"} | own | changes))


def pretrainer(kind: str, **options) -> Pretrainer:
    loader = WindowLoader(ToyWindows(subjects=8, each=7))  # type: ignore[arg-type]
    return Pretrainer(config(kind), loader, np.arange(50), **options)


def losses_of(one: Pretrainer) -> list[float]:
    losses: list[float] = []
    one.module.train()
    while len(losses) < STEPS:
        losses += [one.step(drawn, step) for step, drawn in enumerate(one.batches())]
        one.epoch += 1
    return losses


def in_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", rank=rank, world_size=2, store=store, timeout=timedelta(seconds=300))
    kept = {kind: losses_of(pretrainer(kind, rank=rank, world=2)) for kind in KINDS}
    kept |= {f"{kind}-micro": losses_of(pretrainer(kind, rank=rank, world=2, micro_batch=2)) for kind in KINDS}
    # Gradients through the all-gather, with different numbers of rows per worker.
    z = vectors()
    first, n = (0, 4) if rank == 0 else (4, 2)
    mine = torch.cat((z[first : first + n], z[first + 6 : first + 6 + n])).requires_grad_()
    both = torch.cat([gather(half, [4, 2]) for half in mine.split(n)])
    nt_xent(mine, both, first, n).sum().backward()
    torch.save((kept, mine.grad), f"{folder}/{rank}.pt")
    dist.barrier()
    os._exit(0)  # without a clean-up: gloo's threads, or the store's destructor, sometimes abort a process


def vectors() -> torch.Tensor:
    z = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    return torch.nn.functional.normalize(z, dim=1)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    if sys.platform != "linux":
        pytest.skip("gloo over a file store is tried on Linux only")
    folder = Path(tmp_path_factory.mktemp("gloo"))
    mp.spawn(in_two, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("how", [*KINDS, *(f"{kind}-micro" for kind in KINDS)])
def test_two_workers_train_what_one_does(two, how):
    alone = losses_of(pretrainer(how.split("-")[0]))
    assert len(alone) >= STEPS
    for kept, _ in two:
        np.testing.assert_allclose(kept[how], alone, atol=1e-4)
    assert alone[-1] != alone[0]


def test_gradients_of_the_all_gather_are_those_of_one_process(two):
    z = vectors().requires_grad_()
    nt_xent(z, z, 0, 6).sum().backward()
    for (_, found), (first, n) in zip(two, ((0, 4), (4, 2)), strict=True):
        wanted = torch.cat((z.grad[first : first + n], z.grad[first + 6 : first + 6 + n]))
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_change_nothing_but_rounding(kind):
    np.testing.assert_allclose(losses_of(pretrainer(kind, micro_batch=3)), losses_of(pretrainer(kind)), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_equal_bit_for_bit(kind):
    whole, half = pretrainer(kind), pretrainer(kind)
    for _ in range(3):
        whole.run_epoch()
    half.run_epoch()
    answers = iter([False, False, True])
    with pytest.raises(InterruptedEpochError):
        half_gone = pretrainer(kind)
        half_gone.load_state_dict(half.state_dict())
        half_gone.run_epoch(lambda: next(answers))
    again = pretrainer(kind)
    again.load_state_dict(half.state_dict())
    again.run_epoch()
    again.run_epoch()
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(tensor, again.module.state_dict()[name]) or tensor.isnan().any(), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_falls_without_targets(kind):
    windows = ToyWindows(subjects=8, each=8)
    windows.targets = np.full_like(windows.targets, np.nan)
    one = Pretrainer(config(kind, epochs=6), WindowLoader(windows), np.arange(64))  # type: ignore[arg-type]
    first, *_, last = (one.run_epoch() for _ in range(6))
    assert last < first


def test_a_batch_is_distributed_completely():
    assert worker_sizes(10, 3) == [4, 3, 3]
    with pytest.raises(UserError, match="too few"):
        pretrainer("mae", world=11)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("n", [20, 42, 51])
def test_an_epoch_has_every_window_once_over_all_workers(n, world, monkeypatch):
    """The last two batches share what is left; each worker has a part of every batch."""
    monkeypatch.setattr("raypipe.pretraining.objective.DistributedDataParallel", lambda module: module)
    loader = WindowLoader(ToyWindows(subjects=8, each=7))  # type: ignore[arg-type]
    workers = [Pretrainer(config("simclr"), loader, np.arange(n), rank=r, world=world) for r in range(world)]
    steps = list(zip(*(one.batches() for one in workers), strict=True))
    assert len(steps) == workers[0].steps_per_epoch == -(-n // 10)
    seen = [np.concatenate([part.windows for part in parts]) for parts in steps]
    for parts, batch in zip(steps, seen, strict=True):
        assert all(len(part.windows) and part.first == np.flatnonzero(batch == part.windows[0])[0] for part in parts)
        np.testing.assert_array_equal(batch, parts[0].batch)
    assert sorted(np.concatenate(seen).tolist()) == list(range(n))
    assert min(len(batch) for batch in seen) >= 5


@pytest.mark.parametrize("classes", [False, True])
def test_a_fold_is_pretrained_and_probed_and_resumed(classes):
    windows = ToyWindows(classes=classes)
    train, validation = np.arange(40), np.arange(40, 64)

    def fold():
        given = config("mae"), WindowLoader(windows), train, validation  # type: ignore[arg-type]
        return PretrainTrainer(*given, fold=0, groups_N=windows.subjects)

    one, two = fold(), fold()
    one.run_epoch()
    two.load_state_dict(one.state_dict())
    first, second = one.run_epoch(), two.run_epoch()
    assert first.predictions.shape == (24, 2 if classes else 1)
    np.testing.assert_array_equal(first.predictions, second.predictions)
    assert set(one.state_dict()["weights"]) == set(one.encoder.state_dict())


def test_features_are_computed_in_smaller_batches_beside_micro_batches(monkeypatch):
    gather, sizes = WindowLoader.gather, []
    monkeypatch.setattr(WindowLoader, "gather", lambda self, index: sizes.append(len(index)) or gather(self, index))
    whole = pretrainer("mae").features(np.arange(56))
    parts = pretrainer("mae", micro_batch=1).features(np.arange(56))
    assert sizes == [56, 25, 25, 6], "a tenth of 256"
    np.testing.assert_allclose(parts, whole, atol=1e-5)
