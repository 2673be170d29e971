"""A message when a run ends, fails, is stopped or needs someone; its failures harm no run, and show no address."""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from raypipe.cli.common import summary_line
from raypipe.core.errors import DiskFullError, InterruptedSweepError, UserError
from raypipe.search.notify import Notifier
from raypipe.search.study import StudyQueue
from raypipe.storage.journal import open_journal
from raypipe.storage.lease import Lease
from raypipe.storage.records import TrialResult
from raypipe.trial.local import run_trial
from tests.support.toys import ToyWindows, make_run
from tests.support.waiting import MAX_WAIT_SECONDS

SECRET = "canary-77aa"


class Listener:
    """A server on loopback that takes messages."""

    def __init__(self):
        self.messages, self.status, self.held = [], 200, threading.Event()
        self.held.set()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                owner.held.wait(MAX_WAIT_SECONDS)
                owner.messages.append(json.loads(body))
                self.send_response(owner.status)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    @property
    def address(self):
        return f"json://user:{SECRET}@127.0.0.1:{self.server.server_port}/{SECRET}"


@pytest.fixture
def listener():
    made = Listener()
    yield made
    made.held.set()
    made.server.shutdown()
    made.server.server_close()
    made.thread.join(MAX_WAIT_SECONDS)


@pytest.fixture
def notifier():
    """Makes a notifier whose warnings are kept."""

    def made(*addresses, summary=lambda: "finished; 8 of 8 trials", timeout=MAX_WAIT_SECONDS):
        found = Notifier(addresses, "demo/run", lambda line: found.lines.append(line), summary, timeout)
        found.lines = []
        return found

    return made


def test_a_run_that_ends_is_one_message(listener, notifier):
    with notifier(listener.address) as sent:
        assert listener.messages == []
    assert [(m["title"], m["message"]) for m in listener.messages] == [("raypipe: demo/run", "finished; 8 of 8 trials")]
    assert sent.lines == []


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (DiskFullError("demo/run: the disk is full\nand more"), "failed: demo/run: the disk is full"),
        (UserError("the first 3 trials failed the same way (error): boom"), "failed: the first 3 trials failed the "),
        (InterruptedSweepError(), "stopped before its end; continue with: raypipe resume demo/run"),
        (KeyboardInterrupt(), "stopped before its end"),
        (ZeroDivisionError("division by zero"), "failed: ZeroDivisionError: division by zero"),
    ],
)
def test_a_run_that_fails_or_is_stopped_is_one_message_and_the_error_is_raised(listener, notifier, error, text):
    with pytest.raises(type(error)), notifier(listener.address):
        raise error
    assert len(listener.messages) == 1 and listener.messages[0]["message"].startswith(text)
    assert "\n" not in listener.messages[0]["message"]


def test_a_message_that_is_not_taken_is_one_warning_without_the_address(listener, notifier, capfd, caplog):
    listener.status = 500
    refused = "json://127.0.0.1:1/" + SECRET
    with notifier(listener.address, refused) as sent:
        pass
    assert sent.lines == ["--notify: a message was not sent to address 1, 2 of 2"]
    captured = capfd.readouterr()
    assert SECRET not in captured.out + captured.err + caplog.text and captured.err == ""


def test_one_address_that_hangs_does_not_hold_the_run_or_the_others(listener, notifier):
    other = Listener()
    try:
        listener.held.clear()
        with notifier(listener.address, other.address, timeout=3.0) as sent:
            pass
        assert len(other.messages) == 1 and listener.messages == []
        assert sent.lines == ["--notify: a message was not sent to address 1 of 2"]
    finally:
        other.server.shutdown()
        other.server.server_close()
        other.thread.join(MAX_WAIT_SECONDS)


def test_a_run_that_waits_or_has_a_failed_trial_says_so_while_it_runs(listener, notifier):
    failed = TrialResult(
        run="r",
        number=3,
        state="failed",
        score=None,
        best_epoch=0,
        epochs=0,
        seconds=1.0,
        reason="boom\nmore",
        finished=0.0,
    )
    with notifier(listener.address) as sent:
        sent.on_waiting("no GPU")
        for changes in ({}, {"number": 4}, {"number": 5, "state": "complete"}):
            sent.on_trial_end(failed.model_copy(update=changes))
    texts = {
        "waiting for the cluster to grow: no GPU",
        r"trial 3 failed: boom\nmore; the run continues",
        "finished; 8 of 8 trials",
    }
    assert len(listener.messages) == 3 and {each["message"] for each in listener.messages} == texts


def test_a_state_that_cannot_be_read_is_no_reason_for_no_message(listener, notifier):
    def broken():
        raise UserError("damaged")

    with notifier(listener.address, summary=broken):
        pass
    assert listener.messages[0]["message"] == "ended; its state could not be read"


def test_bad_addresses_and_a_missing_package_are_one_line_without_the_address(notifier, monkeypatch):
    with pytest.raises(UserError, match="address 2 of 2 has no form that apprise knows") as caught:
        notifier("json://127.0.0.1:1", f"nothing://{SECRET}")
    assert SECRET not in str(caught.value)
    monkeypatch.setitem(sys.modules, "apprise", None)
    with pytest.raises(UserError, match=r"apprise is not installed; pip install -c \S+ 'raypipe-eeg\[notify\]'"):
        notifier("json://127.0.0.1:1")
    with notifier():
        pass


def test_the_message_of_a_run_says_how_many_trials_ended_and_the_best_score(tmp_path):
    windows = ToyWindows()
    run = make_run(tmp_path / "run", windows)
    queue = StudyQueue(run, windows, open_journal(run), trials=2)
    queue.close(queue.next(), "failed", "toy", "non-finite")
    number = queue.next()
    score = run_trial(run, windows, number).score
    with Lease(run.folder, run=run.run_id):
        pass
    text = f"finished; 2 of 2 trials: 1 complete, 1 failed; best score {score:.4f} (trial {number})"
    assert summary_line(run.where) == text
    with pytest.raises(UserError):
        summary_line(tmp_path / "none")
