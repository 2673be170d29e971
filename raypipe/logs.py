"""A trial's log: what happened to it, in lines, from every process that had a part in it.

Each writer has a short file of its own, ``trials/0007/log/<who>.txt``, and writes it anew with every entry: object
stores cannot append, and no two processes write the same file.
"""

from __future__ import annotations

import contextlib
import re
from datetime import UTC, datetime
from itertools import pairwise

from raypipe.errors import UserError
from raypipe.files import Folder
from raypipe.records import in_trial

LIMIT = 16_000
"""Characters of one writer's file; older entries make room for newer ones."""
ENTRY = 4_000
"""Characters of one entry; of a longer one the first line and the end are kept."""
_LEFT_OUT = "(earlier entries were left out)"
_STAMP = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z ", re.MULTILINE)


class TrialLog:
    """One writer's part of a trial's log.

    Parameters
    ----------
    folder
        The run's.
    number
        The trial.
    who
        The writer: a file name.
    """

    def __init__(self, folder: Folder, number: int, who: str) -> None:
        self.folder, self.who = folder, who
        self.name = in_trial(number, f"log/{who}.txt")

    def say(self, text: str) -> None:
        """Add an entry of one or more lines. One that cannot be written is dropped: no trial fails for its log."""
        stamp = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        entry = f"{stamp} {_shortened(text.strip())}\n"
        with contextlib.suppress(OSError, UserError):
            entries = [*_entries(self._read()), entry]
            if sum(map(len, entries)) > LIMIT:
                while len(entries) > 1 and sum(map(len, entries)) > LIMIT - ENTRY // 2:
                    del entries[0]
                entries.insert(0, f"{entries[0].split(' ', 1)[0]} {_LEFT_OUT}\n")
            self.folder.write(self.name, "".join(entries).encode())

    def _read(self) -> str:
        return self.folder.read(self.name).decode(errors="replace") if self.folder.exists(self.name) else ""


def read_log(folder: Folder, number: int) -> list[str]:
    """A trial's log in order of time, line by line: ``2026-11-25 03:46:21Z slot: ...``; empty where there is none."""
    found = []
    for name in folder.names(in_trial(number, "log")):
        who = name.rpartition("/")[2].removesuffix(".txt")
        with contextlib.suppress(FileNotFoundError):
            found += [(*entry.split(" ", 1), who) for entry in _entries(folder.read(name).decode(errors="replace"))]
    lines: list[str] = []
    for stamp, text, who in sorted(found, key=lambda part: part[0]):
        lines += f"{stamp[:10]} {stamp[11:19]}Z {who}: {text}".splitlines()
    return lines


def _entries(text: str) -> list[str]:
    edges = [*(match.start() for match in _STAMP.finditer(text)), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


def _shortened(text: str) -> str:
    first, _, rest = text.partition("\n")
    first = first[: ENTRY // 2]
    if len(first) + len(rest) > ENTRY:
        rest = "...\n" + rest[len(first) - ENTRY :]
    # Indented: a line that looks like the start of an entry is none.
    return "\n  ".join([first, *rest.splitlines()] if rest else [first])
