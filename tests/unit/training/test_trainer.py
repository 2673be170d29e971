"""One fold: options of a trial that change what is drawn, scaled or predicted, and the choice of its epoch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raypipe.core.fold_drawing import make_folds
from raypipe.core.metrics import METRICS, score
from raypipe.core.model_config import MODELS
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.fit import fit_ensemble
from raypipe.ensembles.members import build_module, read_members
from raypipe.models.network import DropoutMasks
from raypipe.storage.records import Member
from raypipe.training import checkpoint
from raypipe.training.loader import WindowLoader
from raypipe.training.stacked_trainer import StackedTrainer
from raypipe.training.trainer import BestEpoch
from raypipe.trial.fold_runner import FoldRunner
from raypipe.trial.local import run_trial
from tests.support.toys import ToyWindows, fold_trainer, make_run, tiny, write_store


@pytest.fixture(scope="module")
def toy():
    return ToyWindows(subjects=12, each=6)


@pytest.fixture(scope="module")
def many():
    """Return enough subjects for ``early_stop=fold``."""
    return ToyWindows(subjects=30, each=3)


def trainer(toy, fold=0, **changes):
    folds = make_folds(toy.subjects, toy.targets, classes=False, n_folds=3, seed=0)
    return fold_trainer(tiny(**changes), toy, *folds.split(toy.subjects, fold), fold=fold)


def test_subject_sampling_draws_every_subject_equally_often(toy):
    uneven = trainer(toy, sampling="subject").data
    subjects = toy.subjects[uneven.train]
    first = np.unique(subjects)[0]
    # One subject with all its windows, the others with one.
    keep = [i for i in uneven.train if toy.subjects[i] == first]
    keep += [next(i for i in uneven.train if toy.subjects[i] == p) for p in np.unique(subjects)[1:]]
    uneven.train = np.array(keep * 40)
    drawn = uneven.order(np.random.default_rng(0))
    share = np.mean(toy.subjects[drawn] == first)
    assert len(drawn) == len(uneven.train) and share == pytest.approx(1 / len(np.unique(subjects)), abs=0.04)
    np.testing.assert_array_equal(drawn, uneven.order(np.random.default_rng(0)))
    plain = trainer(toy).data
    assert sorted(plain.order(np.random.default_rng(0))) == sorted(plain.train)


def test_full_shrinkage_predicts_the_training_mean(toy):
    for scale in ("standard", "robust"):
        one = trainer(toy, shrink=1.0, target_scale=scale)
        one.run_epoch()
        predictions = one.predict(one.data.validation)
        np.testing.assert_allclose(predictions, toy.targets[one.data.train].mean(), rtol=1e-5)
    plain, half = trainer(toy), trainer(toy, shrink=0.5)
    mean, index = plain.data.mean, plain.data.validation
    np.testing.assert_allclose(half.predict(index) - mean, 0.5 * (plain.predict(index) - mean), atol=1e-5)


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if not model.closed_form])
def test_a_training_of_any_network_continues_from_a_checkpoint_bit_by_bit(toy, name):
    changes = {"model__name": name, "sam__name": "sam", "optim__ema": 0.9, "mixup__name": "mixup", "optim__lr": 0.03}
    whole, killed, after = (trainer(toy, **changes) for _ in range(3))
    expected = [whole.run_epoch().predictions for _ in range(4)]
    killed.run_epoch()
    killed.run_epoch()
    after.load_state_dict(checkpoint.loads(checkpoint.dumps(killed.state_dict())))
    found = [after.run_epoch().predictions for _ in range(2)]
    np.testing.assert_array_equal(found, expected[2:])
    for one, other in zip(after.model.state_dict().values(), whole.model.state_dict().values(), strict=True):
        assert one.equal(other)


def test_constraints_hold_after_each_step_and_matter(toy):
    one = trainer(toy, model__name="eegnet", optim__lr=0.03, sam__name="sam")
    free = trainer(toy, model__name="eegnet", optim__lr=0.03, sam__name="sam", model__head_max_norm=0.0)
    one.start_epoch()
    for number, batch in enumerate(one.batches()):
        one.step(batch, number)
        assert one.model.head.weight.norm(dim=1).max() <= 0.25 + 1e-6
        assert one.model.spatial.weight.flatten(1).norm(dim=1).max() <= 1 + 1e-6
    free.run_epoch()
    assert free.model.head.weight.norm(dim=1).max() > 0.25


@pytest.mark.parametrize("name", ["tcn", "conformer", "eegnet", "shallow"])
def test_a_distribution_trains_alone_and_stacked_with_the_same_numbers(toy, name):
    changes = {"model__name": name, "model__bins": 16, "loss__name": "kl", "sam__name": "sam"}
    alone = [trainer(toy, fold, **changes) for fold in (0, 1)]
    apart = [one.run_epoch() for one in alone]
    stack = StackedTrainer([trainer(toy, fold, **changes) for fold in (0, 1)])
    for one, other in zip(apart, stack.run_epoch(), strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
        np.testing.assert_allclose(one.predictions, other.predictions, atol=1e-5)


@pytest.mark.parametrize("name", ["tcn", "eegnet", "shallow"])
def test_a_run_becomes_an_ensemble_whose_module_repeats_its_predictions(toy, tmp_path, name):
    toy = WindowStore(write_store(tmp_path / "store", toy))
    run = make_run(tmp_path / "run", toy)
    changes = {"model__name": name, "model__bins": 16, "loss__name": "kl", "shrink": 0.3, "target_scale": "robust"}
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


def choose(metric, *scores):
    """Offer the scores of epochs 1, 2, ...; return the best epoch, and the epochs at which it changed."""
    best, changed = BestEpoch(), []
    for epoch, value in enumerate(scores, start=1):
        if best.beaten_by(value, METRICS[metric]):
            best = BestEpoch(epoch, value)
            changed.append(epoch)
    return best, changed


@given(st.lists(st.integers(0, 40).map(lambda k: k / 8), min_size=1, max_size=12))
def test_the_best_epoch_is_chosen_and_the_first_of_equals(errors):
    assert choose("nrmse", *errors)[0].epoch == 1 + int(np.argmin(errors))


def test_a_larger_score_may_be_better():
    best, changed = choose("auc", 0.6, 1.0, 0.8)
    assert (best.epoch, best.score, changed) == (2, 1.0, [1, 2])


def test_the_latest_epoch_is_chosen_until_there_is_a_score():
    """The AUC of subjects of one class is always NaN, so the fold is trained to its end."""
    best, changed = choose("auc", np.nan, np.nan, np.nan)
    assert changed == [1, 2, 3] and np.isnan(best.score)


def test_an_epoch_with_a_nan_score_never_replaces_one_with_a_score():
    best, changed = choose("nrmse", np.nan, 0.5, np.nan, 0.7, 0.2, np.nan)
    assert changed == [1, 2, 5] and best.score == 0.2


def test_the_epoch_is_chosen_by_the_subjects_set_apart(many):
    """The choice follows the metric on their windows, and weights and predictions are of that epoch."""
    toy = many
    one = trainer(toy, early_stop="fold", optim__lr=0.1, optim__schedule="constant", epochs=6, patience=6)
    scores, predictions = [], []
    for _ in range(6):
        outcome = one.run_epoch()
        inner = one.data.inner
        scores.append(score("nrmse", toy.targets[inner], one.predict(inner)))
        predictions.append(one.predict(one.data.validation))
        best = int(np.argmin(scores))
        assert (one.best.epoch, one.best.score) == (best + 1, scores[best])
        np.testing.assert_array_equal(outcome.predictions, predictions[best])
    assert len(set(scores)) > 1


def of_people():
    """Return windows of which each person's have one target, and enough people for ``early_stop=fold``."""
    toy = ToyWindows(subjects=30, each=3)
    toy.targets = np.repeat(np.arange(30) % 7, 3).astype(np.float32)
    return toy


@pytest.mark.parametrize(("options", "epoch"), [({}, 1), ({"level": "person"}, 1), ({"level": "window"}, 2)])
def test_the_epoch_is_chosen_at_the_level_of_the_score(options, epoch):
    """Epoch 1 is right about people and wrong about windows, epoch 2 is one off about both."""
    toy = of_people()
    folds = make_folds(toy.subjects, toy.targets, classes=False, n_folds=3, seed=0)
    one = fold_trainer(tiny(early_stop="fold"), toy, *folds.split(toy.subjects, 0), fold=0, **options)
    errors = {1: np.tile([-5.0, 0.0, 5.0], 30), 2: np.ones(90)}
    one.predict = lambda index: (toy.targets + errors[one.epoch])[index, None].astype(np.float32)
    for _ in errors:
        one.run_epoch()
    assert one.best.epoch == epoch


@pytest.mark.parametrize("level", ["window", "person"])
def test_a_runs_folds_choose_at_its_level(tmp_path, level):
    toy = of_people()
    run = make_run(tmp_path, toy)
    run.add_trial(0, tiny(early_stop="fold"))
    run.info = run.info.model_copy(update={"level": level})
    assert FoldRunner(run, WindowLoader(toy), 0, [0])._trainer(0).level == level


def test_the_chosen_epoch_survives_a_checkpoint(many):
    toy = many
    options = {"early_stop": "fold", "optim__lr": 0.1, "optim__schedule": "constant", "epochs": 9, "patience": 9}
    one, again = trainer(toy, **options), trainer(toy, **options)
    again.load_state_dict(checkpoint.loads(checkpoint.dumps(one.state_dict())))
    assert again.best.epoch == 0 and again.best.predictions.shape == (0, 1)
    for _ in range(4):
        one.run_epoch()
    state = checkpoint.loads(checkpoint.dumps(one.state_dict()))
    again.load_state_dict(state)
    assert (again.best.epoch, again.best.score, again.best.loss) == (one.best.epoch, one.best.score, one.best.loss)
    for name, tensor in one.best.weights.items():
        assert tensor.equal(again.best.weights[name]) and tensor.equal(state["weights"][name]), name
    for _ in range(3):
        np.testing.assert_array_equal(one.run_epoch().predictions, again.run_epoch().predictions)
        assert one.best.epoch == again.best.epoch


def test_both_passes_of_sam_use_the_same_dropout_masks(toy):
    """They are drawn with the batch, so a step draws nothing from torch's own generator."""
    one = trainer(toy, sam__name="sam", sam__rho=1e-9, model__dropout=0.5, batch_size=8)
    seen = []
    back = one.model.back
    one.model.back = lambda y, masks=None: seen.append(back(y, masks)) or seen[-1]
    state = torch.get_rng_state()
    one.start_epoch()
    for number, batch in enumerate(one.batches()):
        one.step(batch, number)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(seen) == 2 * one.data.steps_per_epoch
    for first, second in zip(seen[::2], seen[1::2], strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-5)
    with torch.no_grad():
        cut = one.model.front(one.model.prepare(batch.x), prepared=True)
        again, other = (back(cut, DropoutMasks(mask_M)) for mask_M in (batch.dropout, 2.0 - batch.dropout))
    assert not torch.allclose(again, other, atol=1e-3)  # masks matter
