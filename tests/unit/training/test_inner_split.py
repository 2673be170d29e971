"""The subjects that a fold sets apart to choose its epoch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from raypipe.core.errors import UserError
from raypipe.training.inner_split import INNER_FRACTION, MIN_INNER_SUBJECTS, MIN_TRAIN_SUBJECTS, split_inner

SUBJECTS = st.lists(st.integers(0, 50).map("s{:02d}".format), min_size=60, max_size=200)
SEEDS = st.integers(0, 99)


@given(SUBJECTS, SEEDS, SEEDS)
def test_no_subject_is_on_both_sides_and_no_window_is_lost(subjects, seed, fold):
    assume(len(set(subjects)) >= MIN_TRAIN_SUBJECTS)
    names = np.array(subjects)
    windows = np.arange(len(names)) * 3 + 1  # numbers of windows in a store, not positions
    train, inner = split_inner(windows, names, seed=seed, fold=fold)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, inner])), windows)
    of = dict(zip(windows.tolist(), subjects, strict=True))
    left, apart = {of[w] for w in train.tolist()}, {of[w] for w in inner.tolist()}
    assert not left & apart
    assert len(apart) == max(MIN_INNER_SUBJECTS, round(INNER_FRACTION * len(set(subjects))))
    assert len(left) >= 3 * len(apart)
    again = split_inner(windows, names, seed=seed, fold=fold)
    assert again[0].tolist() == train.tolist() and again[1].tolist() == inner.tolist()


def test_folds_and_seeds_set_different_subjects_apart():
    names = np.repeat([f"s{k:02d}" for k in range(20)], 2)
    windows = np.arange(40)
    drawn = {tuple(split_inner(windows, names, seed=s, fold=f)[1]) for s in range(4) for f in range(4)}
    assert len(drawn) > 12


@pytest.mark.parametrize("n", [1, 6, MIN_TRAIN_SUBJECTS - 1])
def test_few_subjects_are_refused_in_one_line(n):
    """The epoch was chosen by one or two people, or by a score of NaN, without a warning."""
    names = np.repeat([f"s{k:02d}" for k in range(n)], 2)
    with pytest.raises(UserError, match=rf"early_stop=fold: fold 3 has {n} training subjects, .* needs 16") as caught:
        split_inner(np.arange(2 * n), names, seed=0, fold=3)
    assert "\n" not in str(caught.value)


@given(SEEDS, st.integers(2, 10))
def test_every_class_occurs_among_the_subjects_set_apart(seed, rare):
    """Where the class is the person's, an AUC of people of one class would be NaN."""
    names = np.repeat([f"s{k:02d}" for k in range(20)], 3)
    classes = (np.arange(60) // 3 < rare).astype(int)
    train, inner = split_inner(np.arange(60), names, classes, seed=seed, fold=0)
    assert set(classes[train]) == set(classes[inner]) == {0, 1}


def test_a_class_of_one_person_is_refused():
    names = np.repeat([f"s{k:02d}" for k in range(20)], 3)
    classes = (np.arange(60) // 3 < 1).astype(int)
    with pytest.raises(
        UserError, match=r"cannot choose its epoch by 4 of its 20 .* lack a class; use early_stop=trial"
    ):
        split_inner(np.arange(60), names, classes, seed=0, fold=0)
