"""An S3 server, and storage that fails on demand: an object store in memory, a proxy, and a disk."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from pyarrow import fs

from tests.support.faults import Killed

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_EC2_METADATA_DISABLED": "true"}
"""Environment of clients of an `s3_server`; without the last, they look for keys on another machine."""

_FOLDERS = itertools.count()


@dataclass
class Server:
    """An S3 server of this machine, with a bucket."""

    host: str
    port: int
    bucket: str

    def uri(self, path: str) -> str:
        """Return the URI of a bucket and a folder in it."""
        return f"s3://{path}?scheme=http&endpoint_override={self.host}:{self.port}&region=us-east-1"

    def new_folder(self) -> str:
        """Return the URI of a new folder; no server before this one has used it, since servers share their memory."""
        return self.uri(f"{self.bucket}/{next(_FOLDERS)}")


@contextlib.contextmanager
def s3_server(host: str = "127.0.0.1") -> Iterator[Server]:
    """Serve a bucket at an address of this machine, with any keys; set some in this process."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # it logs every request
    server = ThreadedMotoServer(host, port=0, verbose=False)
    server.start()
    try:
        port = server.get_host_and_port()[1]
        with mock.patch.dict(os.environ, KEYS):
            options = {"endpoint_override": f"{host}:{port}", "scheme": "http", "region": "us-east-1"}
            fs.S3FileSystem(allow_bucket_creation=True, **options).create_dir("raypipe-tests")
            yield Server(host, port, "raypipe-tests")
    finally:
        server.stop()


class Clock:
    """A clock that only `sleep` advances; it calls `on_sleep` with the number of sleeps so far."""

    def __init__(self, on_sleep: Callable[[int], object] = lambda count: None) -> None:
        self.now, self.slept, self.on_sleep = 0.0, [], on_sleep

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        self.on_sleep(len(self.slept))


class MemoryStore:
    """An object store with those methods of a pyarrow.fs.FileSystem that `RemoteFolder` uses.

    As in pyarrow, closing a stream stores what was written so far, also after an error.

    Parameters
    ----------
    fault
        Called before every call to the server, with its number and description; what it returns is raised.
    lost
        Whether a call is carried out before it fails, as if the answer were lost.
    """

    type_name = "s3"

    def __init__(
        self, fault: Callable[[int, str], BaseException | None] = lambda number, call: None, *, lost: bool = False
    ) -> None:
        self.objects: dict[str, bytes] = {}
        self.buckets = {"bucket"}
        self.calls: list[str] = []
        self.fault, self.lost = fault, lost

    def _call(self, call: str, do: Callable[[], Any]) -> Any:
        fault = self.fault(len(self.calls), call)
        self.calls.append(call)
        if fault is None:
            return do()
        if self.lost:
            do()
        raise fault

    def open_output_stream(self, path: str) -> Any:
        return _Upload(self, path)

    def open_input_stream(self, path: str) -> Any:
        return self._call(f"get {path}", lambda: io.BytesIO(self._found(path)))

    def _found(self, path: str) -> bytes:
        if path not in self.objects:
            raise FileNotFoundError(2, f"Path does not exist '{path}'")
        return self.objects[path]

    def delete_file(self, path: str) -> None:
        def delete() -> None:
            self._found(path)
            del self.objects[path]

        self._call(f"delete {path}", delete)

    def get_file_info(self, what: Any) -> Any:
        if isinstance(what, str):
            return self._call(f"head {what}", lambda: fs.FileInfo(what, type=self._type(what)))
        below = what.base_dir.rstrip("/") + "/"
        return self._call(
            f"list {below}",
            lambda: [fs.FileInfo(path, type=fs.FileType.File) for path in self.objects if path.startswith(below)],
        )

    def _type(self, path: str) -> Any:
        if path in self.objects:
            return fs.FileType.File
        return fs.FileType.Directory if path in self.buckets else fs.FileType.NotFound


class _Upload:
    def __init__(self, store: MemoryStore, path: str) -> None:
        self._store, self._path, self._data = store, path, b""

    def write(self, data: bytes) -> None:
        self._data += data

    def __enter__(self) -> _Upload:
        return self

    def __exit__(self, *_: object) -> None:
        self._store._call(f"put {self._path}", lambda: self._store.objects.update({self._path: self._data}))


class DyingFileSystem:
    """A pyarrow.fs.FileSystem with renames; the process dies at the `step`-th call (from 0) that writes."""

    def __init__(self, real: fs.FileSystem, step: int) -> None:
        self._real, self._steps = real, itertools.count()
        self._step = step
        self.type_name = "other"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def _dies(self) -> bool:
        return next(self._steps) >= self._step

    def _do(self, name: str, *arguments: Any, **options: Any) -> Any:
        if self._dies():
            raise Killed
        return getattr(self._real, name)(*arguments, **options)

    def create_dir(self, path: str, *, recursive: bool) -> None:
        self._do("create_dir", path, recursive=recursive)

    def move(self, source: str, target: str) -> None:
        self._do("move", source, target)

    def delete_file(self, path: str) -> None:
        self._do("delete_file", path)

    @contextlib.contextmanager
    def open_output_stream(self, path: str) -> Iterator[Any]:
        with self._do("open_output_stream", path) as file:
            yield SimpleNamespace(write=lambda data: self._write(file, data))

    def _write(self, file: Any, data: bytes) -> None:
        if self._dies():
            file.write(data[: len(data) // 2])
            raise Killed
        file.write(data)


class FaultyProxy:
    """Forward TCP connections of this host to a server of this host, or break them.

    Attributes
    ----------
    mode
        ``pass``; ``reset``: connections break at a request; ``lost``: they break at the answer; ``stall``: there is no
        answer; or an HTTP status, such as ``503 SlowDown``, that is the answer to every request.
    met
        Number of requests that have met a fault.
    """

    def __init__(self, port: int) -> None:
        self.mode, self.met = "pass", 0
        self._target = ("127.0.0.1", port)
        self._stalled: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        for each in self._stalled:
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._ask, args=(client,), daemon=True).start()

    def _ask(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), socket.create_connection(self._target) as server:
            threading.Thread(target=self._answer, args=(server, client), daemon=True).start()
            while data := client.recv(1 << 16):
                if self.mode in ("pass", "lost"):
                    server.sendall(data)
                    continue
                self.met += 1
                if self.mode == "stall":
                    self._stalled.append(client)
                    return
                if self.mode != "reset":
                    client.sendall(self._refusal(data))
                    client.shutdown(socket.SHUT_RDWR)
                break
            _reset(client)

    def _refusal(self, request: bytes) -> bytes:
        code = self.mode.split()[1]
        body = b"" if request.startswith(b"HEAD") else f"<Error><Code>{code}</Code></Error>".encode()
        head = f"HTTP/1.1 {self.mode}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        return head.encode() + body

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                if self.mode == "lost":
                    self.met += 1
                    break
                client.sendall(data)
            _reset(client)


def _reset(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


@contextlib.contextmanager
def dying_at(step: int) -> Iterator[Callable[[], int]]:
    """Simulate the death of this process at a step of `storage.files` on the disk, from 0; yield the count of steps.

    Steps are: make folders, open, write (half is written), flush to the disk, rename, remove. From that step on nothing
    is done, so ``finally`` blocks remove nothing.
    """
    steps = itertools.count()
    taken = 0

    def stepping(real: Callable[..., Any], half: Callable[..., Any] = lambda *_: None) -> Callable[..., Any]:
        def stepped(*arguments: Any, **options: Any) -> Any:
            nonlocal taken
            number = next(steps)
            taken = number + 1
            if number == step:
                half(*arguments)
            if number >= step:
                raise Killed
            return real(*arguments, **options)

        return stepped

    def opened(path: Path, mode: str) -> Any:
        file = open(path, mode)  # noqa: SIM115
        write = stepping(file.write, lambda data: (file.write(data[: len(data) // 2]), file.flush()))
        found = mock.MagicMock(wraps=file, write=write)
        found.__enter__.return_value = found
        found.__exit__.side_effect = lambda *_: file.close()
        return found

    fake = SimpleNamespace(**vars(os))
    fake.fsync, fake.replace = stepping(os.fsync), stepping(os.replace)
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch("raypipe.storage.files.os", fake))
        stack.enter_context(mock.patch("raypipe.storage.files.open", stepping(opened), create=True))
        stack.enter_context(mock.patch.object(Path, "unlink", stepping(Path.unlink)))
        stack.enter_context(mock.patch.object(Path, "mkdir", stepping(Path.mkdir)))
        yield lambda: taken
