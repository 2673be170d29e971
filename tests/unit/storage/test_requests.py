"""Requests in a run's folder: written, read, answered; damaged ones are refused."""

from __future__ import annotations

import itertools

import pytest

from raypipe.core.errors import DamagedFileError, StorageError
from raypipe.storage.requests import Inbox, Request, ask, read_answer, read_requests
from tests.support.records import edit_record
from tests.support.toys import ToyWindows, make_run


@pytest.fixture(params=["folder", "uri"])
def run(tmp_path, request):
    where = tmp_path / "run" if request.param == "folder" else f"file://{tmp_path}/run"
    return make_run(where, ToyWindows())


def test_a_request_is_pending_until_it_is_answered(run):
    inbox = Inbox(run)
    inbox.look()
    assert inbox.pending() == []
    first, second = ask(run, "stop-trial", trial=3), ask(run, "enqueue", point={"optim/lr": 0.1, "sam/name": "none"})
    assert inbox.pending() == [], "the storage is only read in `look`"
    inbox.look()
    assert inbox.pending() == [first, second]
    inbox.answer(first, True, "trial 3 ended")
    assert inbox.pending() == [second]
    assert read_answer(run, first).text == "trial 3 ended" and read_answer(run, second) is None
    assert [(a.request.describe(), bool(a.answer)) for a in read_requests(run)] == [
        ("stop trial 3", True),
        ("enqueue optim/lr=0.1 sam/name=none", False),
    ]
    assert [a.request for a in read_requests(run, last=1)] == [second]
    following = Inbox(run)  # the next driver
    following.look()
    assert following.pending() == [second]
    inbox.look()
    assert inbox.pending() == [second], "an answered request does not come back"


def test_requests_of_one_millisecond_are_in_their_order(run, monkeypatch):
    ticks = itertools.count(1_700_000_000_000_000_000)
    monkeypatch.setattr("raypipe.storage.requests.time.time_ns", lambda: next(ticks))
    asked = [ask(run, "stop-trial", trial=number) for number in range(8)]
    inbox = Inbox(run)
    inbox.look()
    assert inbox.pending() == asked and [each.request for each in read_requests(run)] == asked


def test_a_damaged_or_foreign_request_is_refused_once_and_not_acted_on(run):
    request = ask(run, "stop-trial", trial=3)
    name = f"requests/{request.id}.json"
    run.folder.write(name, run.folder.read(name).replace(b'"trial": 3', b'"trial": 4'))
    other = ask(run, "end", driver="x")
    edit_record(run.where.removeprefix("file://"), f"requests/{other.id}.json", {"run": "other"})
    run.folder.write("requests/notes.json", b"{}")
    inbox = Inbox(run)
    inbox.look()
    assert inbox.pending() == [] and read_requests(run) == []
    answers = [read_answer(run, each) for each in (request, other)]
    assert [answer.done for answer in answers] == [False, False]
    assert "refused: " in answers[0].text and "another run" in answers[1].text
    assert "\n" not in answers[0].text


def test_a_refusal_that_could_not_be_written_is_written_at_the_next_look(run, monkeypatch):
    request = ask(run, "stop-trial", trial=3)
    run.folder.write(f"requests/{request.id}.json", b"{}")
    inbox = Inbox(run)
    later = ask(run, "stop-trial", trial=4)
    with monkeypatch.context() as patched:
        patched.setattr(type(run.folder), "write", lambda *_: (_ for _ in ()).throw(StorageError("down")))
        with pytest.raises(StorageError):
            inbox.look()
    assert read_answer(run, request) is None and inbox.pending() == [later], "the others are read"
    inbox.look()
    assert read_answer(run, request).text.startswith("refused: ")


def test_a_request_that_cannot_be_read_now_is_not_refused(run, monkeypatch):
    first, second = ask(run, "stop-trial", trial=3), ask(run, "stop-trial", trial=4)
    inbox, read = Inbox(run), type(run.folder).read

    def unreachable(folder, name):
        if first.id in name:
            raise StorageError("down")
        return read(folder, name)

    with monkeypatch.context() as patched:
        patched.setattr(type(run.folder), "read", unreachable)
        with pytest.raises(StorageError, match="down"):
            inbox.look()
    assert inbox.pending() == [second] and read_answer(run, first) is None
    inbox.look()
    assert inbox.pending() == [first, second]


def test_a_request_for_no_trial_is_no_record(run):
    with pytest.raises(ValueError, match="trial\n"):
        Request(run=run.run_id, id="x", kind="stop-trial", trial=-1, asked=0.0)
    request = ask(run, "stop-trial", trial=1)
    with pytest.raises(DamagedFileError):
        Request.parse(run.folder.read(f"requests/{request.id}.json").replace(b"stop-trial", b"rm -rf"), "x")
