"""The log of a trial, with entries of every process that works on it; and the log of Ray's output.

Each writer has a file of its own, ``trials/0007/log/<writer>.txt``, since two processes may not write one file. It
rewrites the file with every entry, since object stores cannot append. The lines of epochs are not stored: `read_log`
makes them from ``history.json``.
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

MAX_FILE_CHARACTERS = 16_000
"""Characters of one writer's file; the oldest entries are dropped first."""
MAX_ENTRY_CHARACTERS = 4_000
"""Characters of one entry; a longer one is cut to its first line and its end."""
OUTPUT_FILE = "log/ray.txt"
MAX_OUTPUT_CHARACTERS = 200_000
"""Characters of Ray's output that are kept: the last ones."""
START_ENTRY = re.compile(r": (?:starts|resumes after epoch (\d+))$")
"""Matches the end of the entry that `start_text` writes; its group is the epoch."""

_LEFT_OUT = "(earlier entries were left out)"
_STAMP = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z ", re.MULTILINE)


def start_text(work: str, after_epoch: int) -> str:
    """Return the log entry of a worker that starts or resumes a trial.

    Parameters
    ----------
    work
        Text that names the worker's folds and the way they are trained.
    after_epoch
        Last epoch of the checkpoints that the worker resumes from; 0 for a start.
    """
    return f"{work}: {f'resumes after epoch {after_epoch}' if after_epoch else 'starts'}"


class TrialLog:
    """One writer's entries in a trial's log.

    Parameters
    ----------
    folder
        The run's folder.
    number
        The trial.
    writer
        Name of the writer and of its file.
    """

    def __init__(self, folder: Folder, number: int, writer: str) -> None:
        self.folder = folder
        self.name = trial_file(number, f"log/{writer}.txt")

    def write(self, text: str) -> None:
        """Add an entry of one or more lines. Errors of the storage are ignored: no trial fails because of its log."""
        entry = f"{_stamp(datetime.now(UTC))} {_shorten(text.strip())}\n"
        with contextlib.suppress(OSError, UserError):
            entries = [*_split_entries(self._read()), entry]
            if sum(map(len, entries)) > MAX_FILE_CHARACTERS:
                while len(entries) > 1 and sum(map(len, entries)) > MAX_FILE_CHARACTERS - MAX_ENTRY_CHARACTERS // 2:
                    del entries[0]
                entries.insert(0, f"{entries[0].split(' ', 1)[0]} {_LEFT_OUT}\n")
            self.folder.write(self.name, "".join(entries).encode())

    def _read(self) -> str:
        return self.folder.read(self.name).decode(errors="replace") if self.folder.exists(self.name) else ""


class LogEntry(NamedTuple):
    """One entry of a log; entries sort by their time."""

    stamp: str
    writer: str
    text: str

    @property
    def lines(self) -> list[str]:
        """Return the entry as it is shown: ``2026-11-25 03:46:21Z WRITER: ...``."""
        return f"{self.stamp[:10]} {self.stamp[11:19]}Z {self.writer}: {self.text}".splitlines()


def read_log(folder: Folder, number: int, *, epochs: bool = True) -> list[str]:
    """Return the lines of a trial's log in order of time; empty if there is none.

    Parameters
    ----------
    folder
        The run's folder.
    number
        The trial.
    epochs
        Whether there is a line for each epoch, for which the trial's history is read.
    """
    return [line for entry in _read_entries(folder, number, epochs=epochs) for line in entry.lines]


def follow_log(folder: Folder, number: int, alive: Callable[[], bool], pause: float = 1.0) -> Iterator[str]:
    """Yield the lines of a trial's log, and those that are added until the trial ends.

    Parameters
    ----------
    alive
        Returns whether the run is still driven; if not, the log ends.
    pause
        Seconds between two reads.
    """
    seen: set[LogEntry] = set()
    while True:
        # Checked before the log is read: the last entry is written before the result.
        over = folder.exists(trial_file(number, "result.json")) or not alive()
        new = [entry for entry in _read_entries(folder, number) if entry not in seen]
        for entry in new:
            if not seen or not entry.text.startswith(_LEFT_OUT):
                yield from entry.lines
        if over:
            return
        seen.update(new)
        time.sleep(pause)


def keep_end(text: str) -> str:
    """Return the last `MAX_OUTPUT_CHARACTERS` characters, from the start of a line."""
    return text if len(text) <= MAX_OUTPUT_CHARACTERS else text[-MAX_OUTPUT_CHARACTERS:].partition("\n")[2]


def read_output(folder: Folder) -> str:
    """Return the end of what Ray printed while the run was driven; empty if nothing was kept."""
    with contextlib.suppress(OSError, UserError):
        return folder.read(OUTPUT_FILE).decode(errors="replace")
    return ""


def _read_entries(folder: Folder, number: int, *, epochs: bool = True) -> list[LogEntry]:
    found = []
    for name in folder.names(trial_file(number, "log")):
        writer = name.rpartition("/")[2].removesuffix(".txt")
        with contextlib.suppress(FileNotFoundError):
            for entry in _split_entries(folder.read(name).decode(errors="replace")):
                stamp, text = entry.split(" ", 1)
                found.append(LogEntry(stamp, writer, text))
    if not epochs:
        return sorted(found)
    with contextlib.suppress(FileNotFoundError, UserError):  # other commands report a damaged history
        history = read_record(History, folder, trial_file(number, "history.json"))
        found += [_epoch_entry(epoch) for epoch in history.epochs]
    return sorted(found)


def _epoch_entry(epoch: Epoch) -> LogEntry:
    folds = " ".join("-" if score is None else f"{score:z.4f}" for score in epoch.fold_scores)
    stamp = _stamp(datetime.fromtimestamp(epoch.finished, UTC))
    score = "undefined" if epoch.score is None else f"{epoch.score:.4f}"
    text = f"score {score} (folds {folds}), {epoch.seconds:.1f} s of workers"
    return LogEntry(stamp, f"epoch {epoch.epoch}", text)


def _stamp(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _split_entries(text: str) -> list[str]:
    edges = [*(match.start() for match in _STAMP.finditer(text)), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


def _shorten(text: str) -> str:
    first, _, rest = text.partition("\n")
    first = first[: MAX_ENTRY_CHARACTERS // 2]
    if len(first) + len(rest) > MAX_ENTRY_CHARACTERS:
        rest = "...\n" + rest[len(first) - MAX_ENTRY_CHARACTERS :]
    # Later lines are indented, so that none of them looks like the start of an entry.
    return "\n  ".join([first, *rest.splitlines()] if rest else [first])
