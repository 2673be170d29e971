"""Output of Ray's processes: its end is saved in the run, and errors of that are ignored."""

from __future__ import annotations

import contextlib
import threading

import pytest

from raypipe.backend import output
from raypipe.backend.output import CapturedOutput
from raypipe.core.errors import DiskFullError
from raypipe.storage.files import LocalFolder, open_folder
from raypipe.storage.trial_log import MAX_OUTPUT_CHARACTERS, read_output


@pytest.fixture(autouse=True)
def no_hurry(monkeypatch):
    """Wait for the last write however long a busy machine needs for it."""
    monkeypatch.setattr(output, "LAST_SAVE_SECONDS", 300.0)


@pytest.mark.parametrize("kind", ["folder", "uri"])
def test_output_before_and_during_a_sweep_is_in_the_runs_file(tmp_path, kind):
    folder = open_folder(tmp_path if kind == "folder" else f"file://{tmp_path}")
    assert read_output(folder) == ""
    for driver in ("first", "second"):
        captured = CapturedOutput()
        with contextlib.redirect_stdout(captured):
            print(f"{driver}: Ray starts")
            with captured.saved_to(folder):
                print(f"{driver}: Ray runs")
            print("not saved")
    lines = read_output(folder).splitlines()
    assert [line for line in lines if not line.startswith("--- process ")] == [
        "first: Ray starts",
        "first: Ray runs",
        "second: Ray starts",
        "second: Ray runs",
    ]
    assert len(lines) == 6


def test_lines_name_their_process_and_of_the_autoscaler_only_events_are_kept(tmp_path):
    captured, folder = CapturedOutput(), LocalFolder(tmp_path)
    with captured.saved_to(folder):
        captured.receive(
            {
                "actor_name": "TrialTrainable",
                "pid": 7,
                "ip": "a",
                "localhost": "a",
                "lines": ["one", "two"],
                "is_err": 1,
            }
        )
        captured.receive({"task_name": "f", "pid": 8, "ip": "b", "localhost": "a", "lines": ["three"]})
        captured.receive(
            {"pid": "autoscaler", "ip": "a", "lines": ["==== Autoscaler status", "x :event_summary:Adding a node"]}
        )
    lines = [line.split("Z ", 1)[1] for line in read_output(folder).splitlines()[1:]]
    assert lines == [
        "TrialTrainable 7: one",
        "TrialTrainable 7: two",
        "f 8 on b: three",
        "autoscaler on a: Adding a node",
    ]


def test_the_newest_is_kept_and_the_file_has_an_end(tmp_path):
    captured, folder = CapturedOutput(), LocalFolder(tmp_path)
    with captured.saved_to(folder):
        for number in range(9_000):
            captured.write(f"line {number} {'x' * 100}\n")
    lines = read_output(folder).splitlines()
    assert MAX_OUTPUT_CHARACTERS - 200 < len(read_output(folder)) <= MAX_OUTPUT_CHARACTERS
    assert lines[0].startswith("line ") and lines[-1].startswith("line 8999 ")


def test_it_is_saved_during_the_sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(output, "SAVE_SECONDS", 0.01)
    folder, written = LocalFolder(tmp_path), threading.Event()
    write = folder.write
    monkeypatch.setattr(folder, "write", lambda *given: (write(*given), written.set()))
    with (captured := CapturedOutput()).saved_to(folder):
        captured.write("so far\n")
        assert written.wait(60)
        assert "so far" in read_output(folder)


@pytest.mark.parametrize("error", [DiskFullError("full"), OSError("stalled")])
def test_a_file_that_cannot_be_written_is_no_failure(tmp_path, monkeypatch, error):
    def full(*_):
        raise error

    folder = LocalFolder(tmp_path)
    monkeypatch.setattr(folder, "write", full)
    with (captured := CapturedOutput()).saved_to(folder):
        captured.write("lost\n")
    assert read_output(folder) == ""


def test_a_storage_that_stalls_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(output, "LAST_SAVE_SECONDS", 0.05)
    folder, release, ended = LocalFolder(tmp_path), threading.Event(), threading.Event()
    monkeypatch.setattr(folder, "write", lambda *_: (release.wait(60), ended.set()))
    with (captured := CapturedOutput()).saved_to(folder):
        captured.write("late\n")
    assert not ended.is_set()
    release.set()
    assert ended.wait(60)
