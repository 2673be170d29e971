"""The run's study in optuna-dashboard, served to this machine only."""

from __future__ import annotations

import json
import socket
import sys
import threading
import urllib.request

import pytest

from raypipe.cli.dashboard import serve
from raypipe.core.errors import UserError
from raypipe.search.study import StudyQueue
from raypipe.storage.journal import open_journal
from raypipe.storage.run_store import RunStore
from tests.support.toys import ToyWindows, make_run


@pytest.fixture
def run(tmp_path) -> RunStore:
    windows = ToyWindows()
    made = make_run(tmp_path / "run", windows)
    book = StudyQueue(made, windows, open_journal(made), trials=2)
    assert book.next() == 0
    return made


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_it_serves_the_study_to_this_machine_only(run, monkeypatch):
    import wsgiref.simple_server

    servers = []
    make = wsgiref.simple_server.make_server
    monkeypatch.setattr(
        wsgiref.simple_server, "make_server", lambda *a, **k: servers.append(make(*a, **k)) or servers[-1]
    )
    ready = threading.Event()
    said: list[str] = []
    port = free_port()
    thread = threading.Thread(target=serve, args=(run, port, lambda where: (said.append(where), ready.set())))
    thread.start()
    assert ready.wait(60)
    try:
        assert said == [f"http://127.0.0.1:{port}/dashboard/"] and servers[0].server_address[0] == "127.0.0.1"
        with urllib.request.urlopen(said[0], timeout=60) as answer:
            assert b"<html" in answer.read().lower()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=60) as answer:
            studies = json.load(answer)["study_summaries"]
        assert [study["study_name"] for study in studies] == ["raypipe"]
        with pytest.raises(UserError, match=f"--port {port}: cannot listen on it"):
            serve(run, port, lambda where: None)
    finally:
        servers[0].shutdown()
        thread.join(60)
    assert not thread.is_alive()


def test_a_missing_study_or_package_is_one_line(tmp_path, run, monkeypatch):
    empty = make_run(tmp_path / "empty", ToyWindows())
    with pytest.raises(UserError, match="no study yet; start one with: raypipe sweep"):
        serve(empty, free_port(), lambda where: None)
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    with pytest.raises(UserError, match=r"pip install -c \S+ 'raypipe-eeg\[dashboard\]'"):
        serve(run, free_port(), lambda where: None)


def test_reading_leaves_the_drivers_lock_and_its_unfinished_line(run):
    path = run.local / "study.journal"
    lock = path.with_name(path.name + ".lock")
    before = path.read_bytes()
    path.write_bytes(before + b'{"op_code": 4, "study')
    lock.touch()
    open_journal(run, writable=False)
    assert path.read_bytes().endswith(b'"study') and lock.exists()
    open_journal(run)
    assert path.read_bytes() == before and not lock.exists()


def test_a_study_behind_a_uri_is_only_read(run, monkeypatch):
    monkeypatch.setattr(RunStore, "local", None)
    frozen = open_journal(run, writable=False)._backend
    with pytest.raises(UserError, match="opened for reading and cannot be changed"):
        frozen.append_logs([{}])
    open_journal(run)._backend.append_logs([{"op_code": 0}])
    assert list(frozen.read_logs(0)) == [{"op_code": 0}]
