"""A store of toy windows, sweeps as child processes, and ways to find and kill what they start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.toys import SPACE, ToyWindows, write_store

PATIENCE = 240.0
RAY_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> Path:
    """A folder with ``store``, ``space.py`` and ``long.py``, whose trials take some seconds."""
    folder = tmp_path_factory.mktemp("toy")
    write_store(folder / "store", ToyWindows(subjects=8, each=40))
    (folder / "space.py").write_text(SPACE)
    (folder / "long.py").write_text(
        SPACE.replace("'epochs': 4", "'epochs': 12").replace("'patience': 4", "'patience': 12")
    )
    return folder


def wait_until(ready: Callable[[], object], what: str) -> object:
    """Look again and again until `ready` is true."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = ready()
        if found:
            return found
        time.sleep(0.02)  # between two looks at a condition
    raise AssertionError(f"waited in vain for {what}")


def descendants(pid: int) -> list[int]:
    """Process ids below `pid`."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        queue += (below := children.get(queue.pop(), []))
        found += below
    return found


def title(pid: int) -> str:
    """What a process calls itself; empty when it is gone."""
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


class Driver:
    """``raypipe ARGUMENTS`` as a child process."""

    def __init__(self, *arguments: object) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-m", "raypipe", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "COLUMNS": "200"},
        )
        self.family: set[int] = set()

    def named(self, name: str) -> list[int]:
        """Ray processes of this driver that call themselves ``ray::NAME``."""
        below = descendants(self.child.pid)
        self.family |= set(below)
        return [pid for pid in below if title(pid).startswith(f"ray::{name}")]

    def kill(self, *pids: int) -> None:
        """SIGKILL these, or the driver itself."""
        self.family |= set(descendants(self.child.pid))
        for pid in pids or (self.child.pid,):
            os.kill(pid, signal.SIGKILL)

    def finish(self) -> str:
        """Wait for the end; what it printed."""
        out, _ = self.child.communicate(timeout=PATIENCE)
        return out

    def orphans(self) -> list[str]:
        """Titles of processes seen below the driver that outlive it; Ray's own two agents take a minute to notice."""
        return [t for pid in self.family if (t := title(pid)) and not t.startswith(RAY_AGENTS)]


@pytest.fixture
def drive():
    """Start drivers; whatever is left of them is ended with the test."""
    started: list[Driver] = []

    def start(*arguments: object) -> Driver:
        started.append(Driver(*arguments))
        return started[-1]

    yield start
    for driver in started:
        for pid in [*descendants(driver.child.pid), driver.child.pid]:
            if driver.child.poll() is None or pid != driver.child.pid:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        driver.child.wait()
