"""The lease of a run: a heartbeat file in the run's folder that prevents a second driver."""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Literal

from pydantic import Field

from raypipe.core.errors import DamagedFileError, StorageError, UserError
from raypipe.core.record import OtherFormatError, Record
from raypipe.storage.files import Folder, LocalFolder, lock, read_record, write_record

HEARTBEAT_SECONDS = 5.0
EXPIRY_SECONDS = 60.0
"""Age of the last heartbeat after which a driver on another host counts as dead."""
DRIVER_FILE = "driver.json"
LOCK_FILE = "driver.lock"

_LOCK_ATTEMPTS, _LOCK_PAUSE = 20, 0.02
_OWN_IDS: set[str] = set()
"""Ids of the leases that this process holds."""


class DriverRecord(Record):
    """The process that drives a run or that drove it last (``driver.json``)."""

    format: Literal["raypipe-driver/1"] = "raypipe-driver/1"
    id: str
    """Random, and new for every lease."""
    host: str
    pid: int
    started: float
    """Unix time (s) at which this driver took the lease."""
    spent: float
    """Seconds that this and earlier drivers have driven the run."""
    gpu_hours: float
    """Hours of GPUs that this and earlier drivers have held."""
    beat: float
    """Unix time (s) of the last heartbeat."""
    ended: bool = False
    """The driver has given the lease back."""
    alive: bool = Field(default=False, exclude=True)
    """The driver still drives the run; set by `read_lease`, not stored."""


def read_lease(folder: Folder) -> DriverRecord | None:
    """Read the record of a run's last driver and check whether it is alive.

    Returns
    -------
    DriverRecord or None
        None where there is no readable record.

    Raises
    ------
    StorageError
        The storage fails. A caller that cannot read the lease must not take it.
    OtherFormatError
        Another version of raypipe has written it.
    """
    if not folder.exists(DRIVER_FILE):
        return None
    try:
        record = read_record(DriverRecord, folder, DRIVER_FILE)
    except (DamagedFileError, FileNotFoundError):
        return None
    except (StorageError, OtherFormatError):
        raise
    except UserError:
        return None
    return record.model_copy(update={"alive": _is_alive(folder, record)})


def in_use_error(folder: Folder, driver: DriverRecord | None) -> UserError:
    """Return the error that a second driver raises; `driver` is the first, None where its record is missing."""
    process = f"process {driver.pid} on {driver.host}" if driver else "a process on this host"
    return UserError(
        f"{folder.where}: another raypipe is driving this run ({process}); follow it with: raypipe status RUN"
    )


def _is_alive(folder: Folder, record: DriverRecord) -> bool:
    if record.ended:
        return False
    here = record.host == socket.gethostname()
    if here and isinstance(folder, LocalFolder):
        # The kernel releases a lock when its process ends. Process ids are no proof: containers reuse them at once.
        return _is_locked(folder.path / LOCK_FILE)
    if time.time() - record.beat > EXPIRY_SECONDS:
        return False
    if not here:
        return True
    if record.pid == os.getpid():
        return record.id in _OWN_IDS
    try:
        os.kill(record.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_locked(path: Path) -> bool:
    """Return whether a process of this host holds the lock."""
    try:
        with open(path, "rb") as file:
            return not lock(file, shared=True)
    except OSError:  # the file does not exist yet
        return False


def _take_lock(path: Path) -> int | None:
    """Return the open lock file, or None where another process of this host holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    for _ in range(_LOCK_ATTEMPTS):
        if lock(handle):
            return handle
        time.sleep(_LOCK_PAUSE)  # `raypipe status` holds the lock for a moment to check it
    os.close(handle)
    return None


class Lease:
    """Context manager that holds a run, writes heartbeats and counts the seconds that the run is driven.

    Attributes
    ----------
    gpu_hours
        Hours of GPUs that this and earlier drivers have held; `raypipe.storage.budget` adds to it.
    before_beat
        Called before each heartbeat is written.
    lost
        The error to stop with if another driver has taken over the run, else None.

    Raises
    ------
    UserError
        Another driver holds the run.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._id, self._started = "", 0.0
        self._spent_before = 0.0
        self._stop = threading.Event()
        self._lock_handle: int | None = None
        self.gpu_hours = 0.0
        self.before_beat: Callable[[], object] = lambda: None
        self.lost: UserError | None = None

    @property
    def spent(self) -> float:
        """Return the seconds that this and earlier drivers have driven the run."""
        return self._spent_before + time.time() - self._started

    def __enter__(self) -> Lease:
        last = read_lease(self._folder)
        if last and last.alive:
            raise in_use_error(self._folder, last)
        if isinstance(self._folder, LocalFolder):
            self._lock_handle = _take_lock(self._folder.path / LOCK_FILE)
            if self._lock_handle is None:
                raise in_use_error(self._folder, read_lease(self._folder))
        if last:
            self._spent_before, self.gpu_hours = last.spent, last.gpu_hours
        self._id, self._started = uuid.uuid4().hex, time.time()
        _OWN_IDS.add(self._id)
        self._beat()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()
        return self

    def _beat(self, ended: bool = False) -> None:
        """Write a heartbeat."""
        self.before_beat()
        record = DriverRecord(
            id=self._id,
            host=socket.gethostname(),
            pid=os.getpid(),
            started=self._started,
            spent=self.spent,
            gpu_hours=self.gpu_hours,
            beat=time.time(),
            ended=ended,
        )
        write_record(self._folder, DRIVER_FILE, record)

    def _keep(self) -> None:
        """Write heartbeats until the lease is given back or lost."""
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with suppress(Exception):  # the sweep reports a full disk or a storage that fails
                found = read_lease(self._folder)
                if found and found.id != self._id:
                    # Two drivers started at the same moment, or this one was suspended for longer than the expiry. The
                    # later one keeps the lease.
                    self.lost = in_use_error(self._folder, found)
                    return
                self._beat()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        with suppress(Exception):
            if (found := read_lease(self._folder)) and found.id == self._id:
                self._beat(ended=True)
        _OWN_IDS.discard(self._id)
        if self._lock_handle is not None:
            os.close(self._lock_handle)
