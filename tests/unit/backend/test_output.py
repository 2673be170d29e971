"""What Ray prints: kept in the run, its end only, and never a reason to fail."""

from __future__ import annotations

import contextlib
import threading

import pytest

from raypipe.backend import output
from raypipe.backend.output import CapturedOutput
from raypipe.core.errors import DiskFullError
from raypipe.storage.files import LocalFolder, open_folder
from raypipe.storage.trial_log import MAX_OUTPUT_CHARACTERS, read_output


@pytest.mark.parametrize("kind", ["folder", "uri"])
def test_what_is_printed_before_and_while_a_run_is_driven_is_in_its_file(tmp_path, kind):
    folder = open_folder(tmp_path if kind == "folder" else f"file://{tmp_path}")
    assert read_output(folder) == ""
    for driver in ("first", "second"):
        heard = CapturedOutput()
        with contextlib.redirect_stdout(heard):
            print(f"{driver}: Ray starts")
            with heard.kept(folder):
                print(f"{driver}: Ray runs")
            print("nobody keeps this")
    lines = read_output(folder).splitlines()
    assert [line for line in lines if not line.startswith("--- process ")] == [
        "first: Ray starts",
        "first: Ray runs",
        "second: Ray starts",
        "second: Ray runs",
    ]
    assert len(lines) == 6


def test_workers_have_names_and_the_autoscaler_is_told_by_its_events(tmp_path):
    heard, folder = CapturedOutput(), LocalFolder(tmp_path)
    with heard.kept(folder):
        heard.hear(
            {
                "actor_name": "TrialTrainable",
                "pid": 7,
                "ip": "a",
                "localhost": "a",
                "lines": ["one", "two"],
                "is_err": 1,
            }
        )
        heard.hear({"task_name": "f", "pid": 8, "ip": "b", "localhost": "a", "lines": ["three"]})
        heard.hear(
            {"pid": "autoscaler", "ip": "a", "lines": ["==== Autoscaler status", "x :event_summary:Adding a node"]}
        )
    told = [line.split("Z ", 1)[1] for line in read_output(folder).splitlines()[1:]]
    assert told == [
        "TrialTrainable 7: one",
        "TrialTrainable 7: two",
        "f 8 on b: three",
        "autoscaler on a: Adding a node",
    ]


def test_the_newest_is_kept_and_the_file_has_an_end(tmp_path):
    heard, folder = CapturedOutput(), LocalFolder(tmp_path)
    with heard.kept(folder):
        for number in range(9_000):
            heard.write(f"line {number} {'x' * 100}\n")
    lines = read_output(folder).splitlines()
    assert MAX_OUTPUT_CHARACTERS - 200 < len(read_output(folder)) <= MAX_OUTPUT_CHARACTERS
    assert lines[0].startswith("line ") and lines[-1].startswith("line 8999 ")


def test_it_is_written_while_the_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(output, "EVERY", 0.01)
    folder, written = LocalFolder(tmp_path), threading.Event()
    write = folder.write
    monkeypatch.setattr(folder, "write", lambda *given: (write(*given), written.set()))
    with (heard := CapturedOutput()).kept(folder):
        heard.write("so far\n")
        assert written.wait(10)
        assert "so far" in read_output(folder)


@pytest.mark.parametrize("error", [DiskFullError("full"), OSError("stalled")])
def test_a_file_that_cannot_be_written_is_nobodys_failure(tmp_path, monkeypatch, error):
    def full(*_):
        raise error

    folder = LocalFolder(tmp_path)
    monkeypatch.setattr(folder, "write", full)
    with (heard := CapturedOutput()).kept(folder):
        heard.write("lost\n")
    assert read_output(folder) == ""


def test_a_storage_that_stalls_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(output, "FAREWELL", 0.05)
    folder, release = LocalFolder(tmp_path), threading.Event()
    monkeypatch.setattr(folder, "write", lambda *_: release.wait(30))
    with (heard := CapturedOutput()).kept(folder):
        heard.write("late\n")
    release.set()
