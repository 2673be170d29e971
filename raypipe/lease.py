"""Who drives a run: a lease with a heartbeat in the run's folder, so that two drivers never share one."""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from types import TracebackType
from typing import Any

from raypipe.errors import UserError
from raypipe.files import Folder, read_json, write_json

BEAT = 5.0
STALE = 60.0
FILE = "driver.json"


def current(folder: Folder) -> dict[str, Any] | None:
    """The last driver's record, with ``alive``; None where there has been none."""
    if not folder.exists(FILE):
        return None
    try:
        record = dict(read_json(folder, FILE))
    except (UserError, FileNotFoundError):
        return None
    return record | {"alive": _alive(record)}


def _alive(record: dict[str, Any]) -> bool:
    if record.get("ended") or time.time() - float(record["beat"]) > STALE:
        return False
    if record["host"] != socket.gethostname():
        return True
    try:
        os.kill(int(record["pid"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class Lease:
    """Holds a run while its block lasts, and counts the seconds it was driven in all.

    Raises
    ------
    UserError
        Another driver holds it.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._stop = threading.Event()
        self._record: dict[str, Any] = {}
        self._before = 0.0

    @property
    def spent(self) -> float:
        """Seconds that this and earlier drivers have driven the run."""
        return self._before + time.time() - float(self._record["started"])

    def __enter__(self) -> Lease:
        last = current(self._folder)
        if last and last["alive"]:
            raise UserError(
                f"{self._folder.where}: another raypipe is driving this run (process {last['pid']} on {last['host']}); "
                "look on with: raypipe status RUN"
            )
        self._before = float(last["spent"]) if last else 0.0
        now = time.time()
        self._record = {"id": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid(), "started": now}
        self._beat()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()
        return self

    def _beat(self, ended: bool = False) -> None:
        write_json(self._folder, FILE, self._record | {"beat": time.time(), "spent": self.spent, "ended": ended})

    def _keep(self) -> None:
        while not self._stop.wait(BEAT):
            with suppress(Exception):  # a full disk or a storage that stalls is the sweep's to report
                self._beat()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        with suppress(Exception):
            self._beat(ended=True)
