"""The subjects that a fold sets apart, and the epoch that it chooses by them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raypipe.training import checkpoint
from raypipe.training.inner_validation import SHARE, InnerValidation, split_inner

SUBJECTS = st.lists(st.integers(0, 12).map("s{:02d}".format), min_size=1, max_size=60)
SEEDS = st.integers(0, 99)


@given(SUBJECTS, SEEDS, SEEDS)
def test_no_subject_is_on_both_sides_and_no_window_is_lost(subjects, seed, fold):
    names = np.array(subjects)
    windows = np.arange(len(names)) * 3 + 1  # numbers of a store's windows, not places
    train, inner = split_inner(windows, names, seed=seed, fold=fold)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, inner])), windows)
    of = dict(zip(windows.tolist(), subjects, strict=True))
    left, apart = {of[w] for w in train.tolist()}, {of[w] for w in inner.tolist()}
    assert not left & apart
    assert left
    assert len(apart) == (max(1, round(SHARE * len(set(subjects)))) if len(set(subjects)) > 1 else 0)
    again = split_inner(windows, names, seed=seed, fold=fold)
    assert again[0].tolist() == train.tolist() and again[1].tolist() == inner.tolist()


def test_folds_and_seeds_set_others_apart():
    names = np.repeat([f"s{k:02d}" for k in range(20)], 2)
    windows = np.arange(40)
    drawn = {tuple(split_inner(windows, names, seed=s, fold=f)[1]) for s in range(4) for f in range(4)}
    assert len(drawn) > 12


def look(choice, *values):
    """Epochs after which the choice has changed; a value is the regression's error, None a prediction that is none."""
    targets = np.array([0.0, 1.0, 2.0, 3.0], np.float32)
    changed = []
    for epoch, value in enumerate(values, start=choice.epoch + 1):
        predictions = targets[:, None] + np.float32(np.nan if value is None else value)
        if choice.look(epoch, targets, predictions):
            changed.append(epoch)
    return changed


@given(st.lists(st.integers(0, 40).map(lambda k: k / 8), min_size=1, max_size=12))
def test_the_best_epoch_is_chosen_and_the_first_of_equals(errors):
    choice = InnerValidation("nrmse", minimize=True)
    look(choice, *errors)
    assert choice.epoch == 1 + int(np.argmin(errors))


def test_a_score_may_be_the_better_the_larger():
    choice = InnerValidation("auc", minimize=False)
    targets = np.array([0, 0, 1, 1])
    for epoch, share in enumerate([0.4, 0.9, 0.6], start=1):  # of a window of the other class
        answers = np.array([0.1, share, 0.5, 0.95])
        choice.look(epoch, targets, np.stack([1 - answers, answers], axis=1))
    assert (choice.epoch, choice.score) == (1, 1.0)


def test_while_there_is_no_score_the_latest_epoch_counts():
    """AUC of subjects of one class: never a number, so the fold is trained to its end."""
    choice = InnerValidation("auc", minimize=False)
    for epoch in (1, 2, 3):
        assert choice.look(epoch, np.ones(3, int), np.full((3, 2), 0.5))
    assert choice.epoch == 3 and np.isnan(choice.score)


def test_an_epoch_that_is_no_number_never_replaces_one_that_is():
    choice = InnerValidation("nrmse", minimize=True)
    assert look(choice, None, 0.5, None, 0.7, 0.2, None) == [1, 2, 5]
    assert choice.score == pytest.approx(0.2 / np.std([0, 1, 2, 3]), rel=1e-5)


def test_a_choice_survives_a_checkpoint():
    choice = InnerValidation("nrmse", minimize=True)
    assert look(choice, 0.5, 0.3) == [1, 2]
    choice.keep({"a": torch.arange(3.0)}, np.full((2, 1), 7, np.float32), 0.25)
    again = InnerValidation("nrmse", minimize=True)
    again.load_state_dict(checkpoint.loads(checkpoint.dumps(choice.state_dict())))
    assert (again.epoch, again.score, again.loss) == (choice.epoch, choice.score, choice.loss)
    assert again.weights["a"].tolist() == [0, 1, 2] and again.predictions.tolist() == [[7], [7]]
    assert look(again, 0.4, 0.1) == [4]
    fresh = InnerValidation("auc", minimize=False)
    again.load_state_dict(checkpoint.loads(checkpoint.dumps(fresh.state_dict())))
    assert again.epoch == 0 and again.predictions.shape == (0, 1)
