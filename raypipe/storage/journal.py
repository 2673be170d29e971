"""The journal of a run's Optuna study: one file where the run is local, numbered files behind a URI."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend

from raypipe.core.errors import UserError
from raypipe.storage.files import Folder, map_concurrently
from raypipe.storage.run_store import RunStore

CHUNK = 256
"""Files that are made one. A trial leaves a dozen, and each is a call of the storage to whoever opens the study."""
TRIES = 3
"""Times that a reader lists the files, of which the writer may make one meanwhile."""
_NAME = re.compile(r"study/(\d{8})(?:-(\d{8}))?\.jsonl")


class FolderJournal(BaseJournalBackend):  # type: ignore[misc]
    """Optuna's journal as numbered files, for storage that cannot append. One writer at a time: the run's driver.

    What is appended is a file of its own, written whole before anybody goes on. `CHUNK` such files on end are then
    written once more as one, whose name has the first and last number, and removed.

    Attributes
    ----------
    frozen
        Whether it may be looked at only. A writer is not told of what others write until it writes itself.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._logs: list[dict[str, Any]] = []
        self._next = 0
        self._loose: list[bytes] = []
        self._begun = False
        self.frozen = False

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        if self.frozen or not self._begun:
            self._read()
        return self._logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        if self.frozen:
            raise UserError(f"{self._folder.where}: its study can be looked at here, not changed")
        if not self._begun or self._overtaken():
            self._next, self._logs, self._loose = 0, [], []
            self._read()
        data = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        self._folder.write(_name(self._next), data)
        self._logs += logs
        self._loose.append(data)
        self._next += 1
        if len(self._loose) >= CHUNK:
            self._gather()

    def _overtaken(self) -> bool:
        """Whether another has written, who may not: a driver that slept for longer than its lease wakes up to this."""
        if self._folder.exists(_name(self._next)):
            return True
        if self._loose:
            return not self._folder.exists(_name(self._next - 1))
        return any(last >= self._next for last in _files(self._folder)[0].values())

    def _read(self) -> None:
        """Read what follows on what is known; all, where some of that has been made one file with what follows."""
        for left in reversed(range(TRIES)):
            ends, stale = _files(self._folder)
            known = self._next in ends or self._next > max(ends.values(), default=-1)
            at = self._next if known else 0
            files = []
            while at in ends:
                files.append((at, ends[at]))
                at = ends[at] + 1
            try:
                if any(first > at for first in ends):
                    raise FileNotFoundError(f"{self._folder.where}/{_name(at)}")
                found = map_concurrently(self._folder, lambda file: self._folder.read(_name(*file)), files)
                break
            except FileNotFoundError as error:  # made one with others since they were listed; or not there at all
                if not left:
                    raise UserError(f"{error}: missing; restore it from a copy") from None
        if not known:
            self._logs, self._loose = [], []
        for file, data in zip(files, found, strict=True):
            self._logs += lines(data, f"{self._folder.where}/{_name(*file)}")
            if file[0] == file[1]:
                self._loose.append(data)
            else:
                self._loose = []
        self._next, self._begun = at, True
        if not self.frozen:
            map_concurrently(self._folder, self._folder.remove, stale)
            if len(self._loose) >= CHUNK:
                self._gather()

    def _gather(self) -> None:
        first, last = self._next - len(self._loose), self._next - 1
        if max(_files(self._folder)[0].items()) != (last, last):
            return  # another has written: the next entry finds out
        self._folder.write(_name(first, last), b"".join(self._loose))
        map_concurrently(self._folder, lambda number: self._folder.remove(_name(number)), range(first, last + 1))
        self._loose = []


def _name(first: int, last: int | None = None) -> str:
    return f"study/{first:08d}.jsonl" if last in (None, first) else f"study/{first:08d}-{last:08d}.jsonl"


def _files(folder: Folder) -> tuple[dict[int, int], list[str]]:
    """First and last number of the files that count; names of those that are in a longer one too."""
    spans = [
        (int(match[1]), int(match[2] or match[1]), name)
        for name in folder.names("study")
        if (match := _NAME.fullmatch(name))
    ]
    ends: dict[int, int] = {}
    stale, covered = [], -1
    for first, last, name in sorted(spans, key=lambda span: (span[0], -span[1])):
        if first > covered:
            ends[first] = covered = last
        elif last <= covered:
            stale.append(name)
        else:
            raise UserError(
                f"{folder.where}/{name}: overlaps what is before it; restore {folder.where}/study from a copy"
            )
    return ends, stale


def open_journal(run: RunStore, *, mend: bool = True) -> Any:
    """The study's storage: ``study.journal`` in a local run (which optuna-dashboard reads), else numbered files.

    A run that was pulled keeps its numbered files. Only who holds the run's lease may `mend` what a killed driver left;
    of numbered files, only they may write.
    """
    if run.local is None or (
        run.folder.names("study") and not run.folder.exists("study.journal")
    ):  # or pulled from one
        journal = FolderJournal(run.folder)
        journal.frozen = not mend
        return optuna.storages.JournalStorage(journal)
    path = run.local / "study.journal"
    if mend:
        _mend(path)
    return optuna.storages.JournalStorage(JournalFileBackend(str(path)))


def _mend(path: Path) -> None:
    """Drop what a killed driver left: a last line cut short, which Optuna cannot read past, and its lock."""
    for lock in path.parent.glob(path.name + ".lock*"):
        lock.unlink(missing_ok=True)
    if path.is_file():
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            with open(path, "r+b") as file:
                file.truncate(whole)
        lines(data[:whole], str(path))


def lines(data: bytes, where: str) -> list[dict[str, Any]]:
    """Entries of a journal, each a line.

    Raises
    ------
    UserError
        They are damaged.
    """
    try:
        return [json.loads(line) for line in data.splitlines()]
    except ValueError:
        raise UserError(f"{where}: damaged (not a journal of Optuna's); restore it from a copy") from None


STUDY_NAME = "raypipe"
