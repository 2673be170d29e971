"""State of a run: states of trials, kinds of failure, last lines of logs."""

from __future__ import annotations

import pytest
from rich.console import Console

from raypipe.core.config import TrialConfig
from raypipe.reporting.status import LOG_LINES, MAX_FAILURES, MAX_ROWS, read_status
from raypipe.reporting.tables import show_status
from raypipe.storage.records import Epoch, TrialResult
from raypipe.storage.trial_log import TrialLog
from raypipe.trial.evaluator import finish_trial
from tests.support.toys import ToyWindows, add_ended, make_run, tiny

KINDS = ["out-of-memory", "error", "error", "non-finite", None]


@pytest.fixture
def run(tmp_path):
    windows = ToyWindows()
    made = make_run(tmp_path / "run", windows)
    for number, kind in enumerate(KINDS):
        made.add_trial(number, tiny())
        for line in range(2 * LOG_LINES):
            TrialLog(made.folder, number, "actor").write(f"line {line}")
        if kind:
            finish_trial(made, windows, number, "failed", f"reason {number}", kind, "Traceback\n  the end")
    finish_trial(made, windows, 9, "failed", "toy.py: parameter 'batch_size'", "bad-configuration")  # never recorded
    return made


def test_failures_are_counted_by_kind(run):
    found = read_status(run)
    assert found.failure_kinds == {"error": 2, "out-of-memory": 1, "non-finite": 1, "bad-configuration": 1}
    assert found.states == {"failed": 5, "interrupted": 1}
    assert [row.reason for row in found.rows][:4] == [f"reason {number}" for number in range(4)]
    assert (found.rows[-1].number, found.rows[-1].total) == (9, 0)


def test_the_latest_failures_come_with_the_last_lines_of_their_logs(run):
    latest = read_status(run).failures
    assert [failed.number for failed in latest] == [2, 3, 9][-MAX_FAILURES:]
    assert all(len(failed.lines) <= LOG_LINES for failed in latest)
    assert latest[0].lines[-3].endswith("end: failed (error) after epoch 0: reason 2")
    assert latest[0].lines[-2:] == ["  Traceback", "    the end"]
    assert "failed (bad-configuration)" in latest[-1].lines[-1]


def test_a_failed_trial_keeps_its_score_and_is_never_ranked(run):
    run.write_history(
        4, [Epoch(epoch=1, passes=1, score=1e-9, fold_scores=[None], losses=[0.0], seconds=1.0, finished=0.0)]
    )
    ended = finish_trial(run, ToyWindows(), 4, "failed", "it broke in epoch 2", "error")
    assert (ended.score, ended.best_epoch) == (1e-9, 1)
    assert read_status(run).rows[4].score == 1e-9
    assert run.ranked() == []


def test_of_many_trials_unfinished_best_and_latest_are_shown(tmp_path, capsys):
    run = make_run(tmp_path / "run", ToyWindows())
    end = {"best_epoch": 1, "epochs": 3, "seconds": 2.0, "reason": "toy", "finished": 0.0}
    for number in range(MAX_ROWS + 30):
        run.add_trial(number, tiny())
        state = "failed" if number == 5 else "complete"
        if number != 2:
            run.write_result(TrialResult(number=number, state=state, score=1.0 + abs(number - 10) / 100, **end))
    found = read_status(run)
    shown = [row.number for row in found.top_rows()]
    assert len(shown) == MAX_ROWS and shown == sorted(shown)
    best = {10, *range(11, 15), *range(6, 10)}  # the failed one is none of them
    assert {2, *best, *range(MAX_ROWS + 15, MAX_ROWS + 30)} <= set(shown)
    assert found.top_rows(limit=1)[0].number == 2, "what is under way comes first"
    show_status(Console(width=100), found)
    out = capsys.readouterr().out
    assert "30 more trials; all of them: raypipe trials" in out.replace("\n", " ")


def test_a_score_that_is_undefined_is_named(tmp_path, capsys):
    run = make_run(tmp_path / "run", ToyWindows())
    add_ended(run, 0, None)
    run.add_trial(1, tiny())
    show_status(Console(width=100), read_status(run))
    ended, begun = capsys.readouterr().out.splitlines()[2:4]
    assert ended.split()[:3] == ["0", "complete", "undefined"] and "undefined" not in begun


def test_models_are_a_column_where_they_differ_and_times_only_where_an_epoch_ended(tmp_path, capsys):
    run = make_run(tmp_path / "run", ToyWindows())
    run.add_trial(0, tiny())
    show_status(Console(width=100), read_status(run))
    first = capsys.readouterr().out.splitlines()
    assert "model" not in first[1] and first[2].split() == ["0", "interrupted", f"0/{tiny().epochs}"]
    run.add_trial(1, TrialConfig(model={"name": "linear"}))
    show_status(Console(width=100), read_status(run))
    shown = capsys.readouterr().out.splitlines()
    assert shown[1].split()[:3] == ["trial", "state", "model"]
    assert [line.split()[2] for line in shown[2:4]] == [tiny().model.name, "linear"]


def test_reading_a_trial_that_has_ended_takes_two_small_files(tmp_path, monkeypatch):
    """A thousand of them must answer in two seconds; histories grow with the epochs."""
    run = make_run(tmp_path / "run", ToyWindows())
    end = {"best_epoch": 1, "epochs": 3, "seconds": 2.0, "reason": "toy", "finished": 0.0}
    for number in range(3):
        run.add_trial(number, tiny())
        run.write_result(TrialResult(number=number, state="complete", score=1.0, **end))
    read: list[str] = []
    folder = type(run.folder)
    plain = folder.read
    monkeypatch.setattr(folder, "read", lambda self, name: (read.append(name), plain(self, name))[1])
    monkeypatch.setattr(folder, "names", counted := Counted(folder.names))
    read_status(run)
    assert len([name for name in read if name.startswith("trials/")]) == 6
    assert counted.calls == 2, "one listing of trials, and one of requests; behind a URI each takes a request"


class Counted:
    def __init__(self, plain):
        self.plain, self.calls = plain, 0

    def __get__(self, folder, kind):
        def call(*given):
            self.calls += 1
            return self.plain(folder, *given)

        return call
