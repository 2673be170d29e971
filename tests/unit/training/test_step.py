"""Steps of several models, and micro-batches: gradients, steps and statistics of the whole batch for less memory."""

from __future__ import annotations

import copy
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raypipe.core.config import LossConfig
from raypipe.models.conformer import Conformer
from raypipe.models.eegnet import EEGNet
from raypipe.models.network import DropoutMasks, Network
from raypipe.models.shallow import Shallow
from raypipe.training.dropout import DropoutSampler
from raypipe.training.loader import Batch
from raypipe.training.losses import class_weights, make_loss
from raypipe.training.optim import norm_parameters
from raypipe.training.sam import Sam
from raypipe.training.step import TrainState, micro_batches, take_step, whole_batch
from tests.support.toys import ToyWindows, fold_trainer, make_run, tiny

BATCH, CHANNELS, TIMES, CLASSES = 8, 3, 60, 3
EXACT = {"rtol": 0.0, "atol": 1e-10}
LOSSES = {
    "squared": LossConfig(),
    "focal-r": LossConfig(name="focal", gamma=1.5),
    "huber": LossConfig(name="huber", delta=0.3),
    "cross-entropy": LossConfig(balanced=False),
    "focal, weighted, smoothed": LossConfig(name="focal", gamma=2.0, smoothing=0.1),
    "weighted": LossConfig(),
}
CLASSIFIERS = ("cross-entropy", "focal, weighted, smoothed", "weighted")


def model(outputs: int = 1, stem: str = "fourier", features: str = "mean", dropout: float = 0.3) -> Conformer:
    torch.manual_seed(0)
    sizes = {"kernel": 7, "pool": 15, "stride": 6, "filters": 8, "depth": 2, "heads": 2, "hidden": 16}
    made = Conformer(CHANNELS, TIMES, outputs, **sizes, dropout=dropout, features=features).double().train()
    made.stem.algorithm = stem
    return made


def batch(kind: str, made: Network) -> tuple[Tensor, Tensor, Tensor | None]:
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.normal(size=(BATCH, CHANNELS, TIMES)))
    masks = DropoutSampler(5, torch.device("cpu")).draw(made.dropout_plan(BATCH))
    if kind == "values":
        y = torch.from_numpy(rng.normal(size=BATCH))
    elif kind == "shares":
        y = torch.from_numpy(rng.dirichlet(np.ones(CLASSES), size=BATCH))
    else:
        y = torch.from_numpy(np.array([0, 0, 0, 0, 0, 1, 1, 2]))
    return x, y, masks


def loss_named(name: str):
    if name not in CLASSIFIERS:
        return make_loss(LOSSES[name], kind="regression")
    weights = class_weights([0, 0, 0, 0, 1, 1, 2], CLASSES)
    return make_loss(LOSSES[name], kind="classification", n_classes=CLASSES, class_weights=weights)


def state_of(made: Network, **options) -> TrainState[Network]:
    return TrainState(made, torch.optim.SGD(made.parameters(), lr=0.1), **options)


def whole(made: Network, x: Tensor, y: Tensor, masks: Tensor | None, loss_of) -> float:
    return float(whole_batch(state_of(made), Batch(made.prepare(x), y, masks), loss_of))


def in_parts(made: Network, x: Tensor, y: Tensor, masks: Tensor | None, size: int, loss_of, **options) -> float:
    return float(micro_batches(state_of(made, **options), Batch(made.prepare(x), y, masks), loss_of, size))


def same_state(one: Network, other: Network, *, of_gradients: bool = True) -> None:
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(q, p, **EXACT, msg=name)
        if of_gradients:
            assert (p.grad is not None) == (q.grad is not None) == p.requires_grad, name
            torch.testing.assert_close(q.grad, p.grad, **EXACT, msg=name)
    for (name, p), q in zip(one.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(q, p, **EXACT, msg=name)


@pytest.mark.parametrize("size", [1, 3, 4, 8])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_the_whole_batch(name, size):
    classes = name in CLASSIFIERS
    one = model(CLASSES if classes else 1)
    other = copy.deepcopy(one)
    loss_of = loss_named(name)
    for kind in ("classes", "shares") if classes else ("values",):
        x, y, masks = batch(kind, one)
        for made in (one, other):
            made.zero_grad()
        expected = whole(one, x, y, masks, loss_of)
        assert in_parts(other, x, y, masks, size, loss_of) == pytest.approx(expected, abs=1e-12)
        assert max(float(p.grad.abs().max()) for p in one.parameters() if p.grad is not None) > 1e-3
        same_state(one, other)


@pytest.mark.parametrize("stem", ["fourier", "direct"])
@pytest.mark.parametrize("features", ["mean", "log-power"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_with_every_stem_and_feature(stem, features, dropout):
    one = model(stem=stem, features=features, dropout=dropout)
    other = copy.deepcopy(one)
    x, y, masks = batch("values", one)
    assert (masks is None) == (dropout == 0.0)
    loss_of = loss_named("squared")
    whole(one, x, y, masks, loss_of)
    in_parts(other, x, y, masks, 3, loss_of)
    same_state(one, other)


@pytest.mark.parametrize("kind", [EEGNet, Shallow])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_with_other_networks(kind, dropout):
    """EEGNet drops before its last BatchNorm, so a part of the masks is for the whole batch."""
    torch.manual_seed(0)
    sizes = {"kernel": 7, "pool": 15, "stride": 6} if kind is Shallow else {"kernel": 9, "pool": 2}
    one = kind(CHANNELS, TIMES, 1, filters=4, dropout=dropout, **sizes).double().train()
    other = copy.deepcopy(one)
    x, y, masks = batch("values", one)
    whole(one, x, y, masks, loss_named("squared"))
    in_parts(other, x, y, masks, 3, loss_named("squared"))
    same_state(one, other)


def test_a_part_of_a_batch_takes_its_rows_of_the_masks():
    made = model()
    plan = made.dropout_plan(BATCH)
    scale_M = DropoutSampler(5, torch.device("cpu")).draw(plan)
    assert scale_M is not None
    everything, part = DropoutMasks(scale_M), DropoutMasks(scale_M, BATCH, 3)
    for size, _ in plan:
        rows = torch.empty(BATCH, size // BATCH)
        assert part.take(rows[3:5]).equal(everything.take(rows)[3:5])


@pytest.mark.parametrize("name", ["none", "sam", "asam", "looksam", "msam", "sam-on"])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_steps_are_those_of_the_whole_batch(name, clip):
    """Also SAM's two passes, LookSAM's steps, MSAM's momentum, and running statistics, updated once per batch."""
    loss_of = loss_named("squared")

    def trained(size: int | None) -> tuple[Conformer, list[float]]:
        made = model()
        optimizer = torch.optim.SGD(made.parameters(), lr=0.05, momentum=0.9)
        sam = None
        if name != "none":
            chosen = norm_parameters(made) if name == "sam-on" else None
            method = "sam" if name == "sam-on" else name
            sam = Sam(optimizer, rho=0.1, method=method, parameters=chosen, every=2)  # type: ignore[arg-type]
        state = TrainState(made, optimizer, sam=sam, clip=clip)
        seen = []
        for seed in range(5):
            x, y, _ = batch("values", made)
            masks = DropoutSampler(seed, torch.device("cpu")).draw(made.dropout_plan(BATCH))
            given = Batch(made.prepare(x + seed), y, masks)

            def gradients(given: Batch = given) -> list[float]:
                if size is None:
                    return [whole_batch(state, given, loss_of)]
                return [micro_batches(state, given, loss_of, size)]

            (step,) = take_step([state], gradients)
            assert not step.skipped
            seen += [step.loss, step.grad_norm]
        return made, seen

    (one, expected), (other, found) = trained(None), trained(3)
    assert found == pytest.approx(expected, abs=1e-10)
    same_state(one, other, of_gradients=False)
    assert int(other.batch_norm.num_batches_tracked) == 5


def test_a_scaled_loss_scales_the_gradients_and_not_what_is_reported():
    one = model()
    other = copy.deepcopy(one)
    x, y, masks = batch("values", one)
    loss_of = loss_named("squared")
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    expected = whole(one, x, y, masks, loss_of)
    assert in_parts(other, x, y, masks, 4, loss_of, scaler=scaler) == pytest.approx(expected)
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        if p.requires_grad:
            torch.testing.assert_close(q.grad, 8 * p.grad, **EXACT)  # type: ignore[operator]


def test_weights_are_restored_if_memory_runs_out_in_the_second_pass():
    made = model()
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    before = copy.deepcopy(made.state_dict())
    x, y, masks = batch("values", made)
    prepared, losses = made.prepare(x), []

    def fails_in_the_second_pass(raw: Tensor, y: Tensor) -> Tensor:
        losses.append(1)
        if len(losses) == 4:
            raise MemoryError
        loss: Tensor = loss_named("squared")(raw, y)
        return loss

    state = TrainState(made, optimizer, sam=Sam(optimizer, rho=0.5))
    given = Batch(prepared, y, masks)
    with pytest.raises(MemoryError):
        take_step([state], lambda: [micro_batches(state, given, fails_in_the_second_pass, 4)])
    for name, value in made.named_parameters():
        assert value.equal(before[name]), name
    assert made.batch_norm.track_running_stats


def test_a_loss_that_is_not_finite_skips_the_step():
    made = model()
    x, y, masks = batch("values", made)
    y[6] = torch.nan
    state, given = state_of(made), Batch(made.prepare(x), y, masks)
    (step,) = take_step([state], lambda: [micro_batches(state, given, loss_named("squared"), 4)])
    assert step.skipped and step.failed and np.isnan(step.loss)


def test_no_gradient_is_computed_below_frozen_layers():
    """The cut then has no gradient; the head has that of the whole batch."""
    one = model().requires_grad_(False)
    one.head.requires_grad_(True)
    other = copy.deepcopy(one)
    x, y, masks = batch("values", one)
    loss_of = loss_named("squared")
    expected = whole(one, x, y, masks, loss_of)
    assert in_parts(other, x, y, masks, 3, loss_of) == pytest.approx(expected, abs=1e-12)
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        assert (p.grad is None) == (not name.startswith("head."))
        if p.grad is not None:
            torch.testing.assert_close(q.grad, p.grad, **EXACT, msg=name)


@pytest.mark.parametrize("method", [None, "sam", "msam"])
def test_of_several_models_that_step_together_the_failed_one_is_reported(method):
    """None steps if the first pass of one is not finite; all weights are restored afterwards."""
    models = [nn.Linear(3, 1) for _ in range(3)]
    optimizers = [torch.optim.SGD(made.parameters(), lr=0.1, momentum=0.9) for made in models]
    states = [
        TrainState(made, optimizer, sam=None if method is None else Sam(optimizer, rho=0.1, method=method))
        for made, optimizer in zip(models, optimizers, strict=True)
    ]
    x = torch.ones(4, 3)

    def gradients(factors: tuple[float, ...]) -> list[Tensor]:
        losses = [(made(x) * factor).square().mean() for made, factor in zip(models, factors, strict=True)]
        for state, loss in zip(states, losses, strict=True):
            state.backward(loss)
        return [loss.detach() for loss in losses]

    assert not any(result.skipped for result in take_step(states, lambda: gradients((1.0, 2.0, 3.0))))
    before = [copy.deepcopy(made.state_dict()) for made in models]
    results = take_step(states, lambda: gradients((1.0, np.inf, 3.0)))
    assert [result.failed for result in results] == [False, True, False]
    stepped = [not torch.equal(made.weight, old["weight"]) for made, old in zip(models, before, strict=True)]
    assert stepped == ([False] * 3 if method == "sam" else [True, False, True])
    assert not any(state.sam.perturbed for state in states if state.sam)


class _Saved:
    """Count the bytes that autograd stores for the backward pass, while it stores them."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def pack(self, tensor: Tensor) -> list[Tensor]:
        kept, size = _Kept([tensor]), tensor.numel() * tensor.element_size()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(kept, self._free, size)
        return kept

    def _free(self, size: int) -> None:
        self.now -= size

    @staticmethod
    def unpack(kept: list[Tensor]) -> Tensor:
        return kept[0]


class _Kept(list[Tensor]):
    """A list that weak references can refer to."""


def test_half_the_batch_stores_little_more_than_half_for_the_backward_pass():
    made = model()
    x, y, masks = batch("values", made)
    kept = []
    for size in (BATCH, BATCH // 2, BATCH // 4):
        saved = _Saved()
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, saved.unpack):
            in_parts(made, x, y, masks, size, loss_named("squared"))
        kept.append(saved.most)
    assert kept[1] < 0.65 * kept[0]
    assert kept[2] < 0.45 * kept[0]


@pytest.mark.parametrize(
    "changes",
    [{}, {"sam__name": "sam", "mixup__name": "cmixup", "loss__name": "focal"}, {"precision": "bfloat16"}],
    ids=["plain", "everything", "bfloat16"],
)
@pytest.mark.parametrize("classes", [False, True])
def test_an_epoch_in_micro_batches_equals_one_in_whole_batches(tmp_path, changes, classes):
    windows, config = ToyWindows(classes=classes), tiny(**changes)
    run = make_run(tmp_path, windows)
    split = run.folds.split(windows.subjects, 0)
    one = fold_trainer(config, windows, *split, fold=0)
    other = fold_trainer(config, windows, *split, fold=0, micro_batch=3)
    near = 0.02 if changes.get("precision") else 1e-4
    for _ in range(2):
        expected, found = one.run_epoch(), other.run_epoch()
        assert found.loss == pytest.approx(expected.loss, rel=near)
        np.testing.assert_allclose(found.predictions, expected.predictions, rtol=0, atol=50 * near)


def test_predictions_take_smaller_batches_too(tmp_path, monkeypatch):
    windows = ToyWindows()
    run = make_run(tmp_path, windows)
    split = run.folds.split(windows.subjects, 0)
    sizes = []
    gather = windows.gather
    windows.gather = lambda index, offset=None: sizes.append(len(index)) or gather(index, offset)
    monkeypatch.setattr("raypipe.training.trainer.EVALUATION_BATCH", 12)
    trainer = fold_trainer(tiny(), windows, *split, fold=0, micro_batch=4)
    given = trainer.predict(np.arange(30))
    assert sizes == [6] * 5
    sizes.clear()
    trainer.micro_batch = None
    np.testing.assert_allclose(given, trainer.predict(np.arange(30)), atol=1e-6)
    assert sizes == [12, 12, 6]
