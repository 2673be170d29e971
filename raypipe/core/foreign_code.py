"""Run code of users' files so that it can neither end this process unnoticed nor pose as a Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

from pydantic import ValidationError

from raypipe.core.errors import UserError, first_line
from raypipe.core.record import describe_problem, first_problem

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals whose handlers may raise KeyboardInterrupt."""

_lock = threading.RLock()
_exit_process = os._exit
_running: tuple[int, int] | None = None
"""Process and thread in which foreign code runs; None if there is none."""


@contextlib.contextmanager
def foreign_code() -> Iterator[None]:
    """Run the block as code of a user's file: ``os._exit`` and an own KeyboardInterrupt become a SystemExit.

    Handlers of signals are called as before, and a KeyboardInterrupt that one of them raises is passed on.

    Raises
    ------
    SystemExit
        Names what the code has called or raised.
    """
    global _running
    with _lock:
        before, _running = _running, (os.getpid(), threading.get_ident())
        os._exit = _refuse_exit
        try:
            with _received_signals() as received:
                try:
                    yield
                except KeyboardInterrupt as error:
                    if received:
                        raise
                    raise SystemExit("raises KeyboardInterrupt").with_traceback(error.__traceback__) from None
        finally:
            _running = before
            if before is None:
                os._exit = _exit_process


@contextlib.contextmanager
def code_errors(where: str, file: str, hint: str = "") -> Iterator[None]:
    """Run the block as `foreign_code`; whatever it raises becomes one line.

    Parameters
    ----------
    where
        Beginning of the line.
    file
        File name that the code was compiled with, whose line is named.
    hint
        End of the line.

    Raises
    ------
    UserError
        Anything but a UserError or a Ctrl-C was raised, such as SystemExit.
    """
    try:
        with foreign_code():
            yield
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise UserError(f"{where}: {describe_code_error(error, file)}{hint}") from None


def describe_code_error(error: BaseException, file: str) -> str:
    """Return the line of a file in which an error was raised, if it is known, its type, and its message's first line.

    The message may be empty, or fail.
    """
    kind = type(error).__name__
    try:
        # The first line of a ValidationError only counts the problems.
        message = describe_problem(first_problem(error)) if isinstance(error, ValidationError) else first_line(error)
    except Exception:  # of any type: the text of an error is made by users' code too
        message = ""
    return _line_of(error, file) + (kind if message in ("", kind) else f"{kind}: {message}")


def _line_of(error: BaseException, file: str) -> str:
    """Return ``line N: ``, where N is the line of the file in which the error was raised; empty if unknown."""
    line = getattr(error, "lineno", None)
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"line {line}: " if line else ""


def _refuse_exit(status: int) -> NoReturn:
    """Raise SystemExit in place of ``os._exit``, but for other threads and for processes that the code has forked."""
    if _running == (os.getpid(), threading.get_ident()):
        raise SystemExit(f"calls os._exit({status})")
    _exit_process(status)


@contextlib.contextmanager
def _received_signals() -> Iterator[list[int]]:
    """Yield a list to which the numbers of the signals are added that this thread handles during the block."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # other threads handle none
        yield received
        return

    def noting(handler: Any) -> Any:
        def note(number: int, frame: Any) -> None:
            received.append(number)
            handler(number, frame)

        return note

    before = {number: handler for number in SIGNALS if callable(handler := signal.getsignal(number))}
    noted = {number: noting(handler) for number, handler in before.items()}
    for number, handler in noted.items():
        signal.signal(number, handler)
    try:
        yield received
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is noted[number]:
                signal.signal(number, handler)
