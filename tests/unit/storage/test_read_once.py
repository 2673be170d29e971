"""Records of trials that are read once."""

from __future__ import annotations

from collections import Counter

import pytest

from raypipe.core.errors import UserError
from raypipe.storage.files import LocalFolder
from raypipe.storage.read_once import ReadOnce
from tests.support.toys import ToyWindows, add_ended, make_run, tiny


@pytest.fixture
def run(tmp_path):
    """A run of three trials that have ended, and one that has not."""
    run = make_run(tmp_path / "run", ToyWindows())
    for number in range(3):
        add_ended(run, number, 1.0 + 0.1 * number)
    run.add_trial(3, tiny())
    return run


def test_it_returns_what_the_run_does(run):
    once = ReadOnce(run)
    for _ in range(2):
        assert once.listing() == run.listing() and once.numbers() == run.numbers() == [0, 1, 2, 3]
        assert once.results() == run.results() and once.ranked() == run.ranked()
        assert [once.record(n) for n in run.numbers()] == [run.record(n) for n in run.numbers()]
        assert once.history(1) == run.history(1) and once.result(3) is None
    with pytest.raises(UserError, match="no trial 9"):
        once.record(9)


def test_each_record_is_read_once(run, monkeypatch):
    read, read_file = Counter(), LocalFolder.read
    monkeypatch.setattr(LocalFolder, "read", lambda folder, name: read.update([name]) or read_file(folder, name))
    once = ReadOnce(run)
    for number in once.numbers() * 3:
        once.config(number), once.started(number), once.rerun_of(number), once.result(number), once.results()
    assert set(read.values()) == {1} and len(read) == 4 + 4  # of trial 3, the result that is not there


def test_a_trial_that_ends_meanwhile_has_not_ended(run):
    once = ReadOnce(run)
    assert once.result(3) is None and once.numbers() == [0, 1, 2, 3]
    run.write_result(run.result(0).model_copy(update={"number": 3}))
    run.add_trial(4, tiny())
    assert once.result(3) is None and once.numbers() == [0, 1, 2, 3]
