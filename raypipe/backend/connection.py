"""Start Ray on this machine, or join a cluster; every failure is one line that says what to do."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

from raypipe.backend.join_compat import bootstrap_address, node_that_answers
from raypipe.backend.output import CapturedOutput
from raypipe.backend.process_state import blocked_hang_up, restored_signal_handlers
from raypipe.backend.ray_compat import (
    MAX_FOLDER_LENGTH,
    end_partly_started_node,
    few_processes,
    job_config,
    loopback_only,
    own_process_group,
    process_output_to,
    reread_authentication,
    working_folder_not_copied,
)
from raypipe.core.errors import DiskFullError, UserError, first_line
from raypipe.storage.scratch import NAME_LENGTH

MAX_STARTS = 2
"""Attempts to start Ray: a machine under load may time out once."""
ADDRESS_SECONDS = 60.0
"""Seconds that a cluster may take to answer: its control store may be restarting."""
NODE_SECONDS = 120.0
"""Seconds that the node of this machine may take to answer after the control store has: it may be suspended."""
RETRY_SECONDS = 1.0
ANSWER_SECONDS = 5.0
MIN_FREE_BYTES = 32 << 20
"""Free space that Ray's own files need at least."""
MAX_LOG_LINES = 20
"""Last lines of each of Ray's logs that are kept when it does not start."""
MAX_REASON_LENGTH = 200
TOKEN_FILE = "token"
RAY_FOLDER = "r"
"""Folder of a private folder that Ray is given: it lets every user write to that, but none reaches it."""
MAX_BASE_LENGTH = MAX_FOLDER_LENGTH - len(f"/{RAY_FOLDER}") - NAME_LENGTH - 1
"""Bytes that the path of the folder may have in which Ray's folder is made."""

_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""First bytes of a gRPC client, with an empty SETTINGS frame; a server answers with a SETTINGS frame of its own."""
_FRAME_HEADER, _FRAME_KIND, _SETTINGS_FRAME = 9, 3, 4


def connect(address: str | None, folder: Path, output: CapturedOutput) -> None:
    """Start Ray with its files in `folder`, or join the cluster at `address`.

    Raises
    ------
    UserError
        Ray does not start, there is no cluster at the address, or it needs a token and this process has none, or the
        reverse.
    """
    options: dict[str, Any] = {"log_to_driver": True, "logging_level": logging.WARNING, "job_config": job_config()}
    # `ray.init` replaces SIGTERM's handler by one that ends the process.
    with process_output_to(output.receive), restored_signal_handlers(), blocked_hang_up():
        reread_authentication()
        if address:
            _join(address, options)
        else:
            _start(folder, output, options)


def folder_for_ray(*, for_sockets: bool) -> Path:
    """Return the folder in which Ray's own files are put: ``RAY_TMPDIR``, or the temporary folder.

    Parameters
    ----------
    for_sockets
        Whether the sockets of Ray's processes are put there too, whose paths are limited. A ``TMPDIR`` that is too long
        is replaced by ``/tmp``.

    Raises
    ------
    UserError
        The folder cannot be used.
    """
    named = os.environ.get("RAY_TMPDIR")
    base = Path(named or "/tmp")
    try:
        base = Path(named or tempfile.gettempdir())
        if for_sockets and len(os.fsencode(base)) > MAX_BASE_LENGTH:
            if named:
                raise UserError(f"RAY_TMPDIR {named}: too long for Ray's sockets; use {MAX_BASE_LENGTH} bytes at most")
            base = Path("/tmp")
        base.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise folder_error(error, base) from None
    return base


def folder_error(error: OSError, base: Path) -> UserError:
    """Return the error that users see where Ray's files cannot be written."""
    reason = error.strerror or first_line(error)
    return UserError(f"{base}: cannot hold Ray's own files ({reason}); set RAY_TMPDIR to a folder that can be written")


def provide_token(folder: Path) -> None:
    """Make a token for a Ray that this process starts, in a file that only its user can read.

    Ray would write it to ``~/.ray``, for every user to read; a home may not be writable either.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = folder / TOKEN_FILE
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)


def _start(folder: Path, output: CapturedOutput, options: dict[str, Any]) -> None:
    import ray

    _require_space(folder)
    for attempt in range(1, MAX_STARTS + 1):
        try:
            with loopback_only(), few_processes(), own_process_group(), working_folder_not_copied():
                # Without an address, Ray joins whichever cluster was last started on this machine, by any user.
                ray.init(address="local", include_dashboard=False, _temp_dir=str(folder / RAY_FOLDER), **options)
            return
        except Exception as error:  # Ray has no common base class for these
            output.write(f"Ray has not started, attempt {attempt}: {error}\n{_ends_of_logs(folder)}")
            end_partly_started_node(error)
            ray.shutdown()
            _require_space(folder)
            if attempt == MAX_STARTS or not _timed_out(error):
                raise _start_error(error, folder) from error


def _require_space(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < MIN_FREE_BYTES:
        raise DiskFullError(
            f"{folder.parent}: {free >> 20} MB free, and Ray's own files need {MIN_FREE_BYTES >> 20} MB; free some "
            "space, or set RAY_TMPDIR to a folder on another disk"
        )


def _timed_out(error: Exception) -> bool:
    return isinstance(error, TimeoutError) or "timed out" in str(error).lower() or type(error).__name__ == "RpcError"


def _start_error(error: Exception, folder: Path) -> UserError:
    if isinstance(error, OSError) and not isinstance(error, TimeoutError | ConnectionError):
        return folder_error(error, folder.parent)
    reason = first_line(error)[:MAX_REASON_LENGTH]
    if _timed_out(error):
        return UserError(
            f"Ray has timed out twice while it started ({reason}); this machine is busy or short of memory: run the "
            "same command again when it is less busy"
        )
    return UserError(f"Ray cannot start on this machine ({reason}); its messages are in log/ray.txt of the run")


def _ends_of_logs(folder: Path) -> str:
    """Return the last lines of the logs of Ray's processes, newest session only."""
    found = []
    for name in ("gcs_server.err", "gcs_server.out", "raylet.err", "raylet.out"):
        with contextlib.suppress(OSError):
            lines = (folder / RAY_FOLDER / "session_latest/logs" / name).read_text(errors="replace").splitlines()
            found += [f"{name}: {line}\n" for line in lines[-MAX_LOG_LINES:]]
    return "".join(found)


def _join(address: str, options: dict[str, Any]) -> None:
    import ray

    try:
        if "://" not in address:
            wait_for_server(bootstrap_address(address), ADDRESS_SECONDS)
    except (OSError, ValueError) as error:
        raise UserError(f"--address {address}: no Ray cluster there ({first_line(error)})") from None
    try:
        with node_that_answers(_answers, NODE_SECONDS, RETRY_SECONDS):
            ray.init(address=address, **options)
    except ray.exceptions.AuthenticationError as error:
        raise UserError(f"--address {address}: {first_line(error)}") from None
    except (OSError, ValueError, RuntimeError) as error:
        hint = "; a cluster with token authentication needs RAY_AUTH_MODE=token and ~/.ray/auth_token"
        hint = "" if _uses_token(os.getenv("RAY_AUTH_MODE")) else hint
        raise UserError(f"--address {address}: no Ray cluster there ({first_line(error)}){hint}") from None
    if _uses_token(os.getenv("RAY_AUTH_MODE")) and not _cluster_uses_token():
        raise UserError(
            f"--address {address}: that cluster uses no token, and its actors cannot reach a process with "
            "RAY_AUTH_MODE=token, which Ray sets where a process starts its own Ray; remove it from os.environ"
        )


def wait_for_server(address: str, seconds: float) -> None:
    """Wait until a gRPC server answers at ``host:port``: Ray itself tries a dead address for over eight minutes.

    Raises
    ------
    OSError
        No such host, another kind of server answers, or none within `seconds`.
    """
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + seconds
    while True:
        try:
            return _greet(host.strip("[]"), int(port))
        except socket.gaierror as error:
            if error.errno == socket.EAI_NONAME or time.monotonic() > deadline:
                raise OSError(f"{host}: no such host") from None
        except _OtherServerError:
            raise
        except OSError as error:
            if time.monotonic() > deadline:
                raise OSError(f"no answer from {address} within {seconds:g} s: {error.strerror or error}") from None
        time.sleep(RETRY_SECONDS)


class _OtherServerError(OSError):
    """A server answers that is not one of gRPC."""


def _answers(address: str) -> bool:
    """Return whether a gRPC server answers at ``host:port``."""
    try:
        wait_for_server(address, 0.0)
    except OSError:
        return False
    return True


def _greet(host: str, port: int) -> None:
    """Connect to a gRPC server and read the first frame of its answer."""
    with socket.create_connection((host, port), timeout=ANSWER_SECONDS) as connection:
        if os.environ.get("RAY_USE_TLS", "0") == "1":
            return
        connection.sendall(_HTTP2_PREFACE)
        answer = b""
        while len(answer) < _FRAME_HEADER:
            received = connection.recv(_FRAME_HEADER - len(answer))
            if not received:
                raise ConnectionResetError("the connection was closed")
            answer += received
    if answer[_FRAME_KIND] != _SETTINGS_FRAME:
        raise _OtherServerError(f"another kind of server answers at port {port}")


def _uses_token(mode: str | None) -> bool:
    """Return whether a process with this value of ``RAY_AUTH_MODE`` authenticates by token."""
    return (mode or "").lower() == "token"


def _cluster_uses_token() -> bool:
    """Return whether the processes of the cluster authenticate by token; unlike an actor, a task reaches this one."""
    import ray

    return _uses_token(ray.get(ray.remote(num_cpus=0)(os.getenv).remote("RAY_AUTH_MODE")))
