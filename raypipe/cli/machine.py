"""What this machine lacks for a sweep: versions, device, room, shared memory, sockets. Looks only, and needs no Ray."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

GIB = 1024**3
ROOM, LEAST_ROOM = 10 * GIB, GIB
"""Free bytes below which a disk is worth a look, and below which a sweep will not come far."""
SHARED = GIB
"""Bytes of shared memory below which Ray keeps its objects on the disk."""
FILES = 1024
"""Files that a process should be allowed to open: every memory map, socket and worker takes some."""
FULL = 0.95
"""Share of a disk from which on Ray refuses to spill objects to it."""

Level = Literal["ok", "look", "broken"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: that all is well, that it is worth a look, or that it is broken."""

    level: Level
    what: str
    """In one line."""
    mend: str = ""
    """What to do about it."""


def examine(folder: str | Path = ".") -> Iterator[Finding]:
    """Look over this machine.

    Parameters
    ----------
    folder
        Where runs are written: its disk is looked at, or that of the nearest folder above it.

    Yields
    ------
    Finding
        As each is made.
    """
    yield Finding("ok", f"Python {platform.python_version()} at {sys.executable}")
    yield from versions_found(tested())
    yield _device()
    places = _there(Path(folder)), _there(Path(os.environ.get("RAY_TMPDIR", "/tmp")))
    for place in {place.stat().st_dev: place for place in reversed(places)}.values():
        usage = shutil.disk_usage(place)
        yield disk(str(place), usage.free, usage.total)
    shared = Path("/dev/shm")
    if shared.is_dir():
        yield shared_memory(shutil.disk_usage(shared).free)
    yield open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield _loopback()


def _there(folder: Path) -> Path:
    folder = folder.expanduser().absolute()
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def tested() -> dict[str, str]:
    """Versions that raypipe's tests run with, by package (constraints.txt); empty where the file is not to be had."""
    here = Path(__file__).parents[1]
    for file in (here / "constraints.txt", here.parent / "constraints.txt"):
        if file.is_file():
            pairs = (line.split("==") for line in file.read_text().splitlines() if "==" in line)
            return {name.strip().lower(): version.strip() for name, version in pairs}
    return {}


def needed() -> list[Requirement]:
    """Packages that raypipe cannot do without, as its own metadata has them."""
    asked = [Requirement(line) for line in metadata.requires("raypipe") or []]
    return [each for each in asked if each.marker is None or each.marker.evaluate({"extra": ""})]


def versions_found(pins: dict[str, str], wanted: Iterable[Requirement] | None = None) -> Iterator[Finding]:
    """Compare what is installed with what raypipe needs, and with the versions that were tested.

    Parameters
    ----------
    pins
        Tested versions by package; see `tested`.
    wanted
        None for `needed`.
    """
    other, same = [], []
    for package in needed() if wanted is None else wanted:
        name = package.name.lower()
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding("broken", f"{name} is not installed", f"pip install -c constraints.txt '{package}'")
            continue
        if not package.specifier.contains(installed, prereleases=True):
            yield Finding("broken", f"{name} {installed}, but raypipe needs {package.specifier}", _PIN)
        elif name in pins and installed.partition("+")[0] != pins[name].partition("+")[0]:
            other.append(f"{name} {installed} (tested: {pins[name]})")
        else:
            same.append(f"{name} {installed}")
    if other:
        yield Finding("look", f"other versions than the tested ones: {', '.join(other)}", _PIN)
    elif not pins:
        yield Finding("look", f"no constraints.txt says which versions were tested; here: {', '.join(same)}", _PIN)
    else:
        yield Finding("ok", f"versions as tested: {', '.join(same)}")


_PIN = "install with: pip install -c constraints.txt -e ."


def _device() -> Finding:
    try:
        import torch
    except Exception as error:  # a broken shared library raises what it likes
        return Finding("broken", f"torch cannot be imported ({error})".splitlines()[0], "install torch again")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(k) for k in range(torch.cuda.device_count())]
        each = ", ".join(f"{card.name} ({card.total_memory / GIB:.0f} GiB)" for card in names)
        return Finding("ok", f"torch {torch.__version__} computes on {each}")
    said = f"torch {torch.__version__} computes on the CPU ({torch.get_num_threads()} threads, {os.cpu_count()} cores)"
    if shutil.which("nvidia-smi"):
        return Finding("look", f"{said}, though a GPU's driver is here", "install a torch built for its CUDA version")
    return Finding("ok", said)


def disk(place: str, free: int, total: int) -> Finding:
    """Judge the room on a disk, in bytes."""
    said = f"{place}: {free / GIB:.1f} GiB free of {total / GIB:.0f}"
    if free < LEAST_ROOM:
        return Finding("broken", said, "make room: checkpoints and Ray's logs will not fit")
    if free < ROOM:
        return Finding("look", said, "make room, or put the run elsewhere")
    if total and 1 - free / total > FULL:
        return Finding("look", f"{said}: more than {FULL:.0%} full, where Ray spills no objects", "make room")
    return Finding("ok", said)


def shared_memory(free: int) -> Finding:
    """Judge the room in /dev/shm, in bytes."""
    said = f"/dev/shm: {free / GIB:.2f} GiB free"
    if free < SHARED:
        return Finding("look", f"{said}: Ray will keep objects on the disk", "in a container: docker run --shm-size=2g")
    return Finding("ok", said)


def open_files(limit: int) -> Finding:
    """Judge how many files a process may open."""
    if 0 <= limit < FILES:
        return Finding("look", f"a process may open {limit} files only", f"ulimit -n {64 * FILES}")
    return Finding("ok", "open files: " + ("no limit" if limit < 0 else f"{limit} a process"))


def _loopback() -> Finding:
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname(), timeout=5),
        ):
            server.accept()[0].close()
    except OSError as error:
        return Finding(
            "broken",
            f"127.0.0.1 cannot be listened on ({error.strerror or error})",
            "Ray's processes talk there: allow loopback in the sandbox or firewall",
        )
    return Finding("ok", "127.0.0.1 can be listened on, as Ray does")
