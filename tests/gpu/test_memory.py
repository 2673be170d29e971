"""The memory of a GPU: what is kept there, what is done when it runs out, and how well its use is forecast."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from raypipe.core.fold_drawing import make_folds
from raypipe.core.parameters import parse_config
from raypipe.search import measurement
from raypipe.search.measurement import measure
from raypipe.storage.files import write_record
from raypipe.storage.records import trial_file
from raypipe.storage.run_store import RunStore
from raypipe.storage.trial_log import read_log
from raypipe.training import loader as loader_module
from raypipe.training.graphs import UNCAPTURED_CALLS
from raypipe.training.loader import FoldData, WindowLoader, resident_bytes
from raypipe.training.stacked_trainer import StackedTrainer
from raypipe.training.store_loaders import StoreLoaders
from raypipe.training.trainer import SupervisedTrainer
from raypipe.trial.autotune import StackedPair
from raypipe.trial.failures import RETRY_FILE, Retry, read_retry
from raypipe.trial.local import run_trial
from tests.support.toys import TINY, ToyWindows, fold_trainer, make_run, tiny

pytestmark = pytest.mark.gpu

LARGE = {
    "model/filters": 40,
    "model/heads": 4,
    "model/depth": 2,
    "model/hidden": 64,
    "batch_size": 2560,
    "optim/lr": 1e-3,
    "epochs": 3,
    "patience": 3,
}
MEGABYTE = 2**20
FORECAST_ERROR = 0.15


class Shifted(ToyWindows):
    """Windows of 128 samples, with crops that are evaluated at other places than their starts."""

    def offsets(self, index):
        return np.asarray(index) % 65


@pytest.fixture(scope="module")
def windows() -> Shifted:
    made = Shifted(subjects=8, each=12, spare=64)
    gather = made.gather
    made.gather = lambda index, offset=None: gather(index, made.offsets(index) if offset is None else offset)
    return made


@pytest.fixture(scope="module")
def wide() -> ToyWindows:
    """Enough windows and channels for batches whose memory is far larger than the network's."""
    return ToyWindows(subjects=15, each=512, channels=64)


@pytest.fixture
def streamed(monkeypatch):
    """Keep no store on the GPU."""
    monkeypatch.setattr(loader_module, "available_bytes", lambda device, share: 0)


@contextmanager
def room_of(size: float) -> Iterator[None]:
    """Let this process allocate only so many more bytes of the GPU within the context."""
    collect()
    size += torch.cuda.memory_reserved()
    torch.cuda.set_per_process_memory_fraction(size / torch.cuda.get_device_properties(0).total_memory)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        collect()


def collect() -> int:
    """Free what is not used; return the bytes that are."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def run_of(path, windows: ToyWindows, **params) -> RunStore:
    run = make_run(path, windows)
    run.add_trial(0, parse_config(params))
    return run


# What is kept


@pytest.mark.parametrize("mixup", ["none", "mixup", "cmixup", "cutmix"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_batches_are_the_same_bit_for_bit_wherever_windows_come_from(windows, monkeypatch, dtype, mixup):
    monkeypatch.setattr(windows, "x", windows.x.astype(dtype).astype(np.float32))
    monkeypatch.setattr(windows, "dtype", dtype)
    train, config = np.arange(60), tiny(mixup__name=mixup, batch_size=16)
    drawn = []
    for resident in (True, False):
        loaded = WindowLoader(windows, "cuda", resident=resident)
        assert loaded.resident is resident
        data = FoldData(config, loaded, train, train[:1], fold=0)
        drawn.append(list(data.batches(2, lambda size: [(100 * size, 0.25)])))
    assert len(drawn[0]) == len(drawn[1]) == data.steps_per_epoch
    for one, other in zip(*drawn, strict=True):
        for mine, theirs in zip(one, other, strict=True):
            assert mine.is_cuda and torch.equal(mine, theirs)


def test_a_trial_has_the_same_numbers_wherever_its_windows_come_from(windows, tmp_path, monkeypatch):
    kept = run_of(tmp_path / "kept", windows, **TINY)
    assert run_trial(kept, windows, 0, device="cuda").state == "complete"
    monkeypatch.setattr(loader_module, "available_bytes", lambda device, share: 0)
    copied = run_of(tmp_path / "copied", windows, **TINY)
    assert run_trial(copied, windows, 0, device="cuda").state == "complete"
    np.testing.assert_array_equal(kept.oof(0).predictions, copied.oof(0).predictions)
    assert "(windows kept there)" in "\n".join(read_log(kept.folder, 0))
    assert "(windows copied batch by batch)" in "\n".join(read_log(copied.folder, 0))


def test_a_store_is_kept_if_it_takes_half_of_the_share(wide):
    total = torch.cuda.get_device_properties(0).total_memory
    share = 2.1 * resident_bytes(wide) / total
    assert WindowLoader(wide, "cuda", share=share).resident
    assert not WindowLoader(wide, "cuda", share=share / 1.2).resident


# What is done when memory runs out


def test_a_store_that_does_not_fit_after_all_is_copied_batch_by_batch(wide):
    before = collect()
    with room_of(resident_bytes(wide) / 2):
        loaded = WindowLoader(wide, "cuda", resident=True)
        assert not loaded.resident
        assert torch.cuda.memory_allocated() == before
        index = np.array([5, 0, 700])
        np.testing.assert_array_equal(loaded.gather(index).cpu().numpy(), wide.gather(index))


def test_a_trial_that_does_not_fit_beside_the_store_gives_it_up(tmp_path, monkeypatch):
    """The store fits, and a third of what training needs; training alone, without a store of 600 MB, fits easily."""
    windows = ToyWindows(subjects=12, each=64, channels=32, spare=6000)
    params = LARGE | {"batch_size": 512}
    with monkeypatch.context() as patch:
        patch.setattr(loader_module, "available_bytes", lambda device, share: 0)
        expected = run_of(tmp_path / "copied", windows, **params)
        before = collect()
        assert run_trial(expected, windows, 0, device="cuda").state == "complete"
        peak = torch.cuda.max_memory_allocated() - before
    assert 30 * MEGABYTE < peak < resident_bytes(windows) / 2
    run = run_of(tmp_path / "run", windows, **params)
    with room_of(resident_bytes(windows) + 0.3 * peak):
        result = run_trial(run, windows, 0, device="cuda")
    retry = read_retry(run, 0)
    assert retry is not None
    assert (result.state, retry.streamed, retry.micro_batch) == ("complete", True, None)
    np.testing.assert_array_equal(run.oof(0).predictions, expected.oof(0).predictions)


def test_a_trial_whose_batch_does_not_fit_is_trained_in_micro_batches(wide, tmp_path, streamed):
    half = (LARGE["batch_size"] + 1) // 2
    peaks = {}
    for name, size in (("whole", None), ("half", half)):
        run = run_of(tmp_path / name, wide, **LARGE)
        if size:
            retry = Retry(run=run.run_id, number=0, streamed=False, micro_batch=size, reason="")
            write_record(run.folder, trial_file(0, RETRY_FILE), retry)
        before = collect()
        assert run_trial(run, wide, 0, device="cuda").state == "complete"
        peaks[name] = torch.cuda.max_memory_allocated() - before
    assert peaks["half"] < 0.95 * peaks["whole"]
    run = run_of(tmp_path / "run", wide, **LARGE)
    # Less than a whole batch needs at any rate. A half needs more than it allocates: torch's cache has gaps.
    with room_of(0.1 * peaks["half"] + 0.9 * peaks["whole"]):
        result = run_trial(run, wide, 0, device="cuda")
    assert (result.state, read_retry(run, 0).streamed, read_retry(run, 0).micro_batch) == ("complete", False, half)
    np.testing.assert_allclose(result.score, RunStore.open(tmp_path / "whole").result(0).score, rtol=0.1)


def test_a_trial_that_fits_in_no_way_fails_and_leaves_the_memory_to_the_next(wide, tmp_path, streamed):
    before = collect()
    run = run_of(tmp_path / "run", wide, **LARGE)
    with room_of(48 * MEGABYTE):
        result = run_trial(run, wide, 0, device="cuda")
    assert (result.state, result.failure) == ("failed", "out-of-memory")
    assert collect() - before < 48 * MEGABYTE


# How well it is forecast


def trainers(loaded: WindowLoader, count: int) -> list[SupervisedTrainer]:
    numbers, config = np.arange(len(loaded.windows)), parse_config(LARGE)
    held = [np.roll(numbers, -128 * fold) for fold in range(count)]
    return [fold_trainer(config, loaded, order[256:], order[:256], fold=fold) for fold, order in enumerate(held)]


def warm_up() -> None:
    """Allocate the workspace of cuBLAS, which stays."""
    (torch.ones(64, 64, device="cuda") @ torch.ones(64, 64, device="cuda")).sum().item()


def real_peak(loaded: WindowLoader, count: int) -> int:
    """Return the most bytes that steps of so many folds allocate until they are CUDA graphs, beside what is there."""
    warm_up()
    before = collect()
    made = trainers(loaded, count)
    for one in made:
        one.start_epoch()
    batches = [next(one.batches()) for one in made]
    if count == 1:
        for _ in range(UNCAPTURED_CALLS + 1):
            made[0].step(batches[0], 0)
    else:
        stack = StackedTrainer(made)
        for _ in range(UNCAPTURED_CALLS + 1):
            stack.step(batches, 0)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("count", [2, 5])
def test_the_memory_of_stacked_folds_is_forecast(wide, count):
    loaded = WindowLoader(wide, "cuda", resident=False)
    real = real_peak(loaded, count)
    before = collect()
    forecast = StackedPair(trainers(loaded, 2), loaded.device).bytes_of(count) - before
    assert forecast == pytest.approx(real, rel=FORECAST_ERROR)


def captured_by(made: list[SupervisedTrainer]) -> list[object]:
    return [graph for one in made for graph in one._stepper._graphs._captured.values()]


def test_graphs_of_all_shapes_compute_in_the_same_memory(wide):
    """Two or three shapes of batches and one of predictions, of two folds one by one."""
    loaded = WindowLoader(wide, "cuda", resident=False)
    made = trainers(loaded, 2)
    before = collect()
    reserved = torch.cuda.memory_reserved()
    for _ in range(UNCAPTURED_CALLS + 2):
        for one in made:
            one.run_epoch()
    assert len(captured_by(made)) >= 4 and None not in captured_by(made)
    allocated = torch.cuda.max_memory_allocated() - before
    torch.cuda.empty_cache()  # of the calls before a shape was captured
    assert torch.cuda.memory_reserved() - reserved < 1.5 * allocated


def test_a_trial_after_all_graphs_of_another_is_captured_too(wide):
    """Tensors that the other has computed in the graphs' memory may still be there."""
    loaded = WindowLoader(wide, "cuda", resident=False)
    left = []
    for _ in range(3):
        made = trainers(loaded, 1)
        for _ in range(UNCAPTURED_CALLS + 2):
            made[0].run_epoch()
        assert captured_by(made) and None not in captured_by(made)
        left = [parameter.grad for parameter in made[0].model.parameters()]
        del made
        collect()
    assert any(gradient is not None for gradient in left)


def test_the_memory_of_one_fold_is_forecast(wide, monkeypatch):
    loaded = WindowLoader(wide, "cuda", resident=False)
    folds = make_folds(wide.subjects, wide.targets, classes=False, n_folds=5, seed=0)
    loaders = StoreLoaders(wide, "cuda")
    loaders.of("").set_resident(False)
    monkeypatch.setattr(loaders.of(""), "set_resident", lambda wanted: None)
    monkeypatch.setattr(measurement, "cached_loaders", lambda where, device, share: loaders)
    monkeypatch.setattr(measurement, "stem_seconds", lambda config, data: {"fourier": 1.0, "direct": 2.0})
    real = real_peak(loaded, 1)
    before = collect()
    found = measure("toy", folds, parse_config(LARGE), {"cpus": 1.0, "gpus": 0.5})
    assert found.gpu_memory - before == pytest.approx(real, rel=FORECAST_ERROR)
    assert found.worker_gpu_memory == pytest.approx(torch.cuda.get_device_properties(0).total_memory / 2, rel=1e-6)
