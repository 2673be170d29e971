"""Folds trained as one program are the folds trained one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raypipe.core.errors import InterruptedEpochError
from raypipe.training.stacked_trainer import StackedTrainer, stackable
from raypipe.training.step import whole_batch
from raypipe.trial.local import run_trial
from tests.support.toys import ToyWindows, break_off, fold_trainer, make_run, tiny

METHODS = {
    "adamw": {},
    "sam": {"sam__name": "sam"},
    "asam": {"sam__name": "asam", "sam__rho": 1.0},
    "looksam": {"sam__name": "looksam", "sam__every": 2},
    "msam": {"sam__name": "msam", "sam__rho": 0.5},
    "sam-on": {"sam__name": "sam", "sam__only": "norm"},
    "everything": {"sam__name": "sam", "mixup__name": "cmixup", "optim__ema": 0.9, "loss__name": "focal"},
}


@pytest.fixture(params=[False, True], ids=["regression", "classes"])
def windows(request):
    return ToyWindows(subjects=10, each=9, classes=request.param)  # folds of unequal length: 45 and 54 windows


def trainers(where, windows, config):
    run = make_run(where, windows)
    splits = [run.folds.split(windows.subjects, fold) for fold in range(3)]
    return [fold_trainer(config, windows, *split, fold=fold) for fold, split in enumerate(splits)]


@pytest.mark.parametrize("network", ["eegnet", "shallow"])
@pytest.mark.parametrize("method", ["sam", "msam", "everything"])
def test_a_stack_of_other_networks_equals_its_folds_too(tmp_path, windows, network, method):
    config = tiny(model__name=network, batch_size=16, **METHODS[method])
    alone, stacked = trainers(tmp_path / "a", windows, config), trainers(tmp_path / "b", windows, config)
    assert stackable(stacked)
    stack = StackedTrainer(stacked)
    for _ in range(3):
        for one, other in zip([t.run_epoch() for t in alone], stack.run_epoch(), strict=True):
            assert other.loss == pytest.approx(one.loss, rel=1e-4)
            np.testing.assert_allclose(other.predictions, one.predictions, rtol=0, atol=1e-4)
    for one, other in zip(alone, stacked, strict=True):
        for (name, p), q in zip(one.model.named_buffers(), other.model.buffers(), strict=True):
            torch.testing.assert_close(q, p, rtol=1e-4, atol=1e-4, msg=name)
        assert max(limits_of(other.model), default=0.0) <= 1e-6


def limits_of(model):
    """Return by how much norms of weights are above their limits."""
    if hasattr(model, "spatial_max_norm"):
        for weight, limit in ((model.spatial.weight, 1.0), (model.head.weight, 0.25)):
            yield float(weight.flatten(1).norm(dim=1).max()) - limit


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dropout", "size"), [(0.0, 9), (0.25, 9), (0.25, 16)])
def test_a_stack_equals_its_folds_trained_one_by_one(tmp_path, windows, method, dropout, size):
    """Also with dropout, whose masks are drawn per fold, and with last batches of different sizes."""
    config = tiny(model__dropout=dropout, batch_size=size, **METHODS[method])
    alone, stacked = trainers(tmp_path / "a", windows, config), trainers(tmp_path / "b", windows, config)
    assert len({tuple(t.data.batch_sizes) for t in alone}) == 2
    stack = StackedTrainer(stacked)
    for _ in range(3):
        for one, other in zip([t.run_epoch() for t in alone], stack.run_epoch(), strict=True):
            assert other.loss == pytest.approx(one.loss, rel=1e-5)
            np.testing.assert_allclose(other.predictions, one.predictions, rtol=0, atol=1e-5)


def test_biases_before_batchnorm_are_not_trained(tmp_path, windows):
    """Their gradients are rounding errors, of which AdamW makes full steps."""
    for way in ("alone", "stacked"):
        folds = trainers(tmp_path / way, windows, tiny(optim__ema=0.5))
        before = {name: tensor.clone() for name, tensor in folds[0].model.state_dict().items()}
        [t.run_epoch() for t in folds] if way == "alone" else StackedTrainer(folds).run_epoch()
        for trainer in folds:
            same = {name for name, tensor in trainer.model.state_dict().items() if tensor.equal(before[name])}
            assert same == {"stem.temporal.bias", "stem.spatial.bias"}


def test_gradients_of_a_stack_in_float64(tmp_path, windows):
    alone, stacked = (trainers(tmp_path / name, windows, tiny()) for name in "ab")
    for trainer in alone + stacked:
        trainer.model.double().train()
    batches = [next(iter(trainer.batches())) for trainer in alone]
    batches = [b._replace(x=b.x.double(), y=b.y if windows.classes else b.y.double()) for b in batches]
    models = StackedTrainer(stacked).models
    models.gradients(models.prepare(batches), [trainer.loss_of for trainer in stacked])
    for one, other, batch in zip(alone, stacked, batches, strict=True):
        whole_batch(one.state, batch._replace(x=one.model.prepare(batch.x)), one.loss_of)
        for (name, p), q in zip(one.model.named_parameters(), other.model.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None) == name.startswith(("stem.temporal.b", "stem.spatial.b")), name
            if p.grad is not None:
                torch.testing.assert_close(q.grad, p.grad, rtol=1e-6, atol=1e-8, msg=name)
        for (name, p), q in zip(one.model.named_buffers(), other.model.buffers(), strict=True):
            torch.testing.assert_close(q, p, msg=name)


def test_bfloat16_stacks_too(tmp_path):
    config = tiny(precision="bfloat16", sam__name="sam")
    alone, stacked = (trainers(tmp_path / name, ToyWindows(), config) for name in "ab")
    for one, other in zip([t.run_epoch() for t in alone], StackedTrainer(stacked).run_epoch(), strict=True):
        assert other.loss == pytest.approx(one.loss, rel=0.02)


def test_folds_with_a_loss_scale_each_are_not_stacked(tmp_path):
    folds = trainers(tmp_path, ToyWindows(), tiny(precision="float16"))
    assert not stackable(folds)
    assert not stackable(trainers(tmp_path / "b", ToyWindows(), tiny())[:1])


@pytest.mark.parametrize(
    "changes",
    [
        METHODS["everything"],
        {"early_stop": "fold", "patience": 2, "epochs": 8},
        {"model__name": "eegnet", **METHODS["everything"]},
        {"model__name": "shallow", "sam__name": "looksam"},
    ],
)
def test_a_stacked_trial_interrupted_anywhere_ends_with_the_same_numbers(tmp_path, changes):
    windows, config = ToyWindows(subjects=30, each=3), tiny(**changes)
    whole = make_run(tmp_path / "whole", windows)
    whole.add_trial(0, config)
    run_trial(whole, windows, 0, stacked=True)
    run = make_run(tmp_path / "broken", windows)
    run.add_trial(0, config)
    batches = attempts = 0

    def die_now_and_then():
        nonlocal batches
        batches += 1
        return batches % 7 == 0

    while True:
        attempts += 1
        try:
            run_trial(run, windows, 0, stacked=True, interrupted=die_now_and_then)
            break
        except InterruptedEpochError:
            assert attempts < 50
    assert attempts > 2
    assert [(e.score, e.losses) for e in run.history(0)] == [(e.score, e.losses) for e in whole.history(0)]
    np.testing.assert_array_equal(run.oof(0).predictions, whole.oof(0).predictions)
    for name, tensor in whole.weights(0, 2).items():
        assert tensor.equal(run.weights(0, 2)[name]), name


def test_a_stack_that_loses_one_checkpoint_goes_back_together(tmp_path):
    """The file of one fold is written after another's: a crash in between leaves them an epoch apart."""
    windows, config = ToyWindows(), tiny(sam__name="sam")
    whole = make_run(tmp_path / "whole", windows)
    whole.add_trial(0, config)
    run_trial(whole, windows, 0, stacked=True)
    run = make_run(tmp_path / "broken", windows)
    run.add_trial(0, config)
    break_off(run, windows, 0, 2, stacked=True)
    (tmp_path / "broken/trials/0000/fold-2/epoch-0002.ckpt").unlink()
    history = run.history(0)[:1]
    run.write_history(0, history)
    run_trial(run, windows, 0, stacked=True)
    np.testing.assert_array_equal(run.oof(0).predictions, whole.oof(0).predictions)
