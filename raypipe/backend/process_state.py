"""State of the caller's process that Ray changes, restored after a sweep; delayed Ctrl-C; Tune's thread."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator

POLL_SECONDS = 0.5
END_SECONDS = 30.0
"""Seconds that Tune's thread may take to end its actors after a Ctrl-C."""
LEAVE_SECONDS = 3.0
"""Seconds that it may take to end when the driver leaves Ray; a call that waits for the control store never ends."""


@contextlib.contextmanager
def restored_process_state() -> Iterator[None]:
    """Restore environment variables, warning filters, signal handlers and ``sys.excepthook`` after the block.

    Libraries change some of them when they are imported, Ray also when it starts.
    """
    environment, excepthook = dict(os.environ), sys.excepthook
    with warnings.catch_warnings(), restored_signal_handlers():
        try:
            yield
        finally:
            sys.excepthook = excepthook
            for name in os.environ.keys() - environment.keys():
                del os.environ[name]
            os.environ.update(environment)


@contextlib.contextmanager
def restored_signal_handlers() -> Iterator[None]:
    """Restore the handlers of the signals that Ray and Tune handle after the block.

    Only the main thread may set handlers, and Ray sets none in another thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = ("SIGINT", "SIGTERM", "SIGUSR1")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Delay a Ctrl-C until the end of the block, so that it does not interrupt a clean-up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupts: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)
    if interrupts:
        signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def logger_to(name: str, stream: io.TextIOBase) -> Iterator[None]:
    """Make a logger write to `stream` instead of its own handlers, for the duration of the block."""
    logger = logging.getLogger(name)
    handlers, level = logger.handlers, logger.level
    logger.handlers = [logging.StreamHandler(stream)]
    try:
        yield
    finally:
        logger.handlers = handlers
        logger.setLevel(level)


@contextlib.contextmanager
def logger_at(name: str, level: int) -> Iterator[None]:
    """Set a logger's level for the duration of the block."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def blocked_hang_up() -> Iterator[None]:
    """Let processes that are started in the block inherit a blocked SIGHUP.

    A terminal that is closed sends it to all its processes. Ray's would end before this one has finished its epochs.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_in_thread(
    work: Callable[[], object], interrupt: Callable[[], object], left: Callable[[], bool] = lambda: False
) -> None:
    """Call `work` in a thread, so that a Ctrl-C does not break into it, and wait for its end.

    After a Ctrl-C, `interrupt` is called to make it end soon. When `left` returns True, it is waited for no longer than
    `LEAVE_SECONDS`, and its errors are not raised.
    """
    ended, errors = threading.Event(), []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)
        finally:
            ended.set()

    threading.Thread(target=run, name="raypipe-tune", daemon=True).start()
    try:
        # With a timeout: CPython can miss a signal that arrives just before it waits for a lock.
        while not ended.wait(POLL_SECONDS):
            if left():
                ended.wait(LEAVE_SECONDS)
                return
    except KeyboardInterrupt:
        with deferred_interrupt():
            interrupt()
            ended.wait(END_SECONDS)
        raise
    if errors:
        raise errors[0]
