"""Steps on a GPU: without waiting, as CUDA graphs, and the same numbers bit for bit after a restart."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from raypipe.core.config import TrialConfig
from raypipe.core.errors import NonFiniteError
from raypipe.core.model_config import MODELS
from raypipe.core.parameters import parse_config
from raypipe.training import checkpoint, determinism, graphs, trainer
from raypipe.training.graphs import UNCAPTURED_CALLS
from raypipe.training.loader import WindowLoader
from raypipe.training.stacked_trainer import StackedTrainer
from raypipe.training.trainer import SupervisedTrainer
from raypipe.trial.autotune import ComputeOptions, choose_compute
from tests.support.toys import ToyWindows, fold_trainer, make_run

pytestmark = pytest.mark.gpu

SMALL = {
    "model/filters": 8,
    "model/heads": 2,
    "model/depth": 2,
    "model/hidden": 16,
    "model/dropout": 0.25,
    "batch_size": 16,
    "optim/lr": 3e-3,
    "epochs": 4,
    "patience": 4,
}
NETWORKS = {
    "conformer": {},
    "eegnet": {"model/name": "eegnet"},
    "shallow": {"model/name": "shallow"},
    "tcn": {"model/name": "tcn"},
    "vit": {"model/name": "vit"},
}
METHODS = {
    "none": {},
    "sam": {"sam/name": "sam"},
    "asam": {"sam/name": "asam"},
    "msam": {"sam/name": "msam"},
    "looksam": {"sam/name": "looksam"},
}
MIXES = {
    "no mixing": {},
    "mixup": {"mixup/name": "mixup", "mixup/prob": 0.5},
    "cmixup": {"mixup/name": "cmixup"},
    "cutmix": {"mixup/name": "cutmix"},
}


def config_of(**changes: object) -> TrialConfig:
    changed = {name.replace("__", "/"): value for name, value in changes.items()}
    own = MODELS[str(changed.get("model/name", "conformer"))].model_fields
    small = {name: value for name, value in SMALL.items() if name.removeprefix("model/") in own or "model/" not in name}
    return parse_config(small | changed)


@pytest.fixture(autouse=True)
def electrodes(monkeypatch):
    """Unknown positions: MNE, which knows them, need not be installed on a machine with a GPU."""
    monkeypatch.setattr(trainer, "electrode_positions", lambda names: np.full((len(names), 3), np.nan, np.float32))


@pytest.fixture(autouse=True)
def strict(monkeypatch):
    """Raise an error where an operation has no deterministic algorithm."""

    def use(device):
        determined(device)
        torch.use_deterministic_algorithms(True)

    determined = determinism.use_deterministic_algorithms
    monkeypatch.setattr(trainer, "use_deterministic_algorithms", use)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=[False, True], ids=["values", "classes"])
def loader(request):
    return WindowLoader(ToyWindows(subjects=8, each=12, classes=request.param), "cuda")


@pytest.fixture
def values():
    return WindowLoader(ToyWindows(subjects=8, each=12), "cuda")


def trainers(loader: WindowLoader, config: TrialConfig, count: int = 1) -> list[SupervisedTrainer]:
    """Return trainers of folds of equal size."""
    numbers = np.arange(len(loader.windows))
    held = [(numbers + 12 * fold) % len(numbers) for fold in range(count)]
    return [fold_trainer(config, loader, order[24:], order[:24], fold=fold) for fold, order in enumerate(held)]


def same(one: object, other: object) -> bool:
    """Return whether two states are equal bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    return bool(one == other or (one != one and other != other))


def epochs_of(made: list[SupervisedTrainer], count: int, stacked: bool) -> list[object]:
    """Train epochs; return what they gave."""
    stack = StackedTrainer(made) if stacked else None
    outcomes: list[object] = []
    for _ in range(count):
        found = stack.run_epoch() if stack else [one.run_epoch() for one in made]
        outcomes += [[outcome.loss, outcome.predictions.tolist()] for outcome in found]
    return outcomes


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("method", METHODS)
def test_no_step_waits_for_the_gpu(loader, method, mix):
    if mix == "cmixup" and loader.windows.classes:
        pytest.skip("C-Mixup is for values")
    (one,) = trainers(loader, config_of(**METHODS[method], **MIXES[mix]))
    one.run_epoch()
    one.start_epoch()
    batches = one.batches()
    for number in range(2):
        one.step(next(batches), number)
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the mode itself, which is a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            for number in range(2, 4):
                one.step(next(batches), number)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("stacked", [False, True], ids=["alone", "stacked"])
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize("method", METHODS)
def test_a_graph_gives_the_numbers_of_its_kernels_one_by_one(loader, method, precision, stacked, monkeypatch):
    config = config_of(**METHODS[method], precision=precision, mixup__name="mixup")
    made = trainers(loader, config, 3)
    found = epochs_of(made, 3, stacked)
    monkeypatch.setattr(graphs, "UNCAPTURED_CALLS", 10**9)
    plain = trainers(loader, config, 3)
    expected = epochs_of(plain, 3, stacked)
    assert same(found, expected)
    assert all(same(a.state_dict(), b.state_dict()) for a, b in zip(made, plain, strict=True))


def test_steps_are_captured(values):
    (one,) = trainers(values, config_of(**METHODS["sam"]))
    one.run_epoch()
    captured = one._stepper._graphs._captured
    assert len(captured) == 1 and None not in captured.values()


@pytest.mark.parametrize("stacked", [False, True], ids=["alone", "stacked"])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", METHODS)
def test_a_training_that_was_killed_continues_bit_by_bit(values, network, method, stacked):
    if stacked and network in ("tcn", "vit"):
        pytest.skip("it is not stacked")
    config = config_of(**NETWORKS[network], **METHODS[method], mixup__name="mixup", optim__ema=0.9)
    whole = trainers(values, config, 2)
    expected = epochs_of(whole, 4, stacked)
    first = trainers(values, config, 2)
    found = epochs_of(first, 2, stacked)
    after = trainers(values, config, 2)
    for one, killed in zip(after, first, strict=True):
        one.load_state_dict(checkpoint.loads(checkpoint.dumps(killed.state_dict())))
    found += epochs_of(after, 2, stacked)
    assert same(found, expected)
    assert all(same(a.state_dict(), b.state_dict()) for a, b in zip(after, whole, strict=True))


def test_a_checkpoint_of_a_gpu_continues_on_a_cpu(values):
    config = config_of(**METHODS["sam"], precision="float32")
    (gpu,) = trainers(values, config)
    gpu.run_epoch()
    (cpu,) = trainers(WindowLoader(values.windows), config)
    cpu.load_state_dict(checkpoint.loads(checkpoint.dumps(gpu.state_dict())))
    assert cpu.state.optimizer.param_groups[0]["capturable"] is False
    np.testing.assert_allclose(cpu.predict(cpu.data.validation), gpu.predict(gpu.data.validation), atol=1e-3)
    cpu.run_epoch()


@pytest.mark.parametrize(("precision", "limit"), [("float32", 2e-3), ("bfloat16", 0.1)])
def test_stacked_folds_have_the_numbers_of_folds_alone_up_to_rounding(values, precision, limit):
    config = config_of(**METHODS["sam"], precision=precision)
    alone, stacked = trainers(values, config, 3), trainers(values, config, 3)
    for one, other in zip(epochs_of(alone, 2, False), epochs_of(stacked, 2, True), strict=True):
        assert one[0] == pytest.approx(other[0], rel=limit)
        np.testing.assert_allclose(other[1], one[1], atol=limit * np.ptp(one[1]) + limit)


def test_predictions_are_those_of_the_network(values):
    (one,) = trainers(values, config_of(precision="float32"))
    for _ in range(UNCAPTURED_CALLS + 2):
        found = one.predict(one.data.validation)
    with torch.no_grad():
        raw = one.model.eval()(values.gather(one.data.validation))
    np.testing.assert_allclose(found, one.data.decode(raw.float().cpu()), atol=1e-4)


def test_a_loss_that_is_not_finite_ends_the_epoch_and_moves_nothing(values):
    (one,) = trainers(values, config_of(**METHODS["sam"], precision="float32"))
    one.run_epoch()
    before = {name: tensor.clone() for name, tensor in one.model.named_parameters()}
    moments = [tensor.clone() for state in one.state.optimizer.state.values() for tensor in state.values()]
    real = one.loss
    one.loss = lambda raw, y: real(raw, y) * float("nan")
    one.state.version += 1  # captured again, with this loss
    with pytest.raises(NonFiniteError, match="fold 0, epoch 2: the training loss is not finite"):
        one.run_epoch()
    assert all(torch.equal(before[name], tensor) for name, tensor in one.model.named_parameters())
    after = [tensor for state in one.state.optimizer.state.values() for tensor in state.values()]
    assert all(map(torch.equal, moments, after))


def test_a_scale_that_overflows_is_lowered_and_training_goes_on(values):
    (one,) = trainers(values, config_of(**METHODS["sam"], precision="float16"))
    one.state.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**24)
    one.run_epoch()
    assert one.state.scaler.get_scale() < 2.0**24
    for _ in range(3):
        outcome = one.run_epoch()
    assert np.isfinite(outcome.loss) and one.state.overflows == 0
    assert all(tensor.isfinite().all() for tensor in one.model.parameters())


def test_what_cannot_be_captured_is_computed_kernel_by_kernel(values, caplog):
    (one,) = trainers(values, config_of(**METHODS["sam"], precision="float32"))
    (plain,) = trainers(values, config_of(**METHODS["sam"], precision="float32"))
    real = one.loss

    def waits(raw, y):
        loss = real(raw, y)
        assert float(loss) > -1.0  # a capture cannot wait
        return loss

    one.loss = waits
    found, expected = epochs_of([one], 2, False), epochs_of([plain], 2, False)
    assert same(found, expected)
    assert "computed kernel by kernel" in caplog.text


def test_stem_and_stack_are_chosen_on_the_gpu(values, tmp_path):
    run = make_run(tmp_path / "run", values.windows)
    found = choose_compute(run, values, config_of(precision="bfloat16"), range(3), ComputeOptions())
    assert set(found.seconds) == {"fourier", "direct", "stacked", "one by one"}
    assert found.what.startswith(torch.cuda.get_device_name())
