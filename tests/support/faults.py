"""Fault injection for tests. Nothing in raypipe uses this module.

A fault comes from outside: a `Folder` is wrapped, or a process is killed, which is found by the title that Ray gives
it. In the processes of a sweep, `Hooks` makes the interpreter run code after a module of raypipe is imported.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn

from raypipe.storage.files import Folder, LocalFolder, write_atomic

# ---- Files -----------------------------------------------------------------------------------------------------------


def flip(path: Path, at: float = 0.5) -> None:
    """Invert the bits of one byte, `at` a fraction of the file's length."""
    data = bytearray(path.read_bytes())
    data[min(int(at * len(data)), len(data) - 1)] ^= 0xFF
    path.write_bytes(data)


def truncate(path: Path, keep: float = 0.5) -> None:
    """Cut a file to a fraction of its length."""
    os.truncate(path, int(keep * path.stat().st_size))


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[str], object]]:
    """Mount a tmpfs of `size` (such as ``400k``) at `folder`; yield a function that resizes it.

    Raises
    ------
    PermissionError
        This process may not mount.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True
    )
    if mount.returncode:
        raise PermissionError(f"{folder}: no tmpfs can be mounted ({mount.stderr.strip()})")
    try:
        yield lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


# ---- Processes -------------------------------------------------------------------------------------------------------


def _stat(pid: int) -> list[str]:
    """Return state, parent, group and session of a process, then more (proc(5)); empty if it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return []


def _all() -> dict[int, list[str]]:
    """Return `_stat` of all processes that have not ended, by id."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return {pid: stat for pid in pids if (stat := _stat(pid)) and stat[0] != "Z"}


def descendants(pid: int) -> list[int]:
    """Return the ids of the descendants of a process."""
    children: dict[int, list[int]] = {}
    for child, stat in _all().items():
        children.setdefault(int(stat[1]), []).append(child)
    found, queue = [], [pid]
    while queue:
        queue += (below := children.get(queue.pop(), []))
        found += below
    return found


def session(leader: int) -> list[int]:
    """Return the process ids of a session (``Popen(..., start_new_session=True)``), also after its leader's end."""
    return [pid for pid, stat in _all().items() if int(stat[3]) == leader]


def title(pid: int) -> str:
    """Return the title of a process; empty if it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def ray_processes(pids: Iterable[int], *names: str) -> list[int]:
    """Return those of `pids` that run an actor of one of these classes, by the title that Ray gives them."""
    return [pid for pid in pids if re.match(rf"ray::({'|'.join(names)})\b", title(pid))]


def running(pids: Iterable[int], program: str) -> list[int]:
    """Return those of `pids` that run a program of this name, such as ``raylet``."""
    return [pid for pid in pids if title(pid).partition(" ")[0].rpartition("/")[2] == program]


def kill(*pids: int) -> None:
    """Send SIGKILL to processes; ignore those that have ended."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Pauses:
    """Processes that are stopped for a while (SIGSTOP, then SIGCONT), as by a suspended or swapping machine.

    All of them continue at the end of the block.
    """

    def __init__(self) -> None:
        self._running: list[tuple[threading.Timer, int]] = []

    def __enter__(self) -> Pauses:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def pause(self, pid: int, seconds: float) -> None:
        """Stop a process now, and let it continue after `seconds`; ignore one that has ended."""
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # the kernel says either of an ended process
            handle = os.pidfd_open(pid)  # a process id may be used again meanwhile
            timer = threading.Timer(seconds, _send, [handle, signal.SIGCONT])
            timer.daemon = True
            self._running.append((timer, handle))
            _send(handle, signal.SIGSTOP)
            timer.start()

    def end(self) -> None:
        """Let all processes continue now."""
        while self._running:
            timer, handle = self._running.pop()
            timer.cancel()
            if timer.is_alive():
                timer.join()
            _send(handle, signal.SIGCONT)
            os.close(handle)


def _send(handle: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(handle, number)


# ---- Kills at a file -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kill:
    """SIGKILL for the process that writes or removes a file of a run; once, so that its replacement continues."""

    state: str
    """Folder in which all processes count together; it outlives them."""
    name: str
    """Regular expression, searched in the file's name: ``r"fold-2/epoch-0003"`` is the checkpoint of that epoch."""
    nth: int = 1
    """Kill at the nth such call."""
    when: Literal["before", "amid", "after"] = "before"
    """`before`: the file is not written; `amid`: a temporary file is left with half of the data; `after`: the file is
    written, and nothing after it is done."""
    call: Literal["write", "remove"] = "write"

    def due(self, call: str, name: str) -> bool:
        """Count this call; return whether to kill at it."""
        if call != self.call or not re.search(self.name, name):
            return False
        key = re.sub(r"\W+", "-", f"{self.call}-{self.name}-{self.when}-{self.nth}")
        Path(self.state).mkdir(parents=True, exist_ok=True)
        for count in itertools.count(1):
            try:
                os.close(os.open(Path(self.state) / f"{key}.{count}", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            return count == self.nth
        raise AssertionError("unreachable")


class KillingFolder:
    """A `Folder` whose calls `kills` apply to."""

    def __init__(self, folder: Folder, *kills: Kill) -> None:
        self._folder, self._kills = folder, kills

    def __getattr__(self, name: str) -> Any:
        return getattr(self._folder, name)

    def write(self, name: str, data: bytes) -> None:
        """Write the file, or be killed at it."""
        _strike(self._kills, self._folder, name, data)

    def remove(self, name: str) -> None:
        """Remove the file, or be killed at it."""
        _strike(self._kills, self._folder, name, None)


def _strike(kills: Iterable[Kill], folder: Folder, name: str, data: bytes | None) -> None:
    """Write `data` to a file, or remove the file for None; kill this process if one of `kills` is due."""
    call = "remove" if data is None else "write"
    when = {kill.when for kill in kills if kill.due(call, name)}
    if "before" in when:
        _die()
    if "amid" in when and data is not None and isinstance(folder, LocalFolder):
        half = data[: len(data) // 2]
        write_atomic(folder.path / name, lambda file: _write_and_die(file, half))
    if data is None:
        _remove(folder, name)
    else:
        _write(folder, name, data)
    if when:
        _die()


def _write_and_die(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()
    _die()


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL cannot be caught")


def _write(folder: Folder, name: str, data: bytes) -> None:
    (_WRITE(folder, name, data) if isinstance(folder, LocalFolder) else folder.write(name, data))


def _remove(folder: Folder, name: str) -> None:
    (_REMOVE(folder, name) if isinstance(folder, LocalFolder) else folder.remove(name))


# The originals, which `arm` replaces.
_WRITE, _REMOVE = LocalFolder.write, LocalFolder.remove


def arm(*kills: Kill) -> None:
    """Apply `kills` to every local folder of this process, until it ends."""

    def write(self: LocalFolder, name: str, data: bytes) -> None:
        _strike(kills, self, name, data)

    def remove(self: LocalFolder, name: str) -> None:
        _strike(kills, self, name, None)

    LocalFolder.write, LocalFolder.remove = write, remove  # type: ignore[method-assign]


# ---- Operations of a storage, in this process ------------------------------------------------------------------------


class Killed(BaseException):
    """The simulated death of this process; a BaseException, so that error handlers do not catch it."""


class FailingFolder:
    """A `Folder` some of whose operations fail.

    Parameters
    ----------
    folder
        Folder of the files.
    at
        Number of the first operation that fails, from 0.
    times
        Number of operations that fail; None for all from there on.
    error
        Error that they raise: an OSError is a storage that fails, `Killed` the death of this process.
    when
        `before`: the operation is not done; `after`: it is done, and its answer is lost. Nothing is done after
        `Killed`.
    calls
        Operations that count and fail.

    Attributes
    ----------
    count
        Number of operations so far.
    """

    def __init__(
        self,
        folder: Folder,
        at: int,
        *,
        times: int | None = None,
        error: type[BaseException] | BaseException = Killed,
        when: Literal["before", "after"] = "before",
        calls: Iterable[str] = ("write", "read", "exists", "names", "remove"),
    ) -> None:
        self.folder, self.where = folder, folder.where
        self.count = 0
        self._error, self._when, self._calls = error, when, frozenset(calls)
        self._failing = range(at, at + (sys.maxsize - at if times is None else times))

    def _do(self, call: str, *arguments: Any) -> Any:
        operation = getattr(self.folder, call)
        if call not in self._calls:
            return operation(*arguments)
        number, self.count = self.count, self.count + 1
        if number not in self._failing:
            return operation(*arguments)
        if self._when == "after" and (self._error is not Killed or number == self._failing[0]):
            operation(*arguments)
        raise self._error

    def write(self, name: str, data: bytes) -> None:
        """Write the file, or fail."""
        self._do("write", name, data)

    def read(self, name: str) -> bytes:
        """Return the whole file, or fail."""
        return bytes(self._do("read", name))

    def exists(self, name: str) -> bool:
        """Return whether there is a file of this name, or fail."""
        return bool(self._do("exists", name))

    def names(self, prefix: str = "") -> list[str]:
        """Return the names of all files below `prefix`, or fail."""
        return list(self._do("names", prefix))

    def partial_files(self) -> list[str]:
        """Return the names of temporary files."""
        return self.folder.partial_files()

    def remove(self, name: str) -> None:
        """Remove the file, or fail."""
        self._do("remove", name)


# ---- Code in processes that Ray starts -------------------------------------------------------------------------------

_HOOK = """\
import importlib.abc, importlib.machinery, json, os, sys

TABLE = {table!r}

class After(importlib.abc.MetaPathFinder):
    read = None, {{}}

    def sources(self):
        try:
            stat = os.stat(TABLE)
        except FileNotFoundError:
            return {{}}
        version = stat.st_ino, stat.st_mtime_ns
        if self.read[0] != version:
            with open(TABLE) as file:
                self.read = version, json.load(file)
        return self.read[1]

    def find_spec(self, name, path=None, target=None):
        source = self.sources().get(name)
        if source is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            exec(source, {{"module": module}})
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, After())
"""


class Hooks:
    """Python code that runs after a module is imported, in every process that inherits an environment.

    Ray starts the processes of a sweep. This injects code into them by a ``sitecustomize.py``, which the interpreter
    imports when it starts. The code is read when a module is imported. So a cluster that already runs uses what is set
    for the next sweep, since every sweep has its own processes.

    Parameters
    ----------
    folder
        Folder to which the files are written.

    Attributes
    ----------
    env
        Environment variables that the first process must have.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._table = folder / "after.json"
        (folder / "sitecustomize.py").write_text(_HOOK.format(table=str(self._table)))
        self.env = {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}

    def set(self, after: Mapping[str, str]) -> None:
        """Set the code to run after each module, by the module's name; it sees the module as ``module``."""
        write_atomic(self._table, lambda file: file.write(json.dumps(dict(after)).encode()))

    def clear(self) -> None:
        """Set no code to run."""
        self._table.unlink(missing_ok=True)


def inject(folder: Path, after: Mapping[str, str]) -> dict[str, str]:
    """Set `Hooks` in a folder, and return the environment variables that the first process must have."""
    hooks = Hooks(folder)
    hooks.set(after)
    return hooks.env


def arming(*kills: Kill) -> dict[str, str]:
    """Return code for `inject` that calls `arm` in every process."""
    return {"raypipe.storage.files": f"import tests.support.faults as t; t.arm({', '.join(f't.{k!r}' for k in kills)})"}


def slow_disk(seconds: float) -> dict[str, str]:
    """Return code for `Hooks` that calls `slow_syncs` in every process."""
    return {"raypipe.storage.files": f"import tests.support.faults as t; t.slow_syncs({seconds})"}


def slow_syncs(seconds: float) -> None:
    """Make every `os.fsync` and `os.fdatasync` of this process take so much longer."""
    os.fsync, os.fdatasync = _slowed(os.fsync, seconds), _slowed(os.fdatasync, seconds)


def _slowed(sync: Callable[[Any], None], seconds: float) -> Callable[[Any], None]:
    def slowed_sync(fd: Any) -> None:
        sync(fd)
        time.sleep(seconds)

    return slowed_sync
