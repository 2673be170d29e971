"""A run in a few lines: states, kinds of failure, the ends of logs."""

from __future__ import annotations

import pytest

from raypipe.logs import TrialLog
from raypipe.referee import finish_trial
from raypipe.status import FEW, LAST, read_status
from raypipe.store import Epoch
from tests.toys import ToyWindows, make_run, tiny

KINDS = ["out-of-memory", "error", "error", "non-finite", None]


@pytest.fixture
def run(tmp_path):
    windows = ToyWindows()
    made = make_run(tmp_path / "run", windows)
    for number, kind in enumerate(KINDS):
        made.add_trial(number, tiny())
        for line in range(2 * LAST):
            TrialLog(made.folder, number, "slot").say(f"line {line}")
        if kind:
            finish_trial(made, windows, number, "failed", f"reason {number}", kind, "Traceback\n  the end")
    finish_trial(made, windows, 9, "failed", "toy.py: parameter 'batch_size'", "bad-configuration")  # never recorded
    return made


def test_failures_are_counted_by_kind(run):
    found = read_status(run)
    assert found.failures == {"error": 2, "out-of-memory": 1, "non-finite": 1, "bad-configuration": 1}
    assert found.counts == {"failed": 5, "interrupted": 1}
    assert [line.reason for line in found.lines][:4] == [f"reason {number}" for number in range(4)]
    assert (found.lines[-1].number, found.lines[-1].total) == (9, 0)


def test_the_newest_failures_come_with_the_ends_of_their_logs(run):
    latest = read_status(run).latest
    assert [failed.number for failed in latest] == [2, 3, 9][-FEW:]
    assert all(len(failed.log) <= LAST for failed in latest)
    assert latest[0].log[-3].endswith("end: failed (error) after epoch 0: reason 2")
    assert latest[0].log[-2:] == ["  Traceback", "    the end"]
    assert "failed (bad-configuration)" in latest[-1].log[-1]


def test_a_failed_trial_keeps_its_score_and_is_never_ranked(run):
    run.write_history(4, [Epoch(epoch=1, passes=1, score=1e-9, fold_scores=[None], losses=[0.0], seconds=1.0)])
    ended = finish_trial(run, ToyWindows(), 4, "failed", "it broke in epoch 2", "error")
    assert (ended.score, ended.best_epoch) == (1e-9, 1)
    assert read_status(run).lines[4].score == 1e-9
    assert run.ranked() == []
