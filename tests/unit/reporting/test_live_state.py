"""The state of the live page: what status reads, as JSON; ended trials are read once."""

from __future__ import annotations

import json
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.reporting.live_state import LiveReader, encode_state, point_text, varied
from raypipe.search.requests import ask_to_stop, parse_point
from raypipe.search.study import StudyQueue
from raypipe.storage.driver_record import Resources
from raypipe.storage.journal import open_journal
from raypipe.storage.lease import Lease
from raypipe.storage.records import write_options
from raypipe.trial.local import run_trial
from tests.support.toys import ToyWindows, make_run

VALUES = st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.none())


@pytest.fixture(params=["folder", "uri"])
def run(tmp_path, request):
    """A run with a trained trial, one that has failed, and one under way."""
    windows = ToyWindows()
    made = make_run(tmp_path / "run" if request.param == "folder" else f"file://{tmp_path}/run", windows)
    queue = StudyQueue(made, windows, open_journal(made), trials=5)
    ended = run_trial(made, windows, queue.next())
    queue.close(ended.number, "complete", "trained to the end")
    queue.close(queue.next(), "failed", "<b>loss</b>", "non-finite")
    queue.next()
    write_options(made.folder, {"trials": 5, "time_budget": 600.0, "gpu_hours": None}, made.run_id)
    return made


def test_the_state_has_what_the_page_shows(run):
    with Lease(run.folder, run=run.run_id) as lease:
        lease.resources = Resources(workers=2, concurrent=1, cpus=1, gpus=0, total_cpus=8, total_gpus=0)
        lease._beat()
        ask_to_stop(run, 2)
        state = json.loads(encode_state(LiveReader(run).read()))
    assert state["driver"]["word"] == "running" and state["driver"]["line"].startswith("process ")
    assert state["resources"] == ["2 of 8 cores used"] and state["planned"] == 5
    assert state["states"] == {"complete": 1, "failed": 1, "running": 1} and state["best"] == 0
    assert [trial["state"] for trial in state["trials"]] == ["complete", "failed", "running"]
    first, failed, running = state["trials"]
    assert first["curve"] == [epoch.score for epoch in run.history(0)] and first["epoch"] == len(first["curve"])
    assert failed["why"] == "<b>loss</b>" and failed["failure"] == "non-finite" and failed["curve"] == []
    assert state["parameters"][0] == "optim/lr" and first["drawn"]["optim/lr"] == "0.003"
    assert first["time"] and running["time"] == "", "no epoch has ended"
    assert state["used"][0].endswith("of 10 min 00 s") and state["left"]
    assert state["requests"][0]["what"] == "stop trial 2" and state["requests"][0]["answer"] is None
    assert state["report"] is False and state["verdict"] is None


def test_a_drawn_model_is_shown_before_a_second_one_is_tried():
    drawn = [{"model/bands": "alpha", "model/name": "covariance", "model/order": 1}]
    assert varied(drawn) == ["model/name"]
    assert varied([*drawn, {"model/name": "linear", "model/bands": "theta"}]) == ["model/bands", "model/name"]
    assert varied([{"optim/lr": 0.1}, {"optim/lr": 0.1}]) == []


def test_a_driver_that_was_killed_is_gone_and_one_that_ended_has_stopped(run, monkeypatch):
    reader = LiveReader(run)
    assert reader.read()["driver"]["word"] == "not started"
    with Lease(run.folder, run=run.run_id):
        pass
    assert reader.read()["driver"]["word"] == "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(Lease, "_beat", lambda self, ended=False, beat=Lease._beat: None if ended else beat(self))
        with Lease(run.folder, run=run.run_id):
            pass
    gone = reader.read()["driver"]
    assert gone["word"] == "gone" and gone["beat"] > 0
    assert gone["line"] == f"its driver died; continue with: raypipe resume {run.where}"


def test_ended_trials_are_read_once(run, monkeypatch):
    reader = LiveReader(run)
    before = reader.read()
    read: list[str] = []
    folder, plain = type(run.folder), type(run.folder).read
    monkeypatch.setattr(folder, "read", lambda self, name: (read.append(name), plain(self, name))[1])
    assert reader.read() == before
    assert not [name for name in read if name.startswith("trials/0000/")]
    assert "trials/0001/result.json" not in read and "trials/0002/history.json" in read


@given(st.dictionaries(st.text(min_size=1).filter(lambda name: "=" not in name), st.one_of(VALUES, st.text())))
def test_the_text_of_a_point_gives_the_point_again(point):
    if point:
        assert parse_point(shlex.split(point_text(point))) == point


@given(st.recursive(st.one_of(VALUES, st.floats(), st.text()), lambda inner: st.lists(inner)))
def test_a_state_is_one_line_of_ascii(value):
    data = encode_state({"value": value})
    assert data.isascii() and b"\n" not in data
    json.loads(data, parse_constant=pytest.fail)
