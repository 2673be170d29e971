"""A folder behind a pyarrow.fs URI, and URIs as text."""

from __future__ import annotations

import contextlib
import re
import shlex
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, NamedTuple

from raypipe.core.errors import StorageError, UserError, first_line
from raypipe.storage.remote_retry import MAX_OUTAGE_SECONDS, RetryPolicy, describe_failure

PARTIAL_SUFFIX = ".part"
"""End of the names of partial files, which are being written or were left by a process that was killed."""

_OBJECT_STORES = ("s3", "gcs", "abfs")
_COPY_BLOCK = 1 << 23
"""Bytes that are copied at a time."""
_KEYS = re.compile(r"(?<=:)//(?:[^/@]*|[^/@:]+:(?!\d+/)[^@?]*)@")
"""User and password of a URI. A secret key may contain a ``/``; a host and port, or a path with an ``@``, are none."""
_SECRET_SETTING = re.compile(r"[?&][^=&]*(?:secret|token|password|access_?key|credential|signature|\bsig)[^=&]*=", re.I)
"""Setting of a URI that holds a key."""


class Entry(NamedTuple):
    """A file of a listing."""

    name: str
    size: int
    """Bytes."""
    changed: int
    """Time of the last change in nanoseconds since 1970; 0 where the storage does not report it."""


def without_settings(uri: str) -> str:
    """Return a URI without the keys and settings that it may contain, for people."""
    return _KEYS.sub("//", uri).partition("?")[0].rstrip("/")


def shell_quoted(where: object) -> str:
    """Return a path or URI for a shell command: without keys, and quoted because a URI's settings may have ``&``."""
    return shlex.quote(_KEYS.sub("//", str(where)))


def refuse_credentials(uri: str) -> None:
    """Refuse a URI that contains keys, since it would be recorded where others can read it.

    Raises
    ------
    UserError
        The URI contains keys; the message does not.
    """
    if _KEYS.search(uri) or _SECRET_SETTING.search(uri):
        raise UserError(
            f"{without_settings(uri)}: leave the keys out of the URI, which is stored in files; put them into the "
            "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or use a role"
        )


class RemoteFolder:
    """A folder behind a pyarrow.fs URI (``s3://``, ``gs://``, ``hdfs://``, ``file://``).

    Object stores write a file whole or not at all. On other file systems, a partial file is written and renamed. Every
    operation is repeated while the server fails (see `RetryPolicy`), and is safe to run twice.

    Parameters
    ----------
    uri
        The URI. For servers that speak the S3 protocol:
        ``s3://bucket/folder?scheme=http&endpoint_override=127.0.0.1:9000``.
    filesystem
        A pyarrow.fs.FileSystem and the folder's path in it, in place of those that pyarrow derives from `uri`.
    retry
        Repeats operations; None for the default policy.

    Raises
    ------
    UserError
        pyarrow cannot open the URI, or it contains keys, which processes of Ray would store in their files.
    """

    def __init__(
        self, uri: str, *, filesystem: tuple[Any, str] | None = None, retry: RetryPolicy | None = None
    ) -> None:
        refuse_credentials(uri)
        self.where = uri
        self._fs, root = filesystem or _open(uri)
        self._root = root.rstrip("/")
        kind = self._fs.type_name
        self._retry = retry or RetryPolicy(without_settings(uri), 0 if kind == "local" else MAX_OUTAGE_SECONDS)
        self._is_object_store = kind in _OBJECT_STORES
        self._bucket_exists = not self._is_object_store

    def write(self, name: str, data: bytes) -> None:
        write = self._put if self._is_object_store else self._write_and_rename
        self._retry(f"writing {name}", lambda: write(self._path(name), data))

    def read(self, name: str) -> bytes:
        return self._retry(f"reading {name}", lambda: self._read(self._path(name)))

    def exists(self, name: str) -> bool:
        found = self._retry(f"looking for {name}", lambda: self._type(self._path(name)))
        if found == "File":
            return True
        self._require_bucket()
        return False

    def names(self, prefix: str = "") -> list[str]:
        found = self._retry(f"listing {prefix or 'the folder'}", lambda: self._list(self._path(prefix)))
        if not found:
            self._require_bucket()
        return sorted(entry.name for entry in found if not entry.name.endswith(PARTIAL_SUFFIX))

    def partial_files(self) -> list[str]:
        found = self._retry("listing the folder", lambda: self._list(self._root))
        return sorted(entry.name for entry in found if entry.name.endswith(PARTIAL_SUFFIX))

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._retry(f"removing {name}", lambda: self._fs.delete_file(self._path(name)))

    def listing(self) -> list[Entry]:
        """Return all files below the folder, sorted by name, without partial files."""
        found = self._retry("listing the folder", lambda: self._list(self._root))
        if not found:
            self._require_bucket()
        return sorted(entry for entry in found if not entry.name.endswith(PARTIAL_SUFFIX))

    def copy(self, name: str, file: BinaryIO, max_bytes: int | None = None) -> int:
        """Copy the bytes of a file to the start of an open file, block by block.

        Parameters
        ----------
        name
            The file of this folder.
        file
            The open file.
        max_bytes
            Copy only the first bytes; None for all.

        Returns
        -------
        int
            Bytes copied.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        """
        return self._retry(f"reading {name}", lambda: self._copy(self._path(name), file, max_bytes))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")

    def _put(self, path: str, data: bytes) -> None:
        # Closing a stream, which its destructor does too, stores the bytes written so far. A Ctrl-C in between would
        # store a truncated file (github.com/apache/arrow/issues/40502). It does not interrupt other threads.
        with ThreadPoolExecutor(1, thread_name_prefix="raypipe-put") as thread:
            thread.submit(self._write, path, data).result()

    def _write_and_rename(self, path: str, data: bytes) -> None:
        folder, _, name = path.rpartition("/")
        partial = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}{PARTIAL_SUFFIX}"
        self._fs.create_dir(folder, recursive=True)
        try:
            self._write(partial, data)
            self._fs.move(partial, path)
        except OSError:
            with contextlib.suppress(OSError):
                self._fs.delete_file(partial)
            raise

    def _write(self, path: str, data: bytes) -> None:
        with self._fs.open_output_stream(path) as file:
            file.write(data)

    def _read(self, path: str) -> bytes:
        with self._fs.open_input_stream(path) as file:
            return bytes(file.read())

    def _copy(self, path: str, file: BinaryIO, max_bytes: int | None) -> int:
        file.seek(0)
        copied = 0
        # open_input_file requests ranges of the file; a stream would request all of it.
        with self._fs.open_input_file(path) as source:
            while block := source.read(_COPY_BLOCK if max_bytes is None else min(_COPY_BLOCK, max_bytes - copied)):
                file.write(block)
                copied += len(block)
        return copied

    def _type(self, path: str) -> str:
        return str(self._fs.get_file_info(path).type.name)

    def _list(self, path: str) -> list[Entry]:
        from pyarrow import fs

        found = self._fs.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=True))
        return [
            Entry(str(info.path).removeprefix(f"{self._root}/"), int(info.size or 0), int(info.mtime_ns or 0))
            for info in found
            if info.type == fs.FileType.File
        ]

    def _require_bucket(self) -> None:
        """Check that the bucket of a folder without files exists; asks the server until it does.

        Raises
        ------
        StorageError
            There is no such bucket.
        """
        if self._bucket_exists:
            return
        bucket = self._root.partition("/")[0]
        if self._retry(f"looking for bucket {bucket}", lambda: self._type(bucket)) == "NotFound":
            raise StorageError(
                f"{without_settings(self.where)}: there is no bucket '{bucket}'; create it, or correct the URI"
            )
        self._bucket_exists = True


def _open(uri: str) -> tuple[Any, str]:
    from pyarrow import fs

    shown = without_settings(uri)
    try:
        filesystem, root = fs.FileSystem.from_uri(uri)
    except Exception as error:  # pyarrow has no common base class for these
        refused = describe_failure(error, shown) if isinstance(error, OSError) else None
        reason = first_line(error).replace(uri, shown)
        raise refused or UserError(f"{shown}: not a storage that pyarrow.fs can open ({reason})") from None
    return filesystem, str(root)
