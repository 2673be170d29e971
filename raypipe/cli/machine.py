"""Check that this machine can run a sweep: versions, device, disk, shared memory, sockets. Needs no Ray."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from raypipe.core.shipped import DISTRIBUTION, install_command, tested_versions

GIB = 1024**3
LOW_DISK_BYTES, MIN_DISK_BYTES = 10 * GIB, GIB
"""Free space below which a disk gets a warning, and below which it is too full for a sweep."""
MIN_SHARED_BYTES = GIB
"""Shared memory below which Ray keeps its objects on the disk."""
MIN_OPEN_FILES = 1024
"""Files that a process should be allowed to open. Memory maps, sockets and workers need them."""
MAX_DISK_SHARE = 0.95
"""Share of a disk above which Ray refuses to spill objects to it."""

Level = Literal["ok", "warning", "broken"]


@dataclass(frozen=True)
class Finding:
    """Result of one check."""

    level: Level
    what: str
    """In one line."""
    fix: str = ""
    """Command or action that fixes it."""


def examine(folder: str | Path = ".") -> Iterator[Finding]:
    """Check this machine.

    Parameters
    ----------
    folder
        Folder of runs. Its disk is checked, or that of the nearest folder above it that exists.

    Yields
    ------
    Finding
        One per check, as each is done.
    """
    yield Finding("ok", f"Python {platform.python_version()} at {sys.executable}")
    yield from check_versions(tested_versions())
    yield _check_device()
    places = _existing(Path(folder)), _existing(Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()))
    for place in {place.stat().st_dev: place for place in reversed(places)}.values():
        usage = shutil.disk_usage(place)
        yield check_disk(str(place), usage.free, usage.total)
    shared = Path("/dev/shm")
    if shared.is_dir():
        yield check_shared_memory(shutil.disk_usage(shared).free)
    yield check_open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield _check_loopback()


def _existing(folder: Path) -> Path:
    folder = folder.expanduser().absolute()
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def required_packages() -> list[Requirement]:
    """Return the packages that raypipe's metadata requires, without its extras."""
    required = [Requirement(line) for line in metadata.requires(DISTRIBUTION) or []]
    return [each for each in required if each.marker is None or each.marker.evaluate({"extra": ""})]


def check_versions(tested: dict[str, str], required: Iterable[Requirement] | None = None) -> Iterator[Finding]:
    """Compare the installed packages with what raypipe requires, and with the tested versions.

    Parameters
    ----------
    tested
        Tested versions by package; see `tested_versions`.
    required
        None: `required_packages`.
    """
    other, same = [], []
    for package in required_packages() if required is None else required:
        name = package.name.lower()
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding("broken", f"{name} is not installed", f"{install_command()} '{package}'")
            continue
        if not package.specifier.contains(installed, prereleases=True):
            yield Finding("broken", f"{name} {installed}, but raypipe needs {package.specifier}", install_command())
        elif name in tested and installed.partition("+")[0] != tested[name].partition("+")[0]:
            other.append(f"{name} {installed} (tested: {tested[name]})")
        else:
            same.append(f"{name} {installed}")
    if other:
        yield Finding("warning", f"other versions than the tested ones: {', '.join(other)}", install_command())
    elif not tested:
        yield Finding(
            "warning", f"no constraints.txt with the tested versions; installed: {', '.join(same)}", install_command()
        )
    else:
        yield Finding("ok", f"versions as tested: {', '.join(same)}")


def _check_device() -> Finding:
    try:
        import torch
    except Exception as error:  # a broken shared library may raise anything
        return Finding("broken", f"torch cannot be imported ({error})".splitlines()[0], "install torch again")
    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        names = ", ".join(f"{card.name} ({card.total_memory / GIB:.0f} GiB)" for card in cards)
        return Finding("ok", f"torch {torch.__version__} computes on {names}")
    line = f"torch {torch.__version__} computes on the CPU ({torch.get_num_threads()} threads, {os.cpu_count()} cores)"
    if shutil.which("nvidia-smi"):
        return Finding("warning", f"{line}, but there is an NVIDIA driver", "install torch built for its CUDA version")
    return Finding("ok", line)


def check_disk(place: str, free: int, total: int) -> Finding:
    """Check the free and total bytes of a disk."""
    line = f"{place}: {free / GIB:.1f} GiB free of {total / GIB:.0f}"
    if free < MIN_DISK_BYTES:
        return Finding("broken", line, "free some space: checkpoints and Ray's logs will not fit")
    if free < LOW_DISK_BYTES:
        return Finding("warning", line, "free some space, or put the run on another disk")
    if total and 1 - free / total > MAX_DISK_SHARE:
        return Finding(
            "warning", f"{line}: over {MAX_DISK_SHARE:.0%} full, so Ray spills no objects", "free some space"
        )
    return Finding("ok", line)


def check_shared_memory(free: int) -> Finding:
    """Check the free bytes of /dev/shm."""
    line = f"/dev/shm: {free / GIB:.2f} GiB free"
    if free < MIN_SHARED_BYTES:
        return Finding(
            "warning", f"{line}: Ray will keep objects on the disk", "in a container: docker run --shm-size=2g"
        )
    return Finding("ok", line)


def check_open_files(limit: int) -> Finding:
    """Check the number of files that a process may open; a negative one is no limit."""
    if 0 <= limit < MIN_OPEN_FILES:
        return Finding("warning", f"a process may open only {limit} files", f"ulimit -n {64 * MIN_OPEN_FILES}")
    return Finding("ok", "open files: " + ("no limit" if limit < 0 else f"{limit} per process"))


def _check_loopback() -> Finding:
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname(), timeout=5),
        ):
            server.accept()[0].close()
    except OSError as error:
        return Finding(
            "broken",
            f"cannot listen on 127.0.0.1 ({error.strerror or error})",
            "allow loopback in the sandbox or firewall: Ray's processes use it",
        )
    return Finding("ok", "127.0.0.1 accepts connections, as Ray needs")
