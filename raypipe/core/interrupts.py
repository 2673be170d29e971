"""Ctrl-C of a command: never in the middle of an import."""

from __future__ import annotations

import _thread
import signal
import threading
import time
from types import FrameType

WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.02, 10.0
"""How often the end of an import is looked for, and after how long it is broken off."""
_IMPORTLIB = ("<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")
_deadlines: list[float] = []
"""Until when a signal that was heard during an import waits for its end."""


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, after the import that is under way: Python drops one that is raised in import locks.

    It may also leave modules half imported, which the clean-up after it then fails on.
    """
    if _is_importing(frame):
        deadline = _deadlines[0] if _deadlines else time.monotonic() + LONGEST_WAIT_SECONDS
        if time.monotonic() < deadline:
            _deadlines[:] = [deadline]
            _thread.start_new_thread(_repeat, (number,))  # `threading` may hold a lock that starting one takes
            return
    _deadlines.clear()
    raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename in _IMPORTLIB:
            return True
        frame = frame.f_back
    return False


def _repeat(number: int) -> None:
    time.sleep(WAIT_SECONDS)
    signal.pthread_kill(threading.main_thread().ident or 0, number)
