"""Watch of Ray's control store (GCS): Ray ends every process of a cluster whose store is away for a minute.

Ray gives no error before it does that: calls that need the store wait, and then the process ends with status 1.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Callable

RAY_LIMIT_VARIABLE = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""Environment variable: seconds after which Ray ends a process whose control store is away."""
RAY_LIMIT_SECONDS = 60.0
"""The same, where it is not set."""
LEAVE_SHARE = 0.6
"""Share of Ray's limit after which a driver leaves Ray, which takes up to 15 seconds, longer on a busy machine."""
WARN_SHARE = 11 / 12
"""Share of Ray's limit after which a driver that could not leave says how it will end."""
PROBE_SECONDS = 2.0
CONNECT_SECONDS = 2.0
_NOTHING_LISTENS = {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN}


def ray_limit() -> float:
    """Return the seconds after which Ray ends this process when its control store is away."""
    try:
        return float(os.environ[RAY_LIMIT_VARIABLE])
    except (KeyError, ValueError):
        return RAY_LIMIT_SECONDS


class ControlStoreWatch:
    """Probe the port of a control store in a thread, and measure for how long nothing has listened there.

    A store that accepts connections and does not answer is not away: it is suspended or busy, and Ray waits for it.

    Parameters
    ----------
    address
        Its ``host:port``.
    warn
        Called in the thread, with one line, shortly before Ray ends this process.
    on_away
        Called in the thread when the store is found to be away.
    clock
        Monotonic clock in seconds.
    """

    def __init__(
        self,
        address: str,
        warn: Callable[[str], object],
        on_away: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address, self._warn, self._on_away, self._clock = address, warn, on_away, clock
        self._limit = ray_limit()
        self._away_since: float | None = None
        self._warned = False
        self._stopped = threading.Event()

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._run, name="raypipe-control-store", daemon=True).start()

    def stop(self) -> None:
        """End the thread; an event under way may still be reported."""
        self._stopped.set()

    @property
    def away(self) -> bool:
        """Return whether nothing listened at the last probe."""
        return self._away_since is not None

    @property
    def lost(self) -> bool:
        """Return whether the store has been away for so long that the driver must leave Ray."""
        return self._seconds_away() >= LEAVE_SHARE * self._limit

    def _seconds_away(self) -> float:
        since = self._away_since
        return 0.0 if since is None else self._clock() - since

    def _run(self) -> None:
        while not self._stopped.wait(PROBE_SECONDS):
            self.probe()

    def probe(self) -> None:
        """Connect once; warn if Ray is about to end this process."""
        began = self._clock()
        if listens(self._address):
            self._away_since, self._warned = None, False
        elif self._away_since is None:
            self._away_since = began
            self._on_away()
        seconds = self._seconds_away()
        if seconds >= WARN_SHARE * self._limit and not (self._warned or self._stopped.is_set()):
            self._warned = True
            self._warn(
                f"Ray's control store at {self._address} has been away for {seconds:.0f} s, and Ray is about to end "
                "this process; the same command continues from here"
            )


def listens(address: str) -> bool:
    """Return False if nothing listens at ``host:port``; an error of this process itself does not say so."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        return not (isinstance(error, TimeoutError) or error.errno in _NOTHING_LISTENS)
    return True
