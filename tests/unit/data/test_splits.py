from __future__ import annotations

import pytest

from raypipe.core.folds import LeakError, make_folds
from raypipe.data.splits import audit_subjects
from raypipe.data.window_store import WindowStore
from tests.support.toys import ToyWindows, write_store


@pytest.fixture
def made(tmp_path):
    windows = WindowStore(write_store(tmp_path / "store", ToyWindows()))
    return windows, make_folds(windows.subjects, windows.targets, classes=False, n_folds=3)


def test_an_undamaged_store_passes_the_audit(made):
    audit_subjects(*made)


def test_a_recording_in_two_folds_is_named(made):
    windows, folds = made
    windows.table.loc[windows.table["shard"] == 1, "recording"] = "sub-s00"
    folds = folds.model_copy(update={"fold_of": folds.fold_of | {"s00": 0, "s01": 1}})
    with pytest.raises(LeakError, match=r"recording sub-s00: its windows are in several folds.*overlaps"):
        audit_subjects(windows, folds)


def test_a_copy_under_another_subjects_name_is_found(made):
    windows, folds = made
    first, second, *rest = windows.manifest.shards
    copied = second.model_copy(update={"sha256": first.sha256})
    windows.manifest = windows.manifest.model_copy(update={"shards": (first, copied, *rest)})
    same = folds.model_copy(update={"fold_of": folds.fold_of | {"s00": 1, "s01": 1}})
    audit_subjects(windows, same)
    apart = folds.model_copy(update={"fold_of": folds.fold_of | {"s00": 1, "s01": 2}})
    with pytest.raises(LeakError, match=r"sub-s00 and sub-s01 hold the same samples"):
        audit_subjects(windows, apart)


def test_a_subject_missing_from_the_fold_map_is_a_leak(made):
    windows, folds = made
    fold_of = {name: fold for name, fold in folds.fold_of.items() if name != "s03"}
    with pytest.raises(LeakError, match="s03"):
        audit_subjects(windows, folds.model_copy(update={"fold_of": fold_of}))
