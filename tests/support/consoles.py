"""Consoles of a child process that are closed while it runs."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import sys
import threading
from collections.abc import Sequence
from typing import Any, Literal

ConsoleKind = Literal["pipe", "terminal", "nohup"]
"""A pipe, as of ``| head``; a terminal that sends SIGHUP when it is closed; a terminal whose SIGHUP is ignored."""

# Make the standard input the terminal of this session, then run the command.
_LEADER = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
# Under nohup this process has inherited that SIGHUP is ignored.
signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv[1] == "nohup" else signal.SIG_DFL)
os.execv(sys.argv[2], sys.argv[2:])
"""
_CHUNK = 65536


class Console:
    """The standard output and error of a child process, which are copied to a file until the console is closed.

    Parameters
    ----------
    kind
        Kind of console.
    output
        Descriptor of the file.
    """

    def __init__(self, kind: ConsoleKind, output: int) -> None:
        self._kind, self._output = kind, output
        self._ours, self._theirs = os.pipe() if kind == "pipe" else pty.openpty()
        self._woken, self._wake = os.pipe()
        self._reader = threading.Thread(target=self._read, name="console", daemon=True)
        self._lock = threading.Lock()

    def command(self, words: Sequence[str]) -> list[str]:
        """Return the command to start, as the leader of a new session."""
        return [*words] if self._kind == "pipe" else [sys.executable, "-c", _LEADER, self._kind, *words]

    @property
    def streams(self) -> dict[str, Any]:
        """Return the streams of the child process, as arguments of `subprocess.Popen`."""
        own = {} if self._kind == "pipe" else {"stdin": self._theirs}
        return {"stdout": self._theirs, "stderr": self._theirs} | own

    def start(self) -> None:
        """Start to read, once the child process has the other end."""
        os.close(self._theirs)
        self._reader.start()

    def close(self) -> None:
        """Close the console, so that the child process has none."""
        with self._lock:
            if self._wake < 0:
                return
            os.close(self._wake)
            self._wake = -1
        self._reader.join()
        os.close(self._ours)
        os.close(self._woken)

    def _read(self) -> None:
        while self._woken not in select.select([self._ours, self._woken], [], [])[0]:
            with contextlib.suppress(OSError):  # of a terminal, when no process has it any more
                if data := os.read(self._ours, _CHUNK):
                    os.write(self._output, data)
                    continue
            select.select([self._woken], [], [])
            return
