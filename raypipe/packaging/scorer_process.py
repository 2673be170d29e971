"""Run the scorer on an unpacked submission in a separate process, with limits."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from raypipe.core.errors import UserError
from raypipe.core.record import describe_problem, first_problem
from raypipe.packaging import scorer
from raypipe.storage.regular_files import read_regular

MAX_ANSWER_BYTES = 2**26
_MAX_ERROR_BYTES = 2**16

A = TypeVar("A")


class ScorerProcessError(Exception):
    """The scorer's process died, did not end in time, or gave no answer that can be used."""


def run_scorer(
    folder: Path, scratch: Path, request: dict[str, Any], schema: TypeAdapter[A], *, timeout: float | None = None
) -> A:
    """Run `scorer` on an unpacked submission, and return its answer.

    The process is isolated (``python -I``): neither PYTHONPATH nor the current folder can be imported from. What the
    submission prints is dropped. When the process ends, so do all that it has started.

    Parameters
    ----------
    folder
        The unpacked submission.
    scratch
        An existing folder for the request, the answer and the process's working directory.
    request
        See `scorer`.
    schema
        Schema of the answer: the submission's code may have changed it.
    timeout
        Seconds.

    Raises
    ------
    ScorerProcessError
        The process died or did not end in time, or its answer does not fit the schema.
    """
    return run_script(scorer.__file__, [str(folder)], scratch, request, schema, what="the scorer", timeout=timeout)


def run_script(
    script: str,
    arguments: Sequence[str],
    scratch: Path,
    request: dict[str, Any],
    schema: TypeAdapter[A],
    *,
    what: str,
    timeout: float | None = None,
) -> A:
    """Run a script in an isolated process, which reads a request and writes an answer, both JSON; see `run_scorer`.

    Parameters
    ----------
    script
        Path of a Python file; the files of request and answer are its last arguments.
    arguments
        Its first arguments.
    what
        Name of the process in messages.
    scratch, request, schema, timeout
        See `run_scorer`.

    Raises
    ------
    ScorerProcessError
        See `run_scorer`.
    """
    request_file, answer_file, cwd = scratch / "request.json", scratch / "answer.json", scratch / "cwd"
    cwd.mkdir()
    request_file.write_text(json.dumps(request), encoding="utf-8")
    command = [sys.executable, "-I", script, *arguments, str(request_file), str(answer_file)]
    try:
        status = run_limited(command, cwd, scratch / "stderr", timeout)
    except subprocess.TimeoutExpired:
        raise ScorerProcessError(f"{what}'s process did not end within {timeout:g} s") from None
    try:
        return schema.validate_json(read_regular(answer_file, MAX_ANSWER_BYTES))
    except FileNotFoundError:
        last = _last_line(scratch / "stderr")
        raise ScorerProcessError(f"{what}'s process died (exit status {status}): {last}") from None
    except ValidationError as error:
        problem = describe_problem(first_problem(error))
        raise ScorerProcessError(f"{what}'s answer was changed by what it ran ({problem})") from None
    except UserError as error:
        raise ScorerProcessError(f"{what}'s answer was changed by what it ran ({error})") from None


def run_limited(command: list[str], cwd: Path, stderr: Path, timeout: float | None) -> int:
    """Run a command in a process group of its own; return its exit status.

    Raises
    ------
    subprocess.TimeoutExpired
        It did not end within `timeout` seconds, and was killed.
    """
    with (
        open(stderr, "wb") as errors,
        subprocess.Popen(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        ) as process,
    ):
        try:
            return process.wait(timeout)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)


def _last_line(file: Path) -> str:
    """Return the last line of what the process wrote to stderr, printable and at most 300 characters long."""
    with open(file, "rb") as stream:
        stream.seek(max(0, file.stat().st_size - _MAX_ERROR_BYTES))
        lines = stream.read(_MAX_ERROR_BYTES).decode(errors="replace").strip().splitlines()
    text = lines[-1][:300] if lines else "no message"
    return "".join(letter if letter.isprintable() else "?" for letter in text)
