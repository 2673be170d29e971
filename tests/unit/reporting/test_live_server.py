"""The server of the live page: its token, its actions, and requests that mean harm."""

from __future__ import annotations

import http.client
import json
import socket
import threading

import pytest

from raypipe.core.errors import StorageError, UserError
from raypipe.reporting import live_server
from raypipe.reporting.live_server import MAX_BODY_BYTES, TOKEN_HEADER, Feed, LiveServer, act, serve
from raypipe.reporting.live_state import LiveReader
from raypipe.search.study import StudyQueue
from raypipe.storage.journal import open_journal
from raypipe.storage.requests import read_requests
from tests.support.toys import ToyWindows, make_run
from tests.support.waiting import MAX_WAIT_SECONDS

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def run(tmp_path):
    made = make_run(tmp_path / f"run {EVIL.replace('/', '')}", ToyWindows())
    StudyQueue(made, ToyWindows(), open_journal(made), trials=2).next()
    return made


@pytest.fixture
def server(run):
    with Feed(LiveReader(run).read, 0.05) as feed, LiveServer(run, 0, feed) as started:
        thread = threading.Thread(target=started.serve_forever, args=(0.05,))
        thread.start()
        yield started
        started.shutdown()
        thread.join(MAX_WAIT_SECONDS)


def ask(server, method, path, body=None, **headers):
    """Return status, headers and body of the answer to one request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=MAX_WAIT_SECONDS)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read()


def get(server, path, **headers):
    return ask(server, "GET", f"{path}?token={server.token}", **headers)


def post(server, what, **headers):
    body = what if isinstance(what, bytes) else json.dumps(what).encode()
    given = {"Content-Type": "application/json", TOKEN_HEADER: server.token} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    status, _, body = ask(server, "POST", "/act", body, **given)
    return status, body


def test_it_listens_to_this_machine_only_and_its_page_runs_no_foreign_script(server):
    assert server.server_address[0] == "127.0.0.1"
    status, headers, body = get(server, "/")
    assert status == 200 and EVIL.encode() not in body and b"<title>" in body
    assert b"&lt;script&gt;alert(1)&lt;script&gt;" in body
    policy = headers["Content-Security-Policy"]
    nonce = policy.split("script-src 'nonce-")[1].split("'")[0]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "http" not in policy
    assert body.count(b"<script") == 1 and f'<script nonce="{nonce}">'.encode() in body
    assert get(server, "/")[1]["Content-Security-Policy"] != policy, "a nonce is used once"
    assert server.token.encode() not in body and b"innerHTML" not in body and b' style="' not in body
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize("path", ["/", "/events", "/report", "/act", "/etc/passwd"])
@pytest.mark.parametrize(
    "query", ["", "?token=", "?token=wrong", "?token=%ff", "?token=%C3%A9&token=", "?" + "a=1&" * 400]
)
def test_nothing_is_answered_without_the_token(server, path, query):
    assert ask(server, "GET", path + query)[0] == 403
    assert ask(server, "GET", path + query, Cookie=f"token={server.token}")[0] == 403


@pytest.mark.parametrize(
    "path",
    [
        *("/../run.json", "/report/../run.json", "/%2e%2e/run.json", "/run.json", "/trials/0000/trial.json", "/act"),
        *("/report/", "//report", "/report%00", "/./report", "http://evil/report", "/events/", "*"),
    ],
)
def test_only_known_paths_are_answered(server, run, path):
    run.folder.write("report.html", b"<p>report")
    status, _, body = ask(server, "GET", f"{path}?token={server.token}")
    assert status == 404 or (status == 403 and "evil" in path) or (path == "//report" and body == b"<p>report"), (
        "the library drops a slash"
    )
    assert b"toy" not in body


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "[::1", "", "0.0.0.0"])
def test_another_name_of_this_machine_is_refused(server, host):
    assert get(server, "/", Host=host)[0] == 403
    assert post(server, {"action": "stop", "trial": 0}, Host=host)[0] == 403


def test_a_forwarded_port_is_ours(server):
    for host in ("127.0.0.1:9", "localhost:8080", "localhost"):
        assert get(server, "/", Host=host)[0] == 200


def test_an_action_needs_the_token_in_its_header(server, run):
    what = {"action": "stop", "trial": 0}
    for given in ("", "wrong", server.token[:-1], server.token + "x", "\u00e9"):
        assert post(server, what, **{TOKEN_HEADER: given})[0] == 403
    body = json.dumps(what).encode()
    for path in (f"/act?token={server.token}", "/act"):
        cookie = {"Content-Type": "application/json", "Cookie": f"token={server.token}"}
        assert ask(server, "POST", path, body, **cookie)[0] == 403
    assert post(server, what, Origin="http://evil.example")[0] == 403
    assert ask(server, "POST", "/", body, **{TOKEN_HEADER: server.token})[0] == 404
    assert ask(server, "OPTIONS", "/act")[0] == 501, "no other origin is allowed to send the header"
    assert read_requests(run) == []
    assert post(server, what, Origin=f"http://127.0.0.1:{server.server_port}")[0] == 200
    assert [asked.request.trial for asked in read_requests(run)] == [0]


def test_actions_are_requests_in_the_run(server, run):
    status, body = post(server, {"action": "enqueue", "point": "optim/lr=0.005 sam/name=none"})
    said = json.loads(body)["said"]
    assert status == 200 and said.startswith("asked to enqueue optim/lr=0.005 sam/name=none; no sweep is running; ")
    assert [asked.request.point for asked in read_requests(run)] == [{"optim/lr": 0.005, "sam/name": "none"}]


def test_an_error_of_an_action_is_answered(server, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("a\nb")

    monkeypatch.setattr(live_server, "act", fail)
    status, body = post(server, {"action": "end"})
    assert status == 500 and json.loads(body) == {"error": "ZeroDivisionError: a"}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"action": "enqueue", "point": "optim/lr=7 sam/name=none"}, "the point: toy.py: line 4"),
        ({"action": "enqueue", "point": "optim/lr"}, "must be NAME=VALUE"),
        ({"action": "enqueue", "point": "'"}, "the point: No closing quotation"),
        ({"action": "enqueue", "point": ""}, "needs parameters"),
        ({"action": "stop", "trial": 99}, "no trial 99"),
        ({"action": "stop", "trial": -1}, "an action must be"),
        ({"action": "stop", "trial": True}, "an action must be"),
        ({"action": "stop", "trial": "../0"}, "an action must be"),
        ({"action": "end"}, "no sweep is running"),
        ({"action": "shell"}, "an action must be"),
        ([1, 2], "an action must be"),
        (b"{", "must be JSON"),
        (b"[" * 5000, "must be JSON"),
        (b" " * (MAX_BODY_BYTES + 1), "may have 65536 bytes"),
    ],
)
def test_a_bad_action_is_one_line_and_asks_for_nothing(server, run, what, message):
    status, body = post(server, what)
    error = json.loads(body)["error"]
    assert status == 400 and message in error and "\n" not in error
    assert read_requests(run) == []


def test_other_kinds_and_lengths_of_a_body_are_refused(server, run):
    what = json.dumps({"action": "stop", "trial": 0}).encode()
    assert post(server, what, Content_Type="text/plain")[0] == 400
    assert post(server, what, Content_Length="-1")[0] == 400
    assert post(server, b"", Content_Length="9" * 5000)[0] == 400
    assert read_requests(run) == []


def test_the_report_is_shown_without_its_scripts(server, run):
    assert get(server, "/report")[0] == 404
    run.folder.write("report.html", b"<script>alert(1)</script>")
    status, headers, body = get(server, "/report")
    assert status == 200 and body == b"<script>alert(1)</script>"
    assert headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")
    assert "script" not in headers["Content-Security-Policy"]


class Events:
    """A client of the stream of events."""

    def __init__(self, server):
        self.connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=MAX_WAIT_SECONDS)
        self.connection.request("GET", f"/events?token={server.token}")
        self.answer = self.connection.getresponse()

    def next(self):
        line = self.answer.readline()
        while not line.startswith(b"data: "):
            assert line, "the stream has ended"
            line = self.answer.readline()
        return json.loads(line.removeprefix(b"data: "))


def test_events_are_the_state_and_what_changes(server, run, monkeypatch):
    events = Events(server)
    assert events.answer.headers["Content-Type"] == "text/event-stream"
    first = events.next()
    assert first["states"] == {"interrupted": 1} and first["error"] == "" and first["driver"]["word"] == "not started"
    act(run, {"action": "stop", "trial": 0})
    assert events.next()["requests"][0]["what"] == "stop trial 0"
    with monkeypatch.context() as patch:
        patch.setattr(type(run.folder), "names", lambda *_: (_ for _ in ()).throw(StorageError("the disk\nis away")))
        broken = events.next()
        assert broken["error"] == "the disk" and broken["states"] == {"interrupted": 1}, "the last state stays"
    assert events.next()["error"] == ""
    events.connection.close()


def test_streams_are_limited_and_end_with_the_server(run, monkeypatch):
    monkeypatch.setattr(live_server, "MAX_STREAMS", 1)
    with Feed(LiveReader(run).read, 60) as feed, LiveServer(run, 0, feed) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            events = Events(server)
            events.next()
            assert get(server, "/events")[0] == 503
        finally:
            server.shutdown()
            thread.join(MAX_WAIT_SECONDS)
        feed.__exit__()
        assert events.answer.readline() in (b"\n", b": alive\n", b"")


def test_a_port_that_is_taken_is_one_line_and_ctrl_c_ends_it_quietly(run, monkeypatch):
    taken = pytest.raises(UserError, match=r"--port \d+: cannot listen on it .*; choose another")
    with socket.create_server(("127.0.0.1", 0)) as other, taken:
        serve(run, other.getsockname()[1], lambda url: None)
    said = []
    monkeypatch.setattr(LiveServer, "serve_forever", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    serve(run, 0, said.append)
    assert said[0].startswith("http://127.0.0.1:") and len(said[0].split("?token=")[1]) >= 32
