"""Retries of operations on a remote storage: after which errors, and for how long."""

from __future__ import annotations

import errno
import logging
import re
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from raypipe.core.errors import StorageError, disk_full, first_line

log = logging.getLogger(__name__)

MAX_OUTAGE_SECONDS = 300.0
"""Seconds that a storage may fail or stall before raypipe gives up."""
FIRST_PAUSE, MAX_PAUSE = 0.5, 20.0
"""Seconds between two attempts; the pause doubles from the first to the longest."""

T = TypeVar("T")

_NO_BUCKET = re.compile(r"NO_SUCH_BUCKET|Bucket '[^']*' not found")
_DENIED = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|INVALID_SIGNATURE|INVALID_CLIENT_TOKEN_ID|"
    r"UNRECOGNIZED_CLIENT|MISSING_AUTHENTICATION_TOKEN|INCOMPLETE_SIGNATURE|REQUEST_EXPIRED|ExpiredToken|"
    r"HTTP status 40[13]"
)
_REFUSED = re.compile(r"HTTP status (3|4(?!08|25|29))\d\d|REQUEST_TIME_TOO_SKEWED|INVALID_PARAMETER|VALIDATION")

_TRANSIENT = {
    None,
    errno.EAGAIN,
    errno.EBUSY,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.EPIPE,
    errno.ESTALE,
    errno.ETIMEDOUT,
}
"""Error numbers that are retried. Others concern the path: it is a folder, or access is not permitted."""


def describe_failure(error: OSError, where: str) -> StorageError | None:
    """Return the error that users see if another attempt would not help; None if it might."""
    if full := disk_full(error, where):
        return full
    line = first_line(error)
    if _NO_BUCKET.search(line):
        return StorageError(f"{where}: there is no such bucket; create it, or correct the URI")
    if _DENIED.search(line):
        return StorageError(
            f"{where}: the storage denies access ({line}); give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "AWS_PROFILE, with permission to list, read, write and delete there"
        )
    return StorageError(f"{where}: the storage refuses this ({line})") if _REFUSED.search(line) else None


class RetryPolicy:
    """Repeat operations on a storage while its server fails, with growing pauses.

    All operations share one outage. It starts with the first failure, is logged once, and ends with the first success.
    After `limit` seconds, every operation fails at its first attempt until one succeeds, so that the clean-up after a
    failure does not wait as long again.

    Parameters
    ----------
    where
        The storage, for messages.
    limit
        Seconds that an outage may last; 0 where there is no server to wait for.
    clock, sleep
        Functions that return the time in seconds, and wait for a number of seconds.
    """

    def __init__(
        self,
        where: str,
        limit: float = MAX_OUTAGE_SECONDS,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.where, self.limit = where, limit
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._outage_start: float | None = None

    def __call__(self, what: str, operation: Callable[[], T]) -> T:
        """Call `operation`, repeat it while it fails, and return its result.

        Parameters
        ----------
        what
            The operation in words.
        operation
            May run more than once.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        StorageError
            The server refuses, or has failed for `limit` seconds.
        """
        pause = FIRST_PAUSE
        while True:
            started = self._clock()
            try:
                result = operation()
            except FileNotFoundError:
                self._end_outage()
                raise
            except OSError as error:
                refused = describe_failure(error, self.where)
                if refused or not self.limit or error.errno not in _TRANSIENT:
                    raise refused or error from None
                self._sleep(min(pause, self._seconds_left(started, what, first_line(error))))
            else:
                self._end_outage()
                return result
            pause = min(2 * pause, MAX_PAUSE)

    def _seconds_left(self, started: float, what: str, reason: str) -> float:
        """Return how many seconds the outage may still last. `started` is the start of the failed attempt.

        Raises
        ------
        StorageError
            The limit is reached.
        """
        with self._lock:
            if self._outage_start is None:
                self._outage_start = started
                log.warning(
                    "%s: the storage fails (%s: %s); waiting up to %g minutes for it",
                    self.where,
                    what,
                    reason,
                    self.limit / 60,
                )
            left = self._outage_start + self.limit - self._clock()
        if left <= 0:
            raise StorageError(
                f"{self.where}: the storage has not answered for {self.limit / 60:g} minutes ({what}: {reason}); run "
                "the same command again when it does (nothing written so far is lost)"
            )
        return left

    def _end_outage(self) -> None:
        if self._outage_start is not None:
            with self._lock:
                started, self._outage_start = self._outage_start, None
            if started is not None:
                log.warning("%s: the storage answers again, after %.0f s", self.where, self._clock() - started)
