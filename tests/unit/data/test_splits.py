from __future__ import annotations

import numpy as np
import pytest

from raypipe.core.errors import UserError
from raypipe.core.fold_drawing import make_folds
from raypipe.core.folds import LeakError
from raypipe.data.splits import audit_subjects, copied_windows, folds_of
from raypipe.data.window_store import WindowStore
from tests.support.toys import ToyWindows, write_store


@pytest.fixture
def made(tmp_path):
    windows = WindowStore(write_store(tmp_path / "store", ToyWindows()))
    return windows, make_folds(windows.subjects, windows.targets, classes=False, n_folds=3)


def test_a_subject_with_the_name_of_a_release_is_itself(made):
    windows, _ = made
    windows.subjects = np.array([f"R{int(name[1:]) + 1}" for name in windows.subjects])
    people = sorted(set(windows.subjects.tolist()))
    assert folds_of(windows, 2, people[:2], seed=0).held_out == people[:2]
    with pytest.raises(UserError, match="held out R11: no subject is of that release"):
        folds_of(windows, 2, ["R11"], seed=0)


def test_an_undamaged_store_passes_the_audit(made):
    audit_subjects(*made)


def test_a_recording_in_two_folds_is_named(made):
    windows, folds = made
    windows.table.loc[windows.table["shard"] == 1, "recording"] = "sub-s00"
    folds = folds.model_copy(update={"fold_of": folds.fold_of | {"s00": 0, "s01": 1}})
    with pytest.raises(LeakError, match=r"recording sub-s00: its windows are in several folds.*overlaps"):
        audit_subjects(windows, folds)


def test_a_copied_window_under_another_subjects_name_is_found(tmp_path):
    toy = ToyWindows()
    toy.x[8 + 3] = toy.x[2]  # one window of the second subject: the recordings differ
    windows = WindowStore(write_store(tmp_path / "store", toy))
    folds = make_folds(windows.subjects, windows.targets, classes=False, n_folds=3)
    same = folds.model_copy(update={"fold_of": folds.fold_of | {"s00": 1, "s01": 1}})
    audit_subjects(windows, same)
    apart = folds.model_copy(update={"fold_of": folds.fold_of | {"s00": 1, "s01": 2}})
    with pytest.raises(LeakError, match=r"windows of sub-s00 at 4 s and sub-s01 at 6 s hold the same samples"):
        audit_subjects(windows, apart)


def test_windows_without_a_signal_are_no_copies(tmp_path):
    toy = ToyWindows()
    toy.x[::8] = 0.0
    windows = WindowStore(write_store(tmp_path / "store", toy))
    audit_subjects(windows, make_folds(windows.subjects, windows.targets, classes=False, n_folds=3))


def test_copies_are_found_in_any_number():
    digests = np.array(["a", "b", "", "a", "c", "a", ""])
    assert list(copied_windows(digests)) == [(0, 3), (3, 5)]


def test_groups_of_the_store_are_kept_together(tmp_path):
    windows = WindowStore(write_store(tmp_path / "store", ToyWindows()))
    family = {"s00": "F1", "s01": "F1", "s05": "F2", "s06": "F2"}
    windows.table["group"] = [family.get(subject, "") for subject in windows.subjects]
    for seed in range(10):
        folds = folds_of(windows, 3, "auto", seed)
        assert folds.group_of == family
        assert folds.fold_of["s00"] == folds.fold_of["s01"] and folds.fold_of["s05"] == folds.fold_of["s06"]
        audit_subjects(windows, folds)
    split = folds.model_copy(update={"fold_of": folds.fold_of | {"s00": 0, "s01": 1}})
    with pytest.raises(LeakError, match=r"1 group\(s\) in both .*: F1"):
        audit_subjects(windows, split)


def test_a_subject_missing_from_the_fold_map_is_a_leak(made):
    windows, folds = made
    fold_of = {name: fold for name, fold in folds.fold_of.items() if name != "s03"}
    with pytest.raises(LeakError, match="s03"):
        audit_subjects(windows, folds.model_copy(update={"fold_of": fold_of}))


def test_a_copy_that_is_apart_in_a_later_repeat_is_found(tmp_path):
    toy = ToyWindows(subjects=12)
    toy.x[8 + 3] = toy.x[2]
    windows = WindowStore(write_store(tmp_path / "store", toy))
    folds = folds_of(windows, 3, ["s11"], 0, repeats=2)
    first = folds.fold_of | {"s00": 1, "s01": 1}
    for other, apart in ((4, False), (5, True)):
        changed = {"fold_of": first, "repeated": [folds.repeated[0] | {"s00": 4, "s01": other}]}
        if apart:
            with pytest.raises(LeakError, match="hold the same samples but are in different folds"):
                audit_subjects(windows, folds.model_copy(update=changed))
        else:
            audit_subjects(windows, folds.model_copy(update=changed))
