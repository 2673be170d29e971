"""Who drives a run: a lease with a heartbeat in the run's folder, so that two drivers never share one."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from raypipe.core.errors import StorageError, UserError
from raypipe.storage.files import Folder, LocalFolder, lock, read_json, write_json

BEAT = 5.0
STALE = 60.0
FILE = "driver.json"
LOCK = "driver.lock"

_HELD: set[str] = set()


def read_lease(folder: Folder) -> dict[str, Any] | None:
    """The last driver's record, with ``alive``; None where there has been none."""
    if not folder.exists(FILE):
        return None
    try:
        record = dict(read_json(folder, FILE))
    except StorageError:  # who does not know whether there is a driver must not become one
        raise
    except (UserError, FileNotFoundError):
        return None
    return record | {"alive": _alive(folder, record)}


def in_use_error(folder: Folder, last: dict[str, Any]) -> UserError:
    """What a second driver is told."""
    return UserError(
        f"{folder.where}: another raypipe is driving this run (process {last['pid']} on {last['host']}); "
        "look on with: raypipe status RUN"
    )


def _alive(folder: Folder, record: dict[str, Any]) -> bool:
    if record.get("ended"):
        return False
    here = record["host"] == socket.gethostname()
    if here and isinstance(folder, LocalFolder):
        # The kernel frees a lock with its process, whereas process numbers come round again (in containers at once).
        return _locked(folder.path / LOCK)
    if time.time() - float(record["beat"]) > STALE:
        return False
    if not here:
        return True
    if record["pid"] == os.getpid():
        return record["id"] in _HELD
    try:
        os.kill(int(record["pid"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _locked(path: Path) -> bool:
    """Whether a process of this host holds the lock."""
    try:
        with open(path, "rb") as file:
            return not lock(file, shared=True)
    except OSError:  # no lock has been made
        return False


def _lock(path: Path) -> int | None:
    """Take the lock; None where another process of this host has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    for _ in range(20):
        if lock(handle):  # or the file system has none: the heartbeat is what there is
            return handle
        time.sleep(0.02)  # a `status` that looks takes it for a moment
    os.close(handle)
    return None


class Lease:
    """Holds a run while its block lasts, and counts the seconds it was driven in all.

    Attributes
    ----------
    gpu_hours
        Used by this and earlier drivers; counted by `raypipe.storage.budget`, kept here.
    before_beat
        Called before the record is written.

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
        self.gpu_hours = 0.0
        self.before_beat: Callable[[], object] = lambda: None
        self._handle: int | None = None

    @property
    def spent(self) -> float:
        """Seconds that this and earlier drivers have driven the run."""
        return self._before + time.time() - float(self._record["started"])

    def __enter__(self) -> Lease:
        last = read_lease(self._folder)
        if isinstance(self._folder, LocalFolder) and not (last and last["alive"]):
            self._handle = _lock(self._folder.path / LOCK)
            if self._handle is None:
                last = (read_lease(self._folder) or {"pid": "unknown", "host": "this host"}) | {"alive": True}
        if last and last["alive"]:
            raise in_use_error(self._folder, last)
        self._before = float(last["spent"]) if last else 0.0
        self.gpu_hours = float(last.get("gpu_hours", 0.0)) if last else 0.0
        now = time.time()
        self._record = {"id": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid(), "started": now}
        _HELD.add(str(self._record["id"]))
        self._beat()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()
        return self

    def _beat(self, ended: bool = False) -> None:
        self.before_beat()
        used = {"spent": self.spent, "gpu_hours": self.gpu_hours}
        write_json(self._folder, FILE, self._record | used | {"beat": time.time(), "ended": ended})

    def _keep(self) -> None:
        while not self._stop.wait(BEAT):
            with suppress(Exception):  # a full disk or a storage that stalls is the sweep's to report
                found = read_lease(self._folder)
                if found and found["id"] != self._record["id"]:
                    # Two drivers came at one moment, or this one slept for longer than a lease: the later one has it.
                    os.kill(os.getpid(), signal.SIGINT)
                    return
                self._beat()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        with suppress(Exception):
            if (found := read_lease(self._folder)) and found["id"] == self._record["id"]:
                self._beat(ended=True)
        _HELD.discard(str(self._record["id"]))
        if self._handle is not None:
            os.close(self._handle)
