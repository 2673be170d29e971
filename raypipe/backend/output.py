"""What Ray prints, in this process and its workers, kept out of the terminal and in the run: ``log/ray.txt``.

The file has an end, the newest is kept, and it is written whole now and then, since object stores cannot append.
"""

from __future__ import annotations

import contextlib
import io
import os
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from raypipe.core.errors import UserError
from raypipe.storage.files import Folder
from raypipe.storage.trial_log import MAX_OUTPUT_CHARACTERS, OUTPUT_FILE, keep_end, read_output

EVERY = 10.0
"""Seconds between two writes, where there is something new: what a killed driver loses."""
FAREWELL = 5.0
"""Seconds that the last write may take: nobody waits for a storage that has failed to take a log."""
EVENT = ":event_summary:"
"""Where Ray's autoscaler has something to tell a driver."""


class CapturedOutput(io.TextIOBase):
    """A stream that keeps the end of what is written to it; in a run's folder too, once it knows of one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._text = ""
        self._new = False

    def write(self, text: str) -> int:
        with self._lock:
            self._text += text
            self._new = True
            if len(self._text) > 2 * MAX_OUTPUT_CHARACTERS:
                self._text = keep_end(self._text)
        return len(text)

    def hear(self, data: dict[str, Any]) -> None:
        """Keep what a process of the cluster has printed, as Ray hands it to a driver."""
        lines = data.get("lines", ())
        if data.get("pid") == "autoscaler":  # it prints its whole state every five seconds
            lines = [line.partition(EVENT)[2] for line in lines if EVENT in line]
        away = f"on {data['ip']}" if data.get("ip") not in (None, data.get("localhost")) else ""
        who = [data.get("actor_name") or data.get("task_name") or "", str(data.get("pid", "")), away]
        head = " ".join([f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}Z", *filter(None, who)])
        self.write("".join(f"{head}: {line}\n" for line in lines))

    @contextlib.contextmanager
    def kept(self, folder: Folder) -> Iterator[None]:
        """Write it to a run's `OUTPUT_FILE`, behind what earlier drivers left there, while the block lasts."""
        with self._lock:
            head = f"--- process {os.getpid()} on {socket.gethostname()}, {datetime.now(UTC):%Y-%m-%d %H:%M:%S}Z\n"
            self._text = read_output(folder) + head + self._text
        stop = threading.Event()

        def keep() -> None:
            while not stop.wait(EVERY):
                self._save(folder)
            self._save(folder)

        writer = threading.Thread(target=keep, daemon=True)
        writer.start()
        try:
            yield
        finally:
            stop.set()
            writer.join(FAREWELL)

    def _save(self, folder: Folder) -> None:
        with self._lock:
            text, new, self._new = keep_end(self._text), self._new, False
        if new:
            with contextlib.suppress(OSError, UserError):
                folder.write(OUTPUT_FILE, text.encode(errors="replace"))
