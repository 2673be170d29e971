"""How a trial is computed: as asked for, as stored, or as measured."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raypipe.models.conformer import Conformer
from raypipe.storage.run_store import RunStore
from raypipe.training.loader import FoldData, WindowLoader
from raypipe.training.stacked_trainer import StackedTrainer
from raypipe.training.trainer import SupervisedTrainer
from raypipe.trial import autotune
from raypipe.trial.autotune import ComputeOptions, ComputePlan, choose_compute, stack_bytes
from tests.support.toys import ToyWindows, make_run, tiny


@pytest.fixture(scope="module")
def loader():
    return WindowLoader(ToyWindows())


@pytest.fixture
def run(tmp_path, loader):
    return make_run(tmp_path / "run", loader.windows)


@pytest.fixture
def clock(monkeypatch):
    """Set the results of the next measurements, in this order: Fourier, direct, stacked, one by one."""
    times = []
    monkeypatch.setattr(autotune, "_quickest", lambda work, device: times.pop(0))
    return times


OTHERS = ComputePlan(stem="direct", stacked=True, what="another worker's", seconds={})


@pytest.mark.parametrize("stem", ["fourier", "direct"])
@pytest.mark.parametrize("stack", ["on", "off"])
def test_explicit_options_are_used_without_a_measurement(run, loader, clock, stem, stack):
    found = choose_compute(run, loader, tiny(), range(3), ComputeOptions(stem=stem, stack=stack))
    assert (found.stem, found.stacked, found.seconds) == (stem, stack == "on", {})
    assert not choose_compute(
        run, loader, tiny(), [1], ComputeOptions(stem=stem, stack=stack)
    ).stacked  # one fold is no stack


@pytest.mark.parametrize(
    ("times", "stem", "stacked"),
    [
        ([1.0, 0.89, 0.89, 1.0], "direct", True),
        ([1.0, 0.91, 0.91, 1.0], "fourier", False),  # too little to change the default
        ([1.0, 0.5, 2.0, 1.0], "direct", False),
        ([1.0, 2.0, 0.5, 1.0], "fourier", True),
    ],
)
def test_the_faster_alternative_is_chosen_by_a_margin(run, loader, clock, times, stem, stacked):
    clock += times
    found = choose_compute(run, loader, tiny(), range(3), ComputeOptions())
    assert (found.stem, found.stacked) == (stem, stacked)
    assert found.seconds == dict(zip(("fourier", "direct", "stacked", "one by one"), times, strict=True))


def test_one_explicit_option_leaves_the_other_to_be_measured(run, loader, clock):
    clock += [0.5, 1.0]
    found = choose_compute(run, loader, tiny(), range(3), ComputeOptions(stem="direct"))
    assert (found.stem, found.stacked, set(found.seconds)) == ("direct", True, {"stacked", "one by one"})
    clock += [1.0, 0.5]
    found = choose_compute(run, loader, tiny(), range(3), ComputeOptions(stack="off"))
    assert (found.stem, found.stacked, set(found.seconds)) == ("direct", False, {"fourier", "direct"})


def test_folds_that_cannot_be_stacked_are_not_tried(run, loader, clock):
    clock += [1.0, 1.0, 1.0, 1.0]
    assert not choose_compute(run, loader, tiny(precision="float16"), range(3), ComputeOptions()).stacked
    assert not choose_compute(run, loader, tiny(), [2], ComputeOptions()).stacked
    assert clock == []


def test_folds_of_fewer_windows_than_a_batch_in_unequal_numbers_are_not_stacked(tmp_path, clock):
    """No step of them could be stacked."""
    loader = WindowLoader(ToyWindows(subjects=5, each=4))
    run = make_run(tmp_path / "run", loader.windows)
    sizes = [len(run.folds.split(loader.windows.subjects, fold)[0]) for fold in range(3)]
    assert len(set(sizes)) > 1 and max(sizes) < 64
    clock += [1.0, 1.0]
    found = choose_compute(run, loader, tiny(batch_size=64), range(3), ComputeOptions())
    assert not found.stacked and set(found.seconds) == {"fourier", "direct"}
    assert clock == []


def test_a_measurement_needs_no_pretrained_encoder(run, loader, clock):
    clock += [2.0, 1.0, 2.0, 1.0]
    tuned = tiny(init__name="pretrained", init__tune="frozen")
    assert (
        choose_compute(run, loader, tuned, range(3), ComputeOptions()).stem == "direct"
    )  # its encoder need not be at hand


def test_a_stored_choice_is_kept(run, loader, clock):
    clock += [1.0, 0.5, 0.5, 1.0]
    first = choose_compute(run, loader, tiny(), range(3), ComputeOptions())
    kept = {name: run.folder.read(name) for name in run.folder.names("compute")}
    assert len(kept) == 1
    again = RunStore.open(run.where)
    # Another trial of the shape, and other folds of it: not measured (the clock has run out).
    assert (
        choose_compute(again, loader, tiny(optim__lr=1e-2, sam__name="sam", seed=4), [4, 1, 7], ComputeOptions())
        == first
    )
    assert {name: run.folder.read(name) for name in run.folder.names("compute")} == kept


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 4},
        {"model__filters": 8},
        {"model__expansion": 8},
        {"model__hidden": 64},
        {"model__heads": 1},
        {"precision": "bfloat16"},
    ],
)
def test_another_shape_is_another_choice(run, loader, clock, changes):
    clock += [1.0, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert choose_compute(run, loader, tiny(), range(3), ComputeOptions()).stacked
    assert not choose_compute(run, loader, tiny(**changes), range(3), ComputeOptions()).stacked
    assert choose_compute(run, loader, tiny(), range(3), ComputeOptions()).stacked
    assert clock == []


def test_a_choice_is_of_the_type_that_is_trained(loader, monkeypatch):
    """Of windows that no network normalises, bfloat16 keeps nothing, so `auto` is another type there."""
    gpu = SimpleNamespace(device=torch.device("cuda"), windows=loader.windows)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr("raypipe.training.device._computes_bfloat16", lambda device: device.type == "cuda")
    shapes = [autotune._shape(gpu, tiny(model__norm=norm), 3, 1.0) for norm in ("channel", "none")]
    assert "in bfloat16" in shapes[0] and "in float32" in shapes[1]
    assert autotune._shape(loader, tiny(), 3, 1.0) == autotune._shape(loader, tiny(precision="float32"), 3, 1.0)


def test_a_worker_without_the_claim_waits_for_the_measurement(run, loader, clock):
    asked = []

    def claim(key):
        asked.append(key)
        if len(asked) == 3:
            run.write_compute(key, OTHERS.model_copy(update={"key": key}))
        return False

    assert choose_compute(run, loader, tiny(), range(3), ComputeOptions(), claim).what == OTHERS.what
    assert len(asked) == 3 and len(set(asked)) == 1


def test_of_two_measurements_the_first_is_kept(run, loader, monkeypatch):
    """A claim expires, so that another worker may store a choice before a slow measurement ends."""
    keys = []

    def slow(work, device):
        run.write_compute(keys[0], OTHERS.model_copy(update={"key": keys[0]}))
        return 1.0

    monkeypatch.setattr(autotune, "_quickest", slow)
    found = choose_compute(run, loader, tiny(), range(3), ComputeOptions(), lambda key: keys.append(key) or True)
    assert found.what == OTHERS.what
    assert choose_compute(run, loader, tiny(), range(3), ComputeOptions()) == found


def test_a_measurement_changes_no_weights(run, loader):
    """A step at this learning rate would give weights that are not finite."""
    config = tiny(optim__schedule="constant", optim__warmup=0.0, sam__name="sam")
    config = config.model_copy(update={"optim": config.optim.model_copy(update={"lr": 1e30})})  # beyond its limit
    found = choose_compute(run, loader, config, range(3), ComputeOptions())
    assert set(found.seconds) == {"fourier", "direct", "stacked", "one by one"}
    assert all(seconds > 0 for seconds in found.seconds.values())


def test_the_stem_is_timed_as_it_is_trained(run, loader, monkeypatch):
    """In steps of the trial's precision: a float32 pass of the stem alone says little about them."""
    passes = []

    def recorded(self, x, **options):
        passes.append((self.stem.algorithm, torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return forward(self, x, **options)

    forward = Conformer.forward
    monkeypatch.setattr(Conformer, "forward", recorded)
    config = tiny(precision="bfloat16", sam__name="sam")
    found = choose_compute(run, loader, config, range(3), ComputeOptions(stack="off"))
    assert set(found.seconds) == {"fourier", "direct"} and all(s > 0 for s in found.seconds.values())
    assert set(passes) == {(algorithm, True, torch.bfloat16) for algorithm in ("fourier", "direct")}


SIZE = st.integers(0, 10**8)


@given(SIZE, st.integers(1, 10**9), SIZE, SIZE, st.integers(2, 10))
def test_every_further_fold_of_a_stack_needs_as_much_as_the_second(one, activations, state, batch, count):
    needed = stack_bytes(one, one + activations, state, batch, count)
    two = stack_bytes(one, one + activations, state, batch, 2)
    assert needed - two == (count - 2) * (activations + state + 2 * batch)
    assert two == one + activations + 2 * batch


@pytest.mark.parametrize(("available", "stacked"), [(500, True), (499, False)])
def test_a_stack_that_does_not_fit_the_workers_gpu_is_not_chosen(run, loader, clock, monkeypatch, available, stacked):
    """With fakes of the GPU's memory: three folds need 300 + 100 bytes and a fold's state."""
    clock += [1.0, 2.0, 0.5, 1.0]
    state = []

    def bytes_of(one, two, own, batch, count):
        state.append((own, batch))
        return stack_bytes(one, two, 0, 0, count)

    peaks, shares = [200, 300], []
    monkeypatch.setattr(autotune, "stack_bytes", bytes_of)
    monkeypatch.setattr(autotune, "_peak_bytes", lambda work, device: peaks.pop(0))
    monkeypatch.setattr(autotune, "available_bytes", lambda device, share: shares.append(share) or available)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr("raypipe.training.device._computes_bfloat16", lambda device: True)
    gpu = copy.copy(loader)
    gpu.device = SimpleNamespace(type="cuda")
    made = []

    def on_the_processor(config, data, **named):
        made.append(SupervisedTrainer(config, FoldData(config, loader, data.train, data.validation, fold=0), **named))
        return made[-1]

    monkeypatch.setattr(autotune, "SupervisedTrainer", on_the_processor)
    found = choose_compute(run, gpu, tiny(), range(3), ComputeOptions(), share=0.25)
    assert found.stacked == stacked
    assert found.what.startswith("a GPU (0.25 of a GPU), ")
    assert shares == [0.25]
    batch = sum(tensor.nbytes for tensor in next(made[0].batches()) if tensor is not None)
    assert state == [(20 * sum(parameter.numel() for parameter in made[0].model.parameters()), batch)]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("another error")])
def test_two_folds_that_do_not_fit_together_are_trained_one_by_one(run, loader, monkeypatch, error):
    """No retry of the trial is spent on a measurement."""

    def full(self, batches, number):
        raise error

    monkeypatch.setattr(StackedTrainer, "step", full)
    if isinstance(error, torch.OutOfMemoryError):
        found = choose_compute(run, loader, tiny(), range(3), ComputeOptions())
        assert (found.stacked, set(found.seconds)) == (False, {"fourier", "direct"})
    else:
        with pytest.raises(RuntimeError, match="another error"):
            choose_compute(run, loader, tiny(), range(3), ComputeOptions())


@pytest.mark.parametrize(("name", "count"), [("shallow", 4), ("eegnet", 2), ("tcn", 0)])
def test_only_what_a_network_has_is_measured(run, loader, clock, name, count):
    clock += [1.0, 0.5, 0.5, 1.0][4 - count :]
    found = choose_compute(run, loader, tiny(model__name=name), range(3), ComputeOptions())
    assert clock == [] and len(found.seconds) == count
    assert (found.stem, found.stacked) == ("direct" if name == "shallow" else "fourier", count > 0)
