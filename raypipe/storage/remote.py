"""A folder behind a pyarrow.fs URI, and the patience it takes when its server fails or stalls."""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import shlex
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, NamedTuple, TypeVar

from raypipe.core.errors import StorageError, UserError, disk_full, first_line

log = logging.getLogger(__name__)

TEMPORARY = ".part"
"""How names of files that are not whole yet end."""

RETRY_SECONDS = 300.0
"""Seconds that a storage may fail or stall before raypipe gives it up."""

FIRST, LONGEST = 0.5, 20.0
"""Seconds between two tries: at first, and at most."""

_NO_BUCKET = re.compile(r"NO_SUCH_BUCKET|Bucket '[^']*' not found")
_DENIED = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|INVALID_SIGNATURE|INVALID_CLIENT_TOKEN_ID|"
    r"UNRECOGNIZED_CLIENT|MISSING_AUTHENTICATION_TOKEN|INCOMPLETE_SIGNATURE|REQUEST_EXPIRED|ExpiredToken|"
    r"HTTP status 40[13]"
)
_REFUSED = re.compile(r"HTTP status (3|4(?!08|25|29))\d\d|REQUEST_TIME_TOO_SKEWED|INVALID_PARAMETER|VALIDATION")

# An error of another number than these is no failure of a server: the path is a folder, or may not be touched.
_PASSING = {
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

T = TypeVar("T")

_CHUNK = 1 << 23
_KEYS = re.compile(r"//[^/@]*@")


class Entry(NamedTuple):
    """A file of a listing."""

    name: str
    size: int
    """Bytes."""
    changed: int
    """Nanoseconds since 1970; 0 where the storage does not say."""


def without_settings(uri: str) -> str:
    """A URI for people: without the keys and settings that it may carry."""
    return _KEYS.sub("//", uri).partition("?")[0].rstrip("/")


def shell_quoted(where: object) -> str:
    """A path or URI as a command takes it: quoted for the shell (``&`` joins a URI's settings), without keys."""
    return shlex.quote(_KEYS.sub("//", str(where)))


def refuse_credentials(uri: str) -> None:
    """Refuse a URI with keys in it where it would be kept in records that others read.

    Raises
    ------
    UserError
        Without the keys.
    """
    if _KEYS.search(uri):
        raise UserError(
            f"{without_settings(uri)}: leave the keys out of the URI, which is kept on record; put them into the "
            "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or a role"
        )


def describe_failure(error: OSError, where: str) -> StorageError | None:
    """The line users see, for an answer that asking again will not change; None for a server that only fails."""
    full = disk_full(error, where)
    if full:
        return full
    line = first_line(error)
    if _NO_BUCKET.search(line):
        return StorageError(f"{where}: there is no such bucket; make it, or correct the URI")
    if _DENIED.search(line):
        return StorageError(
            f"{where}: the storage denies access ({line}); give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "AWS_PROFILE, of somebody who may list, read, write and delete there"
        )
    return StorageError(f"{where}: the storage refuses this ({line})") if _REFUSED.search(line) else None


class RetryPolicy:
    """Does operations on a storage again while its server fails, with growing waits.

    An outage is the server's and not an operation's: it begins with the first failure, is said once in the log, and
    ends with the first answer. When it has lasted for `limit`, everything fails at its first try until the server
    answers again; so what cleans up after the failure does not wait as long again.

    Parameters
    ----------
    where
        The storage, for messages.
    limit
        Seconds that an outage may last; 0 where there is no server that could answer again.
    clock, sleep
        How time is told and spent.
    """

    def __init__(
        self,
        where: str,
        limit: float = RETRY_SECONDS,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.where, self.limit = where, limit
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._since: float | None = None

    def __call__(self, what: str, operation: Callable[[], T]) -> T:
        """Do `operation`, which may be done twice; `what` says in words what it does.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        StorageError
            The server refuses, or has failed for `limit` seconds.
        """
        wait = FIRST
        while True:
            begun = self._clock()
            try:
                done = operation()
            except FileNotFoundError:
                self._answered()
                raise
            except OSError as error:
                refused = describe_failure(error, self.where)
                if refused or not self.limit or error.errno not in {None, *_PASSING}:
                    raise refused or error from None
                self._sleep(min(wait, self._left(begun, what, first_line(error))))
            else:
                self._answered()
                return done
            wait = min(2 * wait, LONGEST)

    def _left(self, begun: float, what: str, reason: str) -> float:
        """Seconds that the outage may still last."""
        with self._lock:
            if self._since is None:
                self._since = begun
                log.warning(
                    "%s: the storage fails (%s: %s); waiting up to %g minutes for it",
                    self.where,
                    what,
                    reason,
                    self.limit / 60,
                )
            left = self._since + self.limit - self._clock()
        if left <= 0:
            raise StorageError(
                f"{self.where}: the storage has not answered for {self.limit / 60:g} minutes ({what}: {reason}); run "
                "the same command again when it does (nothing written so far is lost)"
            )
        return left

    def _answered(self) -> None:
        if self._since is not None:
            with self._lock:
                since, self._since = self._since, None
            if since is not None:
                log.warning("%s: the storage answers again, after %.0f s", self.where, self._clock() - since)


class RemoteFolder:
    """A folder behind a pyarrow.fs URI (``s3://``, ``gs://``, ``hdfs://``, ``file://``).

    Object stores put a file whole or not at all. Other file systems get a temporary name and a rename. All that is
    done here may be done twice, and is, while a server fails (see `RetryPolicy`).

    Parameters
    ----------
    uri
        For S3 alike servers: ``s3://bucket/folder?scheme=http&endpoint_override=127.0.0.1:9000``.
    filesystem
        What to use in place of what pyarrow makes of `uri`: a pyarrow.fs.FileSystem, and the folder's path in it.
    patience
        How long to wait for a server that fails.

    Raises
    ------
    UserError
        pyarrow cannot open it.
    """

    def __init__(
        self, uri: str, *, filesystem: tuple[Any, str] | None = None, patience: RetryPolicy | None = None
    ) -> None:
        self.where = uri
        self._fs, root = filesystem or _open(uri)
        self._root = root.rstrip("/")
        self._patiently = patience or RetryPolicy(
            without_settings(uri), 0 if self._fs.type_name == "local" else RETRY_SECONDS
        )
        self._is_store = self._fs.type_name in ("s3", "gcs", "abfs")
        self._bucket_seen = not self._is_store

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")

    def write(self, name: str, data: bytes) -> None:
        self._patiently(f"writing {name}", lambda: (self._put if self._is_store else self._rename)(name, data))

    def _put(self, name: str, data: bytes) -> None:
        # In a thread, where no Ctrl-C comes between: closing a stream puts what it was given so far, and whatever
        # ends it closes it, its destructor included (github.com/apache/arrow/issues/40502).
        with ThreadPoolExecutor(1, thread_name_prefix="raypipe-put") as other:
            other.submit(self._stream, self._path(name), data).result()

    def _stream(self, path: str, data: bytes) -> None:
        with self._fs.open_output_stream(path) as file:
            file.write(data)

    def _rename(self, name: str, data: bytes) -> None:
        path = self._path(name)
        folder, _, last = path.rpartition("/")
        temporary = f"{folder}/.{last}.{uuid.uuid4().hex[:8]}{TEMPORARY}"
        self._fs.create_dir(folder, recursive=True)
        try:
            self._stream(temporary, data)
            self._fs.move(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                self._fs.delete_file(temporary)
            raise

    def read(self, name: str) -> bytes:
        return self._patiently(f"reading {name}", lambda: self._read(self._path(name)))

    def _read(self, path: str) -> bytes:
        with self._fs.open_input_stream(path) as file:
            return bytes(file.read())

    def copy(self, name: str, file: BinaryIO, most: int | None = None) -> int:
        """Copy a file's bytes, or its first `most`, to the start of an open file, a piece at a time.

        Returns
        -------
        int
            Bytes copied.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        """
        return self._patiently(f"reading {name}", lambda: self._copy(self._path(name), file, most))

    def _copy(self, path: str, file: BinaryIO, most: int | None) -> int:
        file.seek(0)
        done = 0
        # As a file, which asks for ranges: a stream would be sent whole.
        with self._fs.open_input_file(path) as source:
            while piece := source.read(_CHUNK if most is None else min(_CHUNK, most - done)):
                file.write(piece)
                done += len(piece)
        return done

    def listing(self) -> list[Entry]:
        """All files below the folder, sorted by name, temporary ones left out."""
        found = self._patiently("listing it", self._entries)
        if not found:
            self._look_for_bucket()
        return sorted(entry for entry in found if not entry.name.endswith(TEMPORARY))

    def exists(self, name: str) -> bool:
        found = self._patiently(f"looking for {name}", lambda: self._type(self._path(name)))
        if found == "File":
            return True
        self._look_for_bucket()
        return False

    def names(self, prefix: str = "") -> list[str]:
        found = self._patiently(f"listing {prefix or 'it'}", lambda: self._list(self._path(prefix)))
        if not found:
            self._look_for_bucket()
        return sorted(path.removeprefix(f"{self._root}/") for path in found if not path.endswith(TEMPORARY))

    def partial_files(self) -> list[str]:
        found = self._patiently("listing it", lambda: self._list(self._path("")))
        return sorted(path.removeprefix(f"{self._root}/") for path in found if path.endswith(TEMPORARY))

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._patiently(f"removing {name}", lambda: self._fs.delete_file(self._path(name)))

    def _type(self, path: str) -> str:
        return str(self._fs.get_file_info(path).type.name)

    def _list(self, path: str) -> list[str]:
        return [str(info.path) for info in self._files(path)]

    def _entries(self) -> list[Entry]:
        return [
            Entry(str(info.path).removeprefix(f"{self._root}/"), int(info.size or 0), int(info.mtime_ns or 0))
            for info in self._files(self._path(""))
        ]

    def _files(self, path: str) -> list[Any]:
        from pyarrow import fs

        found = self._fs.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=True))
        return [info for info in found if info.type == fs.FileType.File]

    def _look_for_bucket(self) -> None:
        """Tell a bucket that is not there from a folder that is empty, once."""
        if self._bucket_seen:
            return
        bucket = self._root.partition("/")[0]
        if self._patiently(f"looking for bucket {bucket}", lambda: self._type(bucket)) == "NotFound":
            raise StorageError(
                f"{without_settings(self.where)}: there is no bucket '{bucket}'; make it, or correct the URI"
            )
        self._bucket_seen = True


def _open(uri: str) -> tuple[Any, str]:
    from pyarrow import fs

    try:
        filesystem, root = fs.FileSystem.from_uri(uri)
    except Exception as error:  # pyarrow has no common base class for these
        refused = describe_failure(error, without_settings(uri)) if isinstance(error, OSError) else None
        said = first_line(error).replace(uri, without_settings(uri))
        problem = f"{without_settings(uri)}: not a storage that pyarrow.fs can open ({said})"
        raise refused or UserError(problem) from None
    return filesystem, str(root)
