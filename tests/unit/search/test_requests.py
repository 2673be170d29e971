"""What is asked of a driver is checked before it is written."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.cli.app import main
from raypipe.core.errors import UserError
from raypipe.search.requests import ask_to_end, ask_to_enqueue, ask_to_stop, parse_point
from raypipe.search.study import StudyQueue
from raypipe.storage.journal import open_journal
from raypipe.storage.lease import Lease
from raypipe.storage.records import write_options
from raypipe.storage.requests import Inbox, read_requests
from tests.support.toys import ToyWindows, make_run


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", ToyWindows())


def test_what_is_right_is_written(run):
    queue = StudyQueue(run, ToyWindows(), open_journal(run), trials=2)
    ask_to_stop(run, queue.next())
    ask_to_enqueue(run, ["optim/lr=0.001", "sam/name=none"])
    with Lease(run.folder, run=run.run_id) as lease:
        assert ask_to_end(run).driver == lease.id
    assert [asked.request.kind for asked in read_requests(run)] == ["stop-trial", "enqueue", "end"]


def test_what_is_wrong_is_one_line_and_is_not_written(run):
    queue = StudyQueue(run, ToyWindows(), open_journal(run), trials=2)
    number = queue.next()
    queue.close(number, "failed", "toy")
    for call, message in (
        (lambda: ask_to_stop(run, number), r"trial 0 has ended \(failed\)"),
        (lambda: ask_to_stop(run, 9), "no trial 9"),
        (lambda: ask_to_end(run), "no sweep is running; start one with: raypipe resume"),
        (lambda: ask_to_enqueue(run, []), "needs parameters as NAME=VALUE"),
        (lambda: ask_to_enqueue(run, ["optim/lr"]), "optim/lr: must be NAME=VALUE"),
        (lambda: ask_to_enqueue(run, ["a=1", "a=2"]), "a is given twice"),
        (lambda: ask_to_enqueue(run, ["optim/lr=7", "sam/name=none"]), r"the point: toy\.py: line 4: .*out of"),
        (lambda: ask_to_enqueue(run, ["optim/lr=high", "sam/name=none"]), r"the point: "),
        (lambda: ask_to_enqueue(run, ["optim/lr=1e-3"]), r"toy\.py: the point lacks sam/name, which the space draws$"),
        (lambda: ask_to_enqueue(run, ["optim/lr=1e-3", "sam/name=none", "x=1"]), "sets 'x', which"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert read_requests(run) == []


@given(st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(), st.none()))
def test_a_value_is_json_or_text(value):
    assert parse_point([f"a={json.dumps(value)}"]) == {"a": value}


@given(st.text())
def test_any_text_is_a_value_that_a_record_can_hold(text):
    (value,) = parse_point([f"a={text}"]).values()
    assert value is None or isinstance(value, str | bool | int | float)
    json.dumps(value, allow_nan=False)


def said(capsys, *words):
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    captured = capsys.readouterr()
    return left.value.code, captured.out + captured.err


def test_the_verbs_ask_and_status_shows_what_became_of_it(run, capsys):
    queue = StudyQueue(run, ToyWindows(), open_journal(run), trials=2)
    queue.next()
    status, text = said(capsys, "stop", run.where, "--trial", 0)
    assert status == 0 and text == (
        "asked to stop trial 0; no sweep is running; the trial stops after one more epoch of: "
        f"raypipe resume {run.where}\n"
    )
    status, text = said(capsys, "enqueue", run.where, "optim/lr=0.001", "sam/name=none")
    assert status == 0 and "asked to enqueue optim/lr=0.001 sam/name=none" in text
    inbox = Inbox(run)
    inbox.look()
    inbox.answer(inbox.pending()[1], True, "enqueued as trial 1")
    status, text = said(capsys, "status", run.where)
    assert "asked to stop trial 0: no answer yet\n" in text
    assert "asked to enqueue optim/lr=0.001 sam/name=none: enqueued as trial 1\n" in text
    for words in (
        ("stop", run.where),
        ("stop", f"{run.where}/none"),
        ("enqueue", run.where, "optim/lr=9"),
        ("stop", run.where, "--trial", 5),
    ):
        status, text = said(capsys, *words)
        assert status == 2 and text.startswith("raypipe: error: ") and text.count("\n") == 1


POINT = ("optim/lr=0.001", "sam/name=none")


def test_a_driver_that_runs_answers(run, capsys):
    StudyQueue(run, ToyWindows(), open_journal(run), trials=2).next()
    with Lease(run.folder, run=run.run_id):
        for words in (("stop", run.where, "--trial", 0), ("stop", run.where), ("enqueue", run.where, *POINT)):
            status, text = said(capsys, *words)
            assert status == 0
            assert text.endswith(f"; the driver answers in about 5 s: raypipe status {run.where}\n")


def test_without_a_sweep_the_command_that_takes_a_point_up_has_a_trial_left_for_it(run, capsys):
    write_options(run.folder, {"trials": 3}, run.run_id)
    queue = StudyQueue(run, ToyWindows(), open_journal(run), trials=3)
    for _ in range(2):
        queue.close(queue.next(), "failed", "toy")
    takes = f"it is taken up by: raypipe resume {run.where}"
    assert said(capsys, "enqueue", run.where, *POINT)[1].endswith(f"; no sweep is running; {takes}\n")
    for trials in (4, 5):
        text = said(capsys, "enqueue", run.where, *POINT)[1]
        assert text.endswith(f"; no sweep is running, and no trial of 3 is left; {takes} --trials {trials}\n")
    inbox = Inbox(run)
    inbox.look()
    longer = StudyQueue(run, ToyWindows(), open_journal(run), trials=5)
    for request, number in zip(inbox.pending(), (2, 3, 4), strict=True):
        assert longer.enqueue_point(request.point, request.id) == number
        inbox.answer(request, True, "enqueued")
    text = said(capsys, "enqueue", run.where, *POINT)[1]
    assert text.endswith("--trials 6\n"), "points that wait have trials of their own"
