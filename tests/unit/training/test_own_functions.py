"""Losses and augmentations of users in the training loop, as exact as raypipe's own, and their runs."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from raypipe.core.config import OwnAugmentConfig, OwnLossConfig
from raypipe.core.fold_drawing import make_folds
from raypipe.core.options import SweepOptions
from raypipe.core.own_code import SourceFile, keep_source
from raypipe.core.parameters import parse_config
from raypipe.core.search_space import load_space
from raypipe.data.window_store import WindowStore
from raypipe.search.run_setup import open_run
from raypipe.storage.run_store import RunStore
from raypipe.training.augmentations import augment_batch
from raypipe.training.own_functions import make_own_loss
from raypipe.training.stacked_trainer import stackable
from raypipe.trial.local import run_trial
from tests.support.own import FUNCTIONS, write_functions
from tests.support.toys import ToyWindows, break_off, fold_trainer, write_store

SQUARED = """import torch
def squared(outputs, target):
    return (outputs - target).square().mean()
def noisy(outputs, target):
    return (outputs - target).square().mean() * (0.5 + torch.rand(()))
def writes(outputs, target):
    target -= outputs.detach()
    outputs.mul_(-2 * target)
    return outputs.mean()
def keeps(outputs, target):
    return (outputs * (-2 * (target - outputs.detach()))).mean()
def flip(x, rng):
    rng.random(3)
    return -x
"""
SMALL = {"model/name": "tcn", "model/filters": 4, "model/depth": 1, "epochs": 4, "batch_size": 8, "patience": 4}


@pytest.fixture(scope="module")
def toy():
    return ToyWindows()


def own(section, name, source=SQUARED, **changes):
    changed = {name.replace("__", "/"): value for name, value in changes.items()}
    code = {f"{section}/name": f"mine.py:{name}", f"{section}/code": keep_source(SourceFile("mine.py", source))}
    return parse_config(SMALL | code | changed)


def trainer(toy, config, **options):
    folds = make_folds(toy.subjects, toy.targets, classes=bool(toy.classes), n_folds=3, seed=0)
    return fold_trainer(config, toy, *folds.split(toy.subjects, 0), fold=0, **options)


@pytest.mark.parametrize("sam", ["none", "sam"])
def test_a_loss_of_ones_own_trains_as_raypipes_own_would(toy, sam):
    one = trainer(toy, own("loss", "squared", sam__name=sam))
    other = trainer(toy, parse_config(SMALL | {"sam/name": sam}))
    for _ in range(2):
        found, expected = one.run_epoch(), other.run_epoch()
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    np.testing.assert_allclose(found.predictions, expected.predictions, rtol=1e-4, atol=1e-5)
    plain = own("augment", "flip", augment__prob=1.0)
    assert trainer(toy, plain).run_epoch().loss != trainer(toy, parse_config(SMALL)).run_epoch().loss


@pytest.mark.parametrize("sam", ["none", "sam"])
def test_a_loss_that_writes_on_its_targets_trains_as_one_that_does_not(toy, sam):
    one, other = (trainer(toy, own("loss", name, sam__name=sam)) for name in ("writes", "keeps"))
    for _ in range(2):
        assert one.run_epoch().loss == other.run_epoch().loss


@pytest.mark.parametrize("classes", [0, 3])
def test_a_loss_gets_targets_of_its_own(classes):
    source = "def wipe(outputs, target):\n    target.zero_()\n    return outputs.mean()\n"
    config = OwnLossConfig(name="mine.py:wipe", code=keep_source(SourceFile("mine.py", source)))
    kind = "classification" if classes else "regression"
    targets = [torch.ones(4, classes), torch.ones(4).long()] if classes else [torch.ones(4), torch.ones(4, 2)]
    for target in targets:
        make_own_loss(config, kind=kind)(torch.randn(4, classes or 2), target)
        assert (target == 1).all()


@pytest.mark.parametrize(("section", "name"), [("loss", "noisy"), ("augment", "flip")])
def test_an_epoch_draws_what_it_would_have_drawn_without_an_interruption(toy, section, name):
    config = own(section, name, sam__name="sam")
    whole, first = trainer(toy, config), trainer(toy, config)
    for _ in range(3):
        expected = whole.run_epoch()
    first.run_epoch()
    state = first.state_dict()
    torch.rand(1)
    second = trainer(toy, config)
    second.load_state_dict(state)
    for _ in range(2):
        found = second.run_epoch()
    assert found.loss == expected.loss and (found.predictions == expected.predictions).all()


def test_a_loss_of_ones_own_sees_whole_batches_and_one_fold(toy):
    conformer = {"model/name": "conformer", "model/heads": 2, "model/hidden": 8}
    config = own("loss", "squared", **conformer)
    one, parts = trainer(toy, config), trainer(toy, config, micro_batch=3)
    plain = [trainer(toy, parse_config(SMALL | conformer)) for _ in range(2)]
    assert one.run_epoch().loss == parts.run_epoch().loss
    assert not stackable([one, parts]) and stackable(plain)


def test_classes_are_weighted_where_the_loss_takes_weights():
    config = OwnLossConfig(name="mine.py:weighted", code=keep_source(SourceFile("mine.py", FUNCTIONS)))
    logits, target, weights = torch.randn(6, 3), torch.arange(6) % 3, torch.tensor([1.0, 2.0, 0.5])
    loss = make_own_loss(config, kind="classification", class_weights=weights)
    assert loss(logits, target) == torch.nn.functional.cross_entropy(logits, target, weight=weights)


def test_lists_among_the_arguments_are_lists():
    source = """def loss(outputs, target, weights):
    return outputs.mean() * (weights + [3.0])[1]
def change(x, weights):
    return x * (weights + [3.0])[1]
"""
    code, args = keep_source(SourceFile("mine.py", source)), {"weights": [1.0]}
    loss = make_own_loss(OwnLossConfig(name="mine.py:loss", code=code, args=args), kind="regression")
    assert loss(torch.ones(2, 1), torch.ones(2)) == 3.0
    config = OwnAugmentConfig(name="mine.py:change", code=code, prob=1.0, args=args)
    x = torch.ones(2, 3, 4)
    assert augment_batch(config, x, sfreq=50.0, rng=np.random.default_rng(0)).equal(3.0 * x)


def test_an_augmentation_changes_its_share_and_follows_from_the_generator():
    code = keep_source(SourceFile("mine.py", FUNCTIONS))
    config = OwnAugmentConfig(name="mine.py:reverse", code=code, prob=0.5, args={"share": 1.0})
    x = torch.randn(200, 2, 9)
    changed = augment_batch(config, x, sfreq=50.0, rng=np.random.default_rng(3))
    assert torch.equal(changed, augment_batch(config, x, sfreq=50.0, rng=np.random.default_rng(3)))
    reversed_B = (changed == x.flip(2)).all(2).all(1)
    assert ((changed == x).all(2).all(1) ^ reversed_B).all() and 60 < reversed_B.sum() < 140
    assert pickle.loads(pickle.dumps(config)) == config


def test_a_run_keeps_the_functions_and_continues_with_them_bit_for_bit(tmp_path):
    store = WindowStore(write_store(tmp_path / "store", ToyWindows()))
    space = load_space(write_functions(tmp_path / "mine"))
    run = open_run(space, store, str(tmp_path / "run"), SweepOptions(folds=3))
    for number in (0, 1):
        run.add_trial(number, space.draw(1)[0])
    run_trial(run, store, 0)
    for file in (tmp_path / "mine").iterdir():
        file.unlink()
    again = RunStore.open(tmp_path / "run")
    break_off(again, store, 1, 2)
    run_trial(RunStore.open(tmp_path / "run"), store, 1)
    assert (again.oof(0).predictions == again.oof(1).predictions).all()
    assert again.config(0).loss.name == "mine.py:quantile"
