"""A trial's log: what happened to it, in lines, from every process that had a part in it.

Each writer has a short file of its own, ``trials/0007/log/<who>.txt``, and writes it anew with every entry: object
stores cannot append, and no two processes write the same file. Epochs are not written there: their lines are made of
``history.json`` when a log is read.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import pairwise
from typing import NamedTuple

from raypipe.core.errors import UserError
from raypipe.storage.files import Folder, read_record
from raypipe.storage.records import Epoch, History, trial_file

LIMIT = 16_000
"""Characters of one writer's file; older entries make room for newer ones."""
ENTRY = 4_000
"""Characters of one entry; of a longer one the first line and the end are kept."""
START_ENTRY = re.compile(r": (?:starts|resumes after epoch (\d+))$")
"""Matches the end of the entry that `start_text` writes; its group is the epoch."""
_LEFT_OUT = "(earlier entries were left out)"
_STAMP = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z ", re.MULTILINE)


def start_text(work: str, after_epoch: int) -> str:
    """Return the entry of a worker that starts a trial, or resumes it after an epoch from 1 on.

    Parameters
    ----------
    work
        Its folds and how it trains them.
    after_epoch
        Last epoch of the checkpoints that it resumes from; 0 at the start.
    """
    return f"{work}: {f'resumes after epoch {after_epoch}' if after_epoch else 'starts'}"


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
        self.name = trial_file(number, f"log/{who}.txt")

    def write(self, text: str) -> None:
        """Add an entry of one or more lines. One that cannot be written is dropped: no trial fails for its log."""
        entry = f"{_stamp(datetime.now(UTC))} {_shortened(text.strip())}\n"
        with contextlib.suppress(OSError, UserError):
            entries = [*_entries(self._read()), entry]
            if sum(map(len, entries)) > LIMIT:
                while len(entries) > 1 and sum(map(len, entries)) > LIMIT - ENTRY // 2:
                    del entries[0]
                entries.insert(0, f"{entries[0].split(' ', 1)[0]} {_LEFT_OUT}\n")
            self.folder.write(self.name, "".join(entries).encode())

    def _read(self) -> str:
        return self.folder.read(self.name).decode(errors="replace") if self.folder.exists(self.name) else ""


class Entry(NamedTuple):
    """One entry of a log; entries are ordered by their time."""

    stamp: str
    who: str
    text: str

    @property
    def lines(self) -> list[str]:
        """As it is shown: ``2026-11-25 03:46:21Z slot: ...``."""
        return f"{self.stamp[:10]} {self.stamp[11:19]}Z {self.who}: {self.text}".splitlines()


def read_log(folder: Folder, number: int) -> list[str]:
    """A trial's log in order of time, line by line, a line for each epoch among them; empty where there is none."""
    return [line for entry in _read_entries(folder, number) for line in entry.lines]


def follow_log(folder: Folder, number: int, alive: Callable[[], bool], pause: float = 1.0) -> Iterator[str]:
    """A trial's log, and what is added to it until the trial has ended, or is no longer `alive`."""
    seen: set[Entry] = set()
    while True:
        over = folder.exists(trial_file(number, "result.json")) or not alive()  # first: the log's last entry is older
        new = [entry for entry in _read_entries(folder, number) if entry not in seen]
        for entry in new:
            if not seen or not entry.text.startswith(_LEFT_OUT):
                yield from entry.lines
        if over:
            return
        seen.update(new)
        time.sleep(pause)


def _read_entries(folder: Folder, number: int) -> list[Entry]:
    found = []
    for name in folder.names(trial_file(number, "log")):
        who = name.rpartition("/")[2].removesuffix(".txt")
        with contextlib.suppress(FileNotFoundError):
            for entry in _entries(folder.read(name).decode(errors="replace")):
                stamp, text = entry.split(" ", 1)
                found.append(Entry(stamp, who, text))
    with contextlib.suppress(FileNotFoundError, UserError):  # a damaged history is for others to tell
        history = read_record(History, folder, trial_file(number, "history.json")).epochs
        found += [_told(epoch) for epoch in history]
    return sorted(found)


def _told(epoch: Epoch) -> Entry:
    folds = " ".join("-" if score is None else f"{score:.4f}" for score in epoch.fold_scores)
    stamp = _stamp(datetime.fromtimestamp(epoch.finished, UTC))
    text = f"score {epoch.score:.4f} (folds {folds}), {epoch.seconds:.1f} s of workers"
    return Entry(stamp, f"epoch {epoch.epoch}", text)


def _stamp(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


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


OUTPUT_FILE = "log/ray.txt"


OUTPUT_LIMIT = 200_000
"""Characters that are kept."""


def last_lines(text: str) -> str:
    """The last `OUTPUT_LIMIT` characters, from the beginning of a line on."""
    return text if len(text) <= OUTPUT_LIMIT else text[-OUTPUT_LIMIT:].partition("\n")[2]


def read_output(folder: Folder) -> str:
    """What Ray has printed while a run was driven; empty where nothing was kept."""
    with contextlib.suppress(OSError, UserError):
        return folder.read(OUTPUT_FILE).decode(errors="replace")
    return ""
