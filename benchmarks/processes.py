"""Processes of this machine, from /proc."""

from __future__ import annotations

import contextlib
from pathlib import Path


def title(pid: int) -> str:
    """Return the title of a process; empty if it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def memory(pid: int) -> int:
    """Return a process's bytes of memory, a page of several divided among them (PSS); 0 if it has ended."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return 0


def descendants(pid: int) -> list[int]:
    """Return the ids of the descendants of a process."""
    found = []
    with contextlib.suppress(OSError):  # it has ended
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, children.read_text().split()):
                found += [child, *descendants(child)]
    return found
