"""Ray that does not start and addresses that do not answer are one line each. Ray is imported, not started."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import stat
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from raypipe.backend import connection
from raypipe.backend.cluster import Cluster
from raypipe.backend.connection import MAX_STARTS, RAY_FOLDER, connect, folder_for_ray, provide_token, wait_for_server
from raypipe.backend.output import CapturedOutput
from raypipe.backend.ray_compat import MAX_FOLDER_LENGTH
from raypipe.core.errors import DiskFullError, UserError
from raypipe.storage.scratch import LOCK_FILE, scratch_folder
from raypipe.trial.callback import SweepCallback

TIMEOUTS = [
    Exception("The current node timed out during startup. This could happen because\nmore"),
    RuntimeError("Timed out waiting for file /tmp/rp-x/gcs_server_port"),
    TimeoutError("no answer"),
    ray.exceptions.RpcError("the control store is away"),
]


@pytest.fixture
def starts(monkeypatch):
    """Attempts to start Ray, and what each raises; the last one again and again."""
    made = SimpleNamespace(errors=[], count=0, shut_down=0)

    def init(**_):
        made.count += 1
        if error := made.errors.pop(0) if len(made.errors) > 1 else made.errors[0]:
            raise error

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: setattr(made, "shut_down", made.shut_down + 1))
    return made


@pytest.mark.parametrize("error", TIMEOUTS)
def test_a_start_that_times_out_is_tried_once_more(starts, tmp_path, error):
    starts.errors, output = [error, None], CapturedOutput()
    connect(None, tmp_path, output)
    assert (starts.count, starts.shut_down) == (2, 1)
    assert f"attempt 1: {error}" in output._text
    starts.errors, starts.count = [error], 0
    with pytest.raises(UserError, match=r"^Ray has timed out twice while it started \(.*\); .* less busy$") as caught:
        connect(None, tmp_path, output)
    assert starts.count == MAX_STARTS and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied.; set RAY_TMPDIR to a folder that"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "Read-only file system.; set RAY_TMPDIR"),
        (OSError("AF_UNIX path length cannot exceed 107"), "AF_UNIX path length .*; set RAY_TMPDIR"),
        (ValueError("port 0\nmore"), r"^Ray cannot start on this machine \(port 0\); its messages are in log/ray.txt"),
        (AssertionError(), r"^Ray cannot start on this machine \(AssertionError\)"),
    ],
)
def test_another_error_is_one_line_at_once(starts, tmp_path, error, line):
    starts.errors = [error]
    with pytest.raises(UserError, match=line) as caught:
        connect(None, tmp_path, CapturedOutput())
    assert starts.count == 1 and "\n" not in str(caught.value)


def test_too_little_space_is_one_line_before_and_after_a_start(starts, tmp_path, monkeypatch):
    """Ray itself times out where its files cannot be written."""
    space = iter([10**9, 10**5, 10**5])
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=next(space)))
    starts.errors = TIMEOUTS[:1]
    for count in (1, 1):
        with pytest.raises(DiskFullError, match=f"^{tmp_path.parent}: 0 MB free, .* need 32 MB; free some space, or"):
            connect(None, tmp_path, CapturedOutput())
        assert starts.count == count


def test_processes_of_a_start_that_failed_are_ended(starts, tmp_path, monkeypatch):
    """`ray.shutdown` knows nothing of a node whose constructor has raised."""
    from ray._private.node import Node

    ended = []
    monkeypatch.setattr(Node, "kill_all_processes", lambda self, **how: ended.append(how))

    def start(self, **_):
        self.all_processes = {}
        raise ValueError("no port")

    monkeypatch.setattr(Node, "__init__", start)
    monkeypatch.setattr(ray, "init", lambda **_: Node())
    with pytest.raises(UserError, match="no port"):
        connect(None, tmp_path, CapturedOutput())
    assert ended == [{"check_alive": False, "allow_graceful": False}]


def test_ends_of_rays_logs_are_kept_where_it_does_not_start(starts, tmp_path):
    logs, output = tmp_path / RAY_FOLDER / "session_latest/logs", CapturedOutput()
    logs.mkdir(parents=True)
    (logs / "raylet.err").write_text("old\n" * 50 + "no memory\n")
    starts.errors = [ValueError("no")]
    with contextlib.suppress(UserError):
        connect(None, tmp_path, output)
    assert "raylet.err: no memory\n" in output._text and output._text.count("old") < 50


def test_rays_folder_is_one_that_its_sockets_fit_in(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "x" * 90)
    assert folder_for_ray(for_sockets=True) == Path("/tmp")
    monkeypatch.setattr(tempfile, "tempdir", None)
    with scratch_folder(folder_for_ray(for_sockets=True)) as folder:
        assert len(os.fsencode(folder / RAY_FOLDER)) <= MAX_FOLDER_LENGTH
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("x" * 90)))
    assert folder_for_ray(for_sockets=False).is_dir()
    with pytest.raises(UserError, match=r"^RAY_TMPDIR /.*: too long for Ray's sockets; use 29 bytes at most$"):
        folder_for_ray(for_sockets=True)


@pytest.mark.parametrize("name", ["/proc/none", "/dev/null"])
def test_a_folder_that_cannot_be_used_is_one_line(monkeypatch, name):
    monkeypatch.setenv("RAY_TMPDIR", name)
    line = f"^{name}: cannot hold Ray's own files .*; set RAY_TMPDIR to a folder that can be written$"
    with pytest.raises(UserError, match=line), Cluster(None, SweepCallback()) as made:
        made.start()


def test_no_temporary_folder_at_all_is_one_line(monkeypatch):
    def refuse():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "gettempdir", refuse)
    with pytest.raises(UserError, match=r"^/tmp: cannot hold Ray's own files \(No usable temporary"):
        folder_for_ray(for_sockets=True)


def test_a_token_is_in_rays_folder_for_this_user_only(tmp_path, monkeypatch):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")
    provide_token(tmp_path)
    (path,) = tmp_path.iterdir()
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(path) and len(path.read_text()) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    provide_token(tmp_path)  # one that is there, or that the user has named, is used
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(path)


def test_ray_has_a_private_folder_that_is_removed_at_the_end(monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: given.append(options["_temp_dir"]))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    before = dict(os.environ)
    with Cluster(None, SweepCallback()) as made:
        made.start()
        made.restart()
        assert given == [str(made.folder / RAY_FOLDER)] * 2
        assert stat.S_IMODE(made.folder.stat().st_mode) == 0o700 and (made.folder / LOCK_FILE).exists()
    assert not made.folder.exists() and dict(os.environ) == before


@contextlib.contextmanager
def server(answer):
    """A server whose first answers are given, and then nothing more; None does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        connections = []

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connections.append(listening.accept()[0])
                    if answer is not None:
                        connections[-1].sendall(answer)
                        connections[-1].shutdown(socket.SHUT_WR)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(connection, "RETRY_SECONDS", 0.0)


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "another kind of server answers"),
        (b"-ERR unknown command\r\n", "another kind of server answers"),
        (b"", "within 0.1 s: the connection was closed"),
        (b"\0\0", "within 0.1 s: the connection was closed"),
        (None, "within 0.1 s: timed out"),
    ],
)
def test_a_server_that_is_no_ray_is_an_error(impatient, answer, line):
    with server(answer) as address, pytest.raises(OSError, match=line):
        wait_for_server(address, 0.1)


def test_a_server_of_rays_protocol_is_joined(impatient):
    with server(bytes([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100])) as address:
        wait_for_server(address, 0.0)


def test_an_address_where_nothing_answers_is_given_up_after_its_time(impatient):
    with server(None) as address:
        pass
    with pytest.raises(OSError, match=f"no answer from {address} within 0 s: Connection refused"):
        wait_for_server(address, 0.0)
    with pytest.raises(OSError, match=r"^no-such-host.invalid: no such host$"):
        wait_for_server("no-such-host.invalid:6379", 0.0)


def test_a_server_that_comes_up_meanwhile_is_joined(impatient, monkeypatch):
    """A control store (GCS) that was killed may be restarted within a minute."""
    answers = iter([ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), TimeoutError("timed out"), None])

    def greet(host, port):
        assert (host, port) == ("there", 6379)
        if error := next(answers):
            raise error

    monkeypatch.setattr(connection, "_greet", greet)
    wait_for_server("there:6379", 60.0)
    assert next(answers, "none left") == "none left"


@pytest.mark.parametrize(("address", "line"), [("hello", "Invalid address format: hello"), ("x:1", "no answer")])
def test_an_address_without_a_cluster_is_one_line_and_ray_does_not_try_it(starts, tmp_path, monkeypatch, address, line):
    def refuse(target, seconds):
        assert (target, seconds) == (address, 60.0)
        raise OSError("no answer")

    monkeypatch.setattr(connection, "wait_for_server", refuse)
    with pytest.raises(UserError, match=f"^--address {address}: no Ray cluster there .{line}.") as caught:
        connect(address, tmp_path, CapturedOutput())
    assert starts.count == 0 and "\n" not in str(caught.value)
