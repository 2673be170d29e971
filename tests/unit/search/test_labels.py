"""Labels of two runs with one target are compared before one informs the other."""

from __future__ import annotations

import re

import numpy as np
import pytest

from raypipe.api import from_arrays
from raypipe.search.labels import labels_differ, labels_of
from raypipe.storage.records import LabelsInfo


def _store(out, y, people=("a", "b", "c")):
    subjects = np.repeat(people, 2)
    x = np.random.default_rng(0).normal(scale=10, size=(len(y), 2, 50))
    return from_arrays(x, np.asarray(y), subjects, sfreq=50, ch_names=["C3", "C4"], unit="uV", out=out)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bids_task": ("rest",)}, "--bids-task none, not rest"),
        ({"select": "correct == 1"}, "--select none, not correct == 1"),
        ({"events_from": "kind"}, "--events-from none, not kind"),
        ({"joined_on": ("onset",)}, "joined on: none, not onset"),
        ({"of_people": {"a": "2"}}, r"those of 1 subject\(s\) of both runs \(a\)"),
    ],
)
def test_what_makes_labels_different_is_named(change, said):
    base = LabelsInfo(of_people={"a": "1"})
    assert re.search(said, labels_differ(base, base.model_copy(update=change)))


def test_the_order_of_bids_tasks_and_people_of_one_run_do_not_matter():
    old = LabelsInfo(bids_task=("a", "b"), of_people={"x": "1"})
    assert not labels_differ(old, LabelsInfo(bids_task=("b", "a"), of_people={"y": "2"}))


@pytest.mark.parametrize("y", [[1.0, 2, 3, 4, 5, 6], [1.0, 1, 2, 2, 3, 3], ["u", "u", "v", "v", "v", "v"]])
def test_labels_of_given_windows_are_compared_by_person(tmp_path, y):
    stores = [_store(tmp_path / "same", y), _store(tmp_path / "again", y), _store(tmp_path / "other", y[::-1])]
    same, again, other = map(labels_of, stores)
    assert not labels_differ(same, again)
    assert labels_differ(same, other)
