"""The lease of a run: a heartbeat file in the run's folder that prevents a second driver.

A driver on another host is judged by whether its heartbeat moves, by the monotonic clock of the process that looks.
Clocks of two hosts may differ by hours, and a clock may be set.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple

from raypipe.core.errors import DamagedFileError, StorageError, UserError
from raypipe.core.record import OtherFormatError
from raypipe.storage.driver_record import DriverRecord, Resources, Usage
from raypipe.storage.files import Folder, LocalFolder, read_record, write_record
from raypipe.storage.host_lock import is_locked, take_lock
from raypipe.storage.records import read_owned
from raypipe.storage.run_layout import require_layout

HEARTBEAT_SECONDS = 5.0
EXPIRY_SECONDS = 60.0
"""Seconds without a new heartbeat after which a driver on another host counts as dead."""
WATCH_SECONDS = 1.0
"""Seconds between two looks at the heartbeat of a driver that may be dead."""
DRIVER_FILE = "driver.json"
LOCK_FILE = "driver.lock"

_OWN_IDS: set[str] = set()
"""Ids of the leases that this process holds."""
_SEEN: dict[str, _Sighting] = {}
"""What this process has seen of leases, by folder."""


class _Sighting(NamedTuple):
    """A heartbeat that this process has seen."""

    heartbeat: tuple[str, float, float]
    since: float
    """Monotonic time (s) at which it was first seen."""
    alive: bool
    """Whether the driver is taken for alive until the heartbeat expires."""


def read_lease(folder: Folder) -> DriverRecord | None:
    """Read the record of a run's last driver and check whether it is alive.

    The first look at a driver on another host goes by its clock, since nothing is known of its heartbeat yet. Only
    `Lease` waits to see whether that moves.

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
    record = _read(folder)
    if record is None:
        return None
    proven = _proven_alive(folder, record)
    return record.model_copy(update={"alive": _seems_alive(folder, record) if proven is None else proven})


def _read(folder: Folder) -> DriverRecord | None:
    if not folder.exists(DRIVER_FILE):
        return None
    try:
        return read_record(DriverRecord, folder, DRIVER_FILE)
    except (DamagedFileError, FileNotFoundError):
        return None
    except (StorageError, OtherFormatError):
        raise
    except UserError:
        return None


def read_driver(folder: Folder, run: str) -> DriverRecord | None:
    """Read the record of a run's last driver; None where there is none.

    Parameters
    ----------
    folder
        Folder of the run.
    run
        `RunInfo.id` or `PretrainInfo.id`.

    Raises
    ------
    DamagedFileError
        The record is damaged, or is that of another run. The time that the run has used is then unknown.
    OtherFormatError
        Another version of raypipe has written it.
    """
    if not folder.exists(DRIVER_FILE):
        return None
    try:
        return read_owned(DriverRecord, folder, DRIVER_FILE, run)
    except FileNotFoundError:
        return None
    except DamagedFileError as error:
        what = str(error).partition("; ")[0]
        fix = "restore it from a copy, or remove it: the time spent is then counted from the records of the trials"
        raise DamagedFileError(f"{what}; {fix}") from None


def in_use_error(folder: Folder, driver: DriverRecord | None) -> UserError:
    """Return the error that a second driver raises; `driver` is the first, None where its record is missing."""
    process = f"process {driver.pid} on {driver.host}" if driver else "a process on this host"
    return UserError(
        f"{folder.where}: another raypipe is driving this run ({process}); follow it with: raypipe status RUN"
    )


def _proven_alive(folder: Folder, record: DriverRecord) -> bool | None:
    """Return whether a driver is alive, None where only its heartbeat shows it."""
    if record.ended:
        return False
    if record.host != socket.gethostname():
        return None
    if isinstance(folder, LocalFolder):
        # The kernel releases a lock when its process ends. Process ids are no proof: containers reuse them at once.
        return is_locked(folder.path / LOCK_FILE)
    if record.pid == os.getpid():
        return record.id in _OWN_IDS
    try:
        os.kill(record.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return None


def _seems_alive(folder: Folder, record: DriverRecord) -> bool:
    """Return whether a driver seems alive by its heartbeats, as far as this process has seen them."""
    now, seen = time.monotonic(), _SEEN.get(folder.where)
    if seen is None or seen.heartbeat[0] != record.id:
        fresh = abs(time.time() - record.beat) <= EXPIRY_SECONDS
        seen = _Sighting(record.heartbeat, now, fresh)
    elif seen.heartbeat != record.heartbeat:
        seen = _Sighting(record.heartbeat, now, True)
    _SEEN[folder.where] = seen
    return seen.alive and now - seen.since <= EXPIRY_SECONDS


class Lease:
    """Context manager that holds a run, writes heartbeats and counts the seconds that the run is driven.

    The last driver may be on another host, and have died. It is watched for `EXPIRY_SECONDS` at most: a heartbeat shows
    that it is alive.

    Parameters
    ----------
    folder
        Folder of the run.
    on_wait
        Called with a driver's process and host before it is watched.
    run
        `RunInfo.id` or `PretrainInfo.id`, by which the record of another run's driver is refused.
    on_lost
        Returns what earlier drivers have used, where they have left no record.

    Attributes
    ----------
    gpu_hours
        Hours of GPUs that this and earlier drivers have held; `raypipe.storage.budget` adds to it.
    resources
        What the driver's trials take, once it is known; written with each heartbeat.
    before_beat
        Called before each heartbeat is written.
    after_beat
        Called after each but the first and the last, in the thread of the heartbeats; may take long.
    lost
        The error to stop with if another driver has taken over the run, else None.

    Raises
    ------
    UserError
        Another driver holds the run, or the record of the last one is damaged.
    """

    def __init__(
        self,
        folder: Folder,
        on_wait: Callable[[str], object] = lambda driver: None,
        *,
        run: str = "",
        on_lost: Callable[[], Usage] = Usage,
    ) -> None:
        self._folder, self._on_wait, self._run, self._on_lost = folder, on_wait, run, on_lost
        self._id, self._started = "", 0.0
        self._spent_before = self._spent_from = 0.0
        self._stop = threading.Event()
        self._lock_handle: int | None = None
        self.gpu_hours = 0.0
        self.resources: Resources | None = None
        self.before_beat: Callable[[], object] = lambda: None
        self.after_beat: Callable[[], object] = lambda: None
        self.lost: UserError | None = None

    @property
    def id(self) -> str:
        """Return `DriverRecord.id` of this lease."""
        return self._id

    @property
    def spent(self) -> float:
        """Return the seconds that this and earlier drivers have driven the run."""
        return self._spent_before + time.monotonic() - self._spent_from

    def __enter__(self) -> Lease:
        last = self._last_driver()
        used = Usage(last.spent, last.gpu_hours) if last else self._on_lost()
        if isinstance(self._folder, LocalFolder):
            self._lock_handle = take_lock(self._folder.path / LOCK_FILE)
            if self._lock_handle is None:
                raise in_use_error(self._folder, read_lease(self._folder))
        self._spent_before, self.gpu_hours = used
        self._id, self._started, self._spent_from = uuid.uuid4().hex, time.time(), time.monotonic()
        _OWN_IDS.add(self._id)
        self._beat()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()
        return self

    def _last_driver(self) -> DriverRecord | None:
        """Return the last record of a driver that is dead; raise `UserError` if it is alive."""
        if isinstance(self._folder, LocalFolder):
            require_layout(self._folder, whole=False)
        last = read_driver(self._folder, self._run)
        proven = _proven_alive(self._folder, last) if last else False
        if last and proven is None:
            self._on_wait(f"process {last.pid} on {last.host}")
            return self._watch(last)
        if proven:
            raise in_use_error(self._folder, last)
        return last

    def _watch(self, last: DriverRecord) -> DriverRecord:
        """Return the record of a driver once it has given the lease back or its heartbeat has expired."""
        deadline = time.monotonic() + EXPIRY_SECONDS
        while time.monotonic() < deadline:
            time.sleep(WATCH_SECONDS)
            found = _read(self._folder)
            if found and found.heartbeat != last.heartbeat:
                if not found.ended:
                    raise in_use_error(self._folder, found)
                return found
        return last

    def _beat(self, ended: bool = False) -> None:
        """Write a heartbeat."""
        self.before_beat()
        record = DriverRecord(
            run=self._run,
            id=self._id,
            host=socket.gethostname(),
            pid=os.getpid(),
            started=self._started,
            spent=self.spent,
            gpu_hours=self.gpu_hours,
            beat=time.time(),
            resources=self.resources,
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
                self.after_beat()

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
