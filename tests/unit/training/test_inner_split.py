"""The subjects that a fold sets apart to choose its epoch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from raypipe.core.errors import UserError
from raypipe.core.folds import FoldMap
from raypipe.training.inner_split import INNER_FRACTION, MIN_INNER_SUBJECTS, MIN_TRAIN_SUBJECTS, split_inner
from raypipe.training.loader import WindowLoader
from raypipe.trial.fold_runner import FoldRunner
from tests.support.toys import ToyWindows, make_run, tiny

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


@given(st.lists(st.integers(0, 39), min_size=80, max_size=200), SEEDS, SEEDS, st.integers(0, 5))
def test_no_group_is_on_both_sides(subjects, seed, fold, alone):
    """Brothers of those who choose the epoch are not trained on."""
    groups = np.array([f"sub-{s:02d}" if s % 6 < alone else f"family {s // 2:02d}" for s in subjects])
    assume(len(set(groups.tolist())) >= MIN_TRAIN_SUBJECTS)
    names, windows = np.array([f"{s:02d}" for s in subjects]), np.arange(len(subjects))
    train, inner = split_inner(windows, names, groups=groups, seed=seed, fold=fold)
    assert not set(groups[train].tolist()) & set(groups[inner].tolist())
    np.testing.assert_array_equal(np.sort(np.r_[train, inner]), windows)
    n_groups = len(set(groups.tolist()))
    assert len(set(groups[inner].tolist())) == max(MIN_INNER_SUBJECTS, round(INNER_FRACTION * n_groups))


@given(SUBJECTS, SEEDS, SEEDS)
def test_without_groups_the_split_is_that_of_subjects(subjects, seed, fold):
    assume(len(set(subjects)) >= MIN_TRAIN_SUBJECTS)
    names, windows = np.array(subjects), np.arange(len(subjects))
    alone = FoldMap(seed=0, n_folds=2, fold_of={}).groups(subjects)
    for plain, grouped in zip(
        split_inner(windows, names, seed=seed, fold=fold),
        split_inner(windows, names, groups=alone, seed=seed, fold=fold),
        strict=True,
    ):
        np.testing.assert_array_equal(plain, grouped)


def test_few_groups_are_refused_in_one_line():
    names = np.repeat([f"s{k:02d}" for k in range(20)], 2)
    groups = np.repeat([f"family {k}" for k in range(10)], 4)
    with pytest.raises(UserError, match=r"fold 1 has 10 training groups of subjects, .* needs 16; use early_stop=tria"):
        split_inner(np.arange(40), names, groups=groups, seed=0, fold=1)


def test_a_trials_fold_divides_no_group(tmp_path):
    """The trainer of a run, by the groups of its fold map."""
    windows = ToyWindows(subjects=60, each=3)
    family = {name: f"family {k // 2}" for k, name in enumerate(sorted(set(windows.subjects.tolist())))}
    run = make_run(tmp_path / "run", windows, group_of=family)
    run.add_trial(0, tiny(early_stop="fold"))
    data = FoldRunner(run, WindowLoader(windows), 0, [0])._trainer(0).data
    left, apart = ({family[name] for name in windows.subjects[side]} for side in (data.train, data.inner))
    assert len(apart) >= MIN_INNER_SUBJECTS and not left & apart
