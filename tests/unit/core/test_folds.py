from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from raypipe.core.errors import UserError
from raypipe.core.fold_drawing import make_folds, make_outer_parts
from raypipe.core.folds import HELD_OUT, FoldMap, LeakError, audit


def windows(n_subjects, each=4, seed=0):
    rng = np.random.default_rng(seed)
    subjects = np.repeat([f"s{k:03d}" for k in range(n_subjects)], each)
    return subjects, rng.integers(0, 2, len(subjects))


@settings(max_examples=50)
@given(st.integers(6, 40), st.integers(2, 4), st.floats(0.05, 0.4), st.integers(0, 5), st.booleans(), st.integers(1, 5))
def test_every_subject_is_in_one_fold_and_no_fold_is_empty(n, k, share, seed, classes, each):
    subjects, targets = windows(n, each)
    assume(k <= n - max(1, round(share * n)))
    folds = make_folds(subjects, targets, classes=classes, n_folds=k, held_out=share, seed=seed)
    assert sorted(folds.fold_of) == sorted(set(subjects))
    assert set(folds.fold_of.values()) == {HELD_OUT, *range(k)}
    everywhere = np.concatenate([folds.split(subjects, f)[1] for f in range(k)] + [folds.held_out_index(subjects)])
    np.testing.assert_array_equal(np.sort(everywhere), np.arange(len(subjects)))
    for fold in range(k):
        train, validation = folds.split(subjects, fold)
        assert not set(subjects[train]) & set(subjects[validation])
        assert not set(subjects[train]) & set(folds.held_out)
    again = make_folds(subjects, targets, classes=classes, n_folds=k, held_out=share, seed=seed)
    assert again == folds


def test_classes_are_spread_over_the_folds():
    subjects = np.repeat([f"s{k}" for k in range(20)], 2)
    targets = np.repeat([0, 1], 20)
    folds = make_folds(subjects, targets, classes=True, n_folds=4, held_out=0.2)
    for fold in range(4):
        assert len(set(targets[folds.split(subjects, fold)[1]])) == 2
    assert set(targets[folds.held_out_index(subjects)]) == {0, 1}


def test_held_out_subjects_may_be_named():
    subjects, targets = windows(6)
    folds = make_folds(subjects, targets, classes=False, n_folds=2, held_out=["s001", "sub-s004"])
    assert folds.held_out == ["s001", "s004"]


@pytest.mark.parametrize(
    ("n", "options", "message"),
    [
        (1, {}, "one subject only"),
        (6, {"n_folds": 6}, r"6 folds need at least 6 subjects beside the 1 held out.*--folds 5"),
        (6, {"n_folds": 1}, "at least 2"),
        (3, {"n_folds": 2, "held_out": 0.8}, "beside the 2 held out.*: hold out fewer"),
        (5, {"n_folds": 3, "held_out": 0.4, "seed": 1}, "beside the 3 held out.*--folds 2"),
        (6, {"held_out": 1.5}, "between 0 and 1"),
        (6, {"held_out": ["s01"]}, "'s01' is not in the data; did you mean 's001'"),
    ],
)
def test_bad_arguments_give_one_line_messages(n, options, message):
    with pytest.raises(UserError, match=message):
        make_folds(*windows(n), classes=False, **options)


@settings(max_examples=50)
@given(st.integers(2, 30), st.integers(2, 8), st.booleans(), st.integers(0, 5))
def test_outer_parts_hold_every_subject_once_and_are_the_same_again(n, parts, classes, seed):
    subjects, targets = windows(n)
    targets = (np.arange(len(targets)) % 2) if classes else targets
    if parts > n:
        with pytest.raises(UserError, match=f"--outer {parts}: the data has {n} subject"):
            make_outer_parts(subjects, targets, classes=classes, n_parts=parts, seed=seed)
        return
    found = make_outer_parts(subjects, targets, classes=classes, n_parts=parts, seed=seed)
    assert len(found) == parts and all(found)
    assert sorted(name for part in found for name in part) == sorted(set(subjects.tolist()))
    assert found == make_outer_parts(subjects, targets, classes=classes, n_parts=parts, seed=seed)


def test_outer_parts_keep_groups_together():
    subjects, targets = windows(12)
    group_of = {f"s{k:03d}": f"family {k // 3}" for k in range(9)}
    found = make_outer_parts(subjects, targets, classes=False, n_parts=4, group_of=group_of)
    assert sorted(name for part in found for name in part) == sorted(set(subjects.tolist()))
    for part in found:
        for name in part:
            assert all(other in part for other, group in group_of.items() if group == group_of.get(name))
    with pytest.raises(UserError, match=r"--outer 7: the data has 6 group\(s\)"):
        make_outer_parts(subjects, targets, classes=False, n_parts=7, group_of=group_of)


def test_the_audit_names_the_subjects_on_both_sides():
    subjects = np.array(["a", "a", "b", "c"])
    audit(subjects, {"training": np.array([0, 1]), "validation": np.array([2])})
    with pytest.raises(LeakError, match=r"1 subject\(s\) in both training and validation: a"):
        audit(subjects, {"training": np.array([0, 3]), "validation": np.array([1, 2])})
    with pytest.raises(LeakError, match="validation part has no window"):
        audit(subjects, {"training": np.array([0]), "validation": np.array([], dtype=int)})


def test_a_subject_missing_from_the_map_is_a_leak():
    folds = FoldMap(seed=0, n_folds=2, fold_of={"a": 0, "b": 1, "c": HELD_OUT})
    with pytest.raises(LeakError, match="subject 'd' is not in"):
        folds.split(np.array(["a", "b", "c", "d"]), 0)


@settings(max_examples=40)
@given(st.integers(6, 40), st.integers(2, 4), st.integers(0, 20), st.booleans())
def test_a_group_is_on_one_side_of_every_split(n, k, seed, classes):
    subjects, targets = windows(n, seed=seed)
    rng = np.random.default_rng(seed)
    group_of = {s: f"family {rng.integers(0, n)}" for s in set(subjects) if rng.random() < 0.7}
    try:
        folds = make_folds(subjects, targets, classes=classes, n_folds=k, seed=seed, group_of=group_of)
    except UserError as error:
        assert "groups beside the held-out" in str(error) or "subjects beside" in str(error)
        return
    sides = {}
    for subject, fold in folds.fold_of.items():
        assert sides.setdefault(group_of.get(subject, subject), fold) == fold
    assert set(folds.fold_of.values()) == {HELD_OUT, *range(k)}


def test_a_map_that_splits_a_group_is_a_leak():
    folds = FoldMap(seed=0, n_folds=2, fold_of={"a": 0, "b": 1, "c": HELD_OUT}, group_of={"a": "F", "b": "F"})
    with pytest.raises(LeakError, match=r"1 group\(s\) in both training and validation: F"):
        folds.split(np.array(["a", "b", "c"]), 0)
    assert folds.model_copy(update={"group_of": {"a": "F", "c": "F"}}).held_out_among(["a"]) == ["c"]


def test_a_part_of_a_group_cannot_be_held_out():
    subjects, targets = windows(6)
    group_of = {"s001": "F", "s004": "F"}
    with pytest.raises(UserError, match=r"share a group with 1 that are not held out \(s004\)"):
        make_folds(subjects, targets, classes=False, n_folds=2, held_out=["s001"], group_of=group_of)
    folds = make_folds(subjects, targets, classes=False, n_folds=2, held_out=["s001", "s004"], group_of=group_of)
    assert folds.held_out == ["s001", "s004"]
    with pytest.raises(UserError, match="groups beside the held-out"):
        make_folds(subjects, targets, classes=False, n_folds=3, group_of=dict.fromkeys(set(subjects[:16]), "F"))


@pytest.mark.parametrize("varied", [False, True])
def test_folds_of_values_are_stratified_by_the_mean_target_of_people(varied):
    rng = np.random.default_rng(1)
    each = rng.integers(5, 60, 40) if varied else np.full(40, 8)
    subjects = np.repeat([f"s{k:03d}" for k in range(40)], each)
    level = rng.normal(size=40)
    targets = np.repeat(level, each) + rng.normal(size=len(subjects)) * 0.1
    spreads, sizes, maps = [], [], set()
    for seed in range(20):
        folds = make_folds(subjects, targets, classes=False, n_folds=4, seed=seed)
        of = np.array([folds.fold_of[f"s{k:03d}"] for k in range(40)])
        spreads.append(np.std([level[of == f].mean() for f in range(-1, 4)]))
        n = [int(each[of == f].sum()) for f in range(-1, 4)]
        sizes.append(max(n) / min(n))
        maps.add(tuple(of))
    shuffled = [np.std(rng.permutation(level).reshape(5, 8).mean(1)) for _ in range(20)]
    assert np.mean(spreads) < 0.6 * np.mean(shuffled)
    assert np.mean(sizes) < 1.5 and len(maps) == 20  # other seeds give other folds


@settings(max_examples=40)
@given(st.integers(8, 30), st.integers(2, 4), st.integers(2, 4), st.integers(0, 5), st.booleans(), st.booleans())
def test_repeats_are_other_folds_of_the_same_people(n, k, repeats, seed, classes, grouped):
    subjects, targets = windows(n, seed=seed)
    rng = np.random.default_rng(seed)
    group_of = {s: f"family {rng.integers(0, n)}" for s in sorted(set(subjects))} if grouped else {}
    how = {"classes": classes, "n_folds": k, "seed": seed, "group_of": group_of}
    try:
        folds = make_folds(subjects, targets, repeats=repeats, **how)
    except UserError as error:
        assert "groups beside the held-out" in str(error) or "way(s) only" in str(error)
        return
    assert (folds.n_folds, folds.folds_per_repeat, folds.repeats) == (k * repeats, k, repeats)
    once = make_folds(subjects, targets, **how)
    assert (once.fold_of, once.held_out) == (folds.fold_of, folds.held_out)
    everyone, partitions = set(folds.search_index(subjects).tolist()), set()
    for repeat in range(repeats):
        seen = []
        for fold in range(repeat * k, repeat * k + k):
            train, validation = folds.split(subjects, fold)
            assert set(train.tolist()) | set(validation.tolist()) == everyone
            assert not set(folds.groups(subjects[train])) & set(folds.groups(subjects[validation]))
            seen += validation.tolist()
        assert sorted(seen) == sorted(everyone)
        each = folds.folds(subjects, repeat)
        partitions.add(frozenset(frozenset(subjects[each == fold]) for fold in set(each)))
    assert len(partitions) == repeats
    index, rows = folds.predicted_rows(subjects)
    for window, fold in zip(index, rows, strict=True):
        assert window in folds.split(subjects, fold)[1]
    assert len(set(zip(index.tolist(), rows.tolist(), strict=True))) == repeats * len(everyone)


def test_repeats_that_cannot_differ_are_refused():
    subjects, targets = windows(5)
    with pytest.raises(UserError, match=r"--repeats 2: 4 subjects .*split into 4 folds in 1 different way"):
        make_folds(subjects, targets, classes=False, n_folds=4, repeats=2)


def test_a_repeat_that_trains_on_held_out_people_is_a_leak():
    first = {"a": 0, "b": 1, "c": HELD_OUT}
    folds = FoldMap(seed=0, n_folds=4, fold_of=first, repeated=[{"a": 3, "b": 2, "c": 3}])
    with pytest.raises(LeakError, match=r"in both training and held-out: c"):
        folds.split(np.array(["a", "b", "c"]), 2)
