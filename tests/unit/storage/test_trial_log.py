"""Logs of trials: entries of several writers in order, short, and never a reason for a trial to fail."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.core.errors import DiskFullError
from raypipe.storage.files import LocalFolder, open_folder, write_record
from raypipe.storage.records import Epoch, History, trial_file
from raypipe.storage.trial_log import (
    MAX_ENTRY_CHARACTERS,
    MAX_FILE_CHARACTERS,
    TrialLog,
    _shorten,
    follow_log,
    read_log,
)


@pytest.fixture(params=["folder", "uri"])
def folder(request, tmp_path):
    return open_folder(tmp_path if request.param == "folder" else f"file://{tmp_path}")


def test_writers_of_one_log_are_read_in_order_of_time(folder):
    actor, worker = TrialLog(folder, 7, "actor"), TrialLog(folder, 7, "group-0-worker-1")
    actor.write("one")
    worker.write("two")
    actor.write("three\nTraceback\n  here")
    TrialLog(folder, 8, "actor").write("of another trial")
    lines = read_log(folder, 7)
    assert [re.sub(r"^\S+ \S+Z ", "", line) for line in lines] == [
        "actor: one",
        "group-0-worker-1: two",
        "actor: three",
        "  Traceback",
        "    here",
    ]
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ actor: one", lines[0])
    assert read_log(folder, 9) == []


def test_a_restarted_writer_continues_its_file(folder):
    TrialLog(folder, 0, "actor").write("before")
    TrialLog(folder, 0, "actor").write("after")
    assert [line.split("actor: ")[1] for line in read_log(folder, 0)] == ["before", "after"]


def test_a_log_stays_short_and_keeps_the_newest(tmp_path):
    folder = LocalFolder(tmp_path)
    log = TrialLog(folder, 0, "actor")
    for number in range(300):
        log.write(f"entry {number} " + "x" * 200)
    assert len(folder.read(log.name)) <= MAX_FILE_CHARACTERS
    lines = read_log(folder, 0)
    assert "earlier entries were left out" in lines[0]
    numbers = [int(re.search(r"entry (\d+)", line)[1]) for line in lines[1:]]
    assert numbers == list(range(numbers[0], 300))
    assert len(numbers) > 30


@given(st.text(st.characters(codec="utf-8"), max_size=60), st.integers(0, 9000))
def test_a_long_entry_keeps_its_first_line_and_its_end(first, length):
    text = f"start {first.splitlines()[0] if first.splitlines() else ''}\n" + "y" * length + "\nthe end"
    kept = _shorten(text)
    assert kept.startswith("start ")
    assert kept.endswith("the end")
    assert len(kept) <= MAX_ENTRY_CHARACTERS + 100


def test_lines_that_look_like_entries_are_not_entries(tmp_path):
    folder = LocalFolder(tmp_path)
    TrialLog(folder, 0, "actor").write("it broke\n2020-01-01T00:00:00.000Z not an entry")
    TrialLog(folder, 0, "actor").write("more")
    lines = read_log(folder, 0)
    assert len(lines) == 3 and lines[0].endswith("it broke") and lines[2].endswith("more")


@pytest.mark.parametrize("error", [DiskFullError("full"), OSError("stalled")])
def test_a_log_that_cannot_be_written_raises_nothing(tmp_path, monkeypatch, error):
    def full(*_):
        raise error

    folder = LocalFolder(tmp_path)
    monkeypatch.setattr(folder, "write", full)
    TrialLog(folder, 0, "actor").write("lost")
    assert read_log(folder, 0) == []


def scored(folder, number, *epochs):
    """Write a history of epochs that were scored at these Unix times."""
    history = [
        Epoch(epoch=n, passes=n, score=n / 10, fold_scores=[0.25, None], losses=[1.0], seconds=n, finished=second)
        for n, second in enumerate(epochs, 1)
    ]
    write_record(folder, trial_file(number, "history.json"), History(scored="all windows", epochs=history))


def test_lines_of_epochs_are_made_from_the_history(folder):
    folder.write(trial_file(7, "log/actor.txt"), b"1970-01-01T00:00:15.000000Z restarted\n")
    scored(folder, 7, 10.0, 20.0)
    assert read_log(folder, 7) == [
        "1970-01-01 00:00:10Z epoch 1: score 0.1000 (folds 0.2500 -), 1.0 s of workers",
        "1970-01-01 00:00:15Z actor: restarted",
        "1970-01-01 00:00:20Z epoch 2: score 0.2000 (folds 0.2500 -), 2.0 s of workers",
    ]
    assert folder.names("trials/0007/log") == ["trials/0007/log/actor.txt"], "nothing was written for an epoch"


@pytest.mark.parametrize("damage", [b"[{", b"{}"])
def test_a_damaged_history_does_not_hide_the_log(folder, damage):
    TrialLog(folder, 0, "actor").write("here")
    folder.write(trial_file(0, "history.json"), damage)
    assert len(read_log(folder, 0)) == 1


def test_a_log_is_followed_until_its_trial_has_ended(folder):
    log = TrialLog(folder, 7, "actor")
    log.write("starts")
    followed = follow_log(folder, 7, alive=lambda: True, pause=0)
    assert next(followed).endswith("actor: starts")
    scored(folder, 7, 10.0)
    assert next(followed).endswith("epoch 1: score 0.1000 (folds 0.2500 -), 1.0 s of workers")
    for number in range(60):  # until the oldest entries are dropped
        log.write(f"{number} " + "x" * 400)
    TrialLog(folder, 7, "end").write("complete")
    folder.write(trial_file(7, "result.json"), b"{}")
    rest = list(followed)
    assert rest[-1].endswith("end: complete") and not [line for line in rest if "left out" in line or "starts" in line]


def test_the_log_of_a_run_that_is_not_driven_is_not_followed(folder):
    TrialLog(folder, 7, "actor").write("starts")
    assert len(list(follow_log(folder, 7, alive=lambda: False))) == 1
