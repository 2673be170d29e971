"""Output of Ray's processes, written to ``log/ray.txt`` of the run instead of the terminal.

The file has a maximum size, of which the newest part is kept. It is rewritten as a whole, since object stores cannot
append.
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

SAVE_SECONDS = 10.0
"""Seconds between two writes of new output; a driver that is killed loses at most so much."""
LAST_SAVE_SECONDS = 5.0
"""Seconds that the last write may take, in case the storage does not answer."""
AUTOSCALER_EVENT = ":event_summary:"
"""Marks the messages of Ray's autoscaler that are meant for a driver."""


class CapturedOutput(io.TextIOBase):
    """Stream that keeps the end of what is written to it, and saves it in a run's folder during `saved_to`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._text = ""
        self._changed = False

    def write(self, text: str) -> int:
        with self._lock:
            self._text += text
            self._changed = True
            if len(self._text) > 2 * MAX_OUTPUT_CHARACTERS:
                self._text = keep_end(self._text)
        return len(text)

    def receive(self, data: dict[str, Any]) -> None:
        """Write the output of a process of the cluster, in the form in which Ray gives it to a driver."""
        lines = data.get("lines", ())
        if data.get("pid") == "autoscaler":  # it prints its whole state every five seconds
            lines = [line.partition(AUTOSCALER_EVENT)[2] for line in lines if AUTOSCALER_EVENT in line]
        remote = f"on {data['ip']}" if data.get("ip") not in (None, data.get("localhost")) else ""
        process = [data.get("actor_name") or data.get("task_name") or "", str(data.get("pid", "")), remote]
        head = " ".join([f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}Z", *filter(None, process)])
        self.write("".join(f"{head}: {line}\n" for line in lines))

    @contextlib.contextmanager
    def saved_to(self, folder: Folder) -> Iterator[None]:
        """Save the output in a run's `OUTPUT_FILE`, after the output of earlier drivers, while the block lasts."""
        with self._lock:
            head = f"--- process {os.getpid()} on {socket.gethostname()}, {datetime.now(UTC):%Y-%m-%d %H:%M:%S}Z\n"
            self._text = read_output(folder) + head + self._text
        stop = threading.Event()

        def save() -> None:
            while not stop.wait(SAVE_SECONDS):
                self._save(folder)
            self._save(folder)

        writer = threading.Thread(target=save, daemon=True)
        writer.start()
        try:
            yield
        finally:
            stop.set()
            writer.join(LAST_SAVE_SECONDS)

    def _save(self, folder: Folder) -> None:
        with self._lock:
            text, changed, self._changed = keep_end(self._text), self._changed, False
        if changed:
            with contextlib.suppress(OSError, UserError):
                folder.write(OUTPUT_FILE, text.encode(errors="replace"))
