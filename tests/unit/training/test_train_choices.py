"""Choices of a trial that change what is drawn, scaled or answered: sampling, target scale, shrinkage, bins."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raypipe.core.folds import make_folds
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.fit import fit_ensemble
from raypipe.ensembles.members import build_module, read_members
from raypipe.storage.records import Member
from raypipe.training.stacked_trainer import StackedTrainer
from raypipe.training.trainer import FoldTrainer, target_scale
from raypipe.trial.local import run_trial
from tests.support.toys import ToyWindows, make_run, tiny, write_store


@pytest.fixture(scope="module")
def toy():
    return ToyWindows(subjects=12, each=6)


def trainer(toy, fold=0, **changes):
    folds = make_folds(toy.subjects, toy.targets, classes=False, n_folds=3, seed=0)
    return FoldTrainer(tiny(**changes), toy, *folds.split(toy.subjects, fold), fold=fold)


def test_subject_sampling_gives_everyone_the_same_share(toy):
    uneven = trainer(toy, sampling="subject")
    people = uneven.windows.subjects[uneven.train]
    first = np.unique(people)[0]
    # One person with all windows, the others with one.
    keep = [i for i in uneven.train if uneven.windows.subjects[i] == first]
    keep += [next(i for i in uneven.train if uneven.windows.subjects[i] == p) for p in np.unique(people)[1:]]
    uneven.train = np.array(keep * 40)
    drawn = uneven._order(np.random.default_rng(0))
    share = np.mean(uneven.windows.subjects[drawn] == first)
    assert len(drawn) == len(uneven.train) and share == pytest.approx(1 / len(np.unique(people)), abs=0.04)
    np.testing.assert_array_equal(drawn, uneven._order(np.random.default_rng(0)))
    assert sorted(trainer(toy)._order(np.random.default_rng(0))) == sorted(trainer(toy).train)


def test_full_shrinkage_answers_the_training_mean(toy):
    for scale in ("standard", "robust"):
        one = trainer(toy, shrink=1.0, target_scale=scale)
        one.run_epoch()
        answers = one.predict(one.validation)
        np.testing.assert_allclose(answers, one.windows.targets[one.train].mean(), rtol=1e-5)
    plain, half = trainer(toy), trainer(toy, shrink=0.5)
    mean = plain.mean
    np.testing.assert_allclose(
        half.predict(half.validation) - mean, 0.5 * (plain.predict(plain.validation) - mean), atol=1e-5
    )


def test_target_scales():
    values = np.array([0.0, 1.0, 2.0, 3.0, 100.0])
    assert target_scale(values, "standard") == pytest.approx((values.mean(), values.std()))
    assert target_scale(values, "robust") == pytest.approx((2.0, 1.4826))
    assert target_scale(np.array([1.0, 1.0, 1.0, 5.0]), "robust")[1] == pytest.approx(np.sqrt(3))


@pytest.mark.parametrize("name", ["tcn", "conformer"])
def test_a_distribution_trains_alone_and_stacked_with_the_same_numbers(toy, name):
    changes = {"model__name": name, "model__bins": 16, "loss__name": "kl", "sam__name": "sam"}
    alone = [trainer(toy, fold, **changes) for fold in (0, 1)]
    apart = [one.run_epoch() for one in alone]
    stack = StackedTrainer([trainer(toy, fold, **changes) for fold in (0, 1)])
    for one, other in zip(apart, stack.run_epoch(), strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
        np.testing.assert_allclose(one.predictions, other.predictions, atol=2e-3)


def test_a_tcn_run_becomes_an_ensemble_whose_module_repeats_its_predictions(toy, tmp_path):
    toy = WindowStore(write_store(tmp_path / "store", toy))
    run = make_run(tmp_path / "run", toy)
    changes = {"model__name": "tcn", "model__bins": 16, "loss__name": "kl", "shrink": 0.3, "target_scale": "robust"}
    run.add_trial(0, tiny(epochs=2, batch_size=16, **changes))
    run_trial(run, toy, 0)
    ensemble = fit_ensemble(run, windows=toy, top=1)
    module = build_module(*read_members(run, toy, [Member(0)], [1.0]))
    with torch.no_grad():
        answers = module(torch.from_numpy(toy.gather(ensemble.held_out.windows))).numpy()
    np.testing.assert_allclose(answers, ensemble.held_out.predictions, atol=1e-4)
    oof = run.oof(0)
    index = oof.windows[oof.folds == 0][:4]
    with torch.no_grad():
        member = module.predict_members(torch.from_numpy(toy.gather(index)))[0][0].numpy()
    np.testing.assert_allclose(member, oof.predictions[oof.folds == 0][:4], atol=1e-4)
