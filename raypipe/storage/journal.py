"""The journal of a run's Optuna study: one file in a local run, numbered files behind a URI."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend
from optuna.trial import FrozenTrial

from raypipe.core.errors import DamagedFileError, UserError
from raypipe.storage.files import Folder, map_concurrently
from raypipe.storage.regular_files import read_whole
from raypipe.storage.run_store import RunStore

STUDY_NAME = "raypipe"
JOURNAL_FILE = "study.journal"
MERGE_COUNT = 256
"""Numbered files that are merged into one. A trial writes about 12, and a reader needs one call for each file."""
LISTING_ATTEMPTS = 3
"""Attempts to list and read the files. An attempt fails if the writer merges files between the two."""

CREATES_TRIAL = b'"op_code":4,'
"""Start of an entry that makes a trial (`JournalOperation.CREATE_TRIAL`), which has a time or parameters of its own."""

_FOLDER = "study"
_NAME = re.compile(rf"{_FOLDER}/(\d{{8}})(?:-(\d{{8}}))?\.jsonl")


def open_journal(run: RunStore, *, writable: bool = True) -> optuna.storages.JournalStorage:
    """Open the study's storage: ``study.journal`` in a local run, which optuna-dashboard reads, else numbered files.

    A run that was pulled from a URI keeps its numbered files.

    Parameters
    ----------
    writable
        True for the holder of the run's lease, who may write. A local file that a killed driver left is then repaired,
        and one that is missing is made.

    Raises
    ------
    DamagedFileError
        The journal is damaged; `raypipe.search.reconcile` then rebuilds it.
    UserError
        It is not a file that can be read.
    """
    is_pulled = bool(run.folder.names(_FOLDER)) and not run.folder.exists(JOURNAL_FILE)
    is_missing = run.local is not None and not os.path.lexists(run.local / JOURNAL_FILE)
    if run.local is None or is_pulled or (is_missing and not writable):  # Optuna would make a file that is missing
        return _open_storage(FolderJournal(run.folder, read_only=not writable), f"{run.where}/{_FOLDER}")
    path = run.local / JOURNAL_FILE
    if writable:
        _repair(path)
    else:
        *lines, _ = _read(path).split(b"\n")
        parse_journal(b"\n".join(lines), str(path))
    return _open_storage(JournalFileBackend(str(path)), str(path))


def _read(path: Path) -> bytes:
    """Return the content of a local journal.

    Raises
    ------
    UserError
        It is not a regular file, or cannot be read.
    """
    try:
        return read_whole(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _open_storage(journal: BaseJournalBackend, where: str) -> optuna.storages.JournalStorage:
    """Have Optuna read a journal.

    Raises
    ------
    DamagedFileError
        It has entries that Optuna does not know.
    """
    try:
        return optuna.storages.JournalStorage(journal)
    except (UserError, OSError):
        raise
    except Exception as error:  # Optuna has no error for entries of another form
        raise DamagedFileError(f"{where}: damaged ({type(error).__name__}: not entries of Optuna's)") from None


def _repair(path: Path) -> None:
    """Remove the lock of a killed driver, and the last line if it is cut short: Optuna cannot read past it.

    Raises
    ------
    UserError
        The journal is a link, through which nothing is written, or is not a file that can be read.
    DamagedFileError
        Another line is damaged; the file is not changed.
    """
    if path.is_symlink():
        raise UserError(f"{path}: a link, and raypipe writes through none; put the file itself there")
    for lock in path.parent.glob(path.name + ".lock*"):
        lock.unlink(missing_ok=True)
    if path.exists():
        data = _read(path)
        whole = data.rfind(b"\n") + 1
        parse_journal(data[:whole], str(path))
        if data and not whole:
            raise DamagedFileError(f"{path}: damaged (no line of it is whole)")
        if whole < len(data):
            with open(path, "r+b") as file:
                file.truncate(whole)


def replace_journal(run: RunStore, trials: Sequence[FrozenTrial]) -> None:
    """Write a study of these trials in place of the run's; the old file of a local run is kept beside it.

    A driver that is killed in between leaves no journal, and the next one writes it.
    """
    entries = _EntryList()
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(entries), study_name=STUDY_NAME, direction=run.info.direction
    )
    study.add_trials(trials)
    data = "".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in entries.entries).encode()
    for name in run.folder.names(_FOLDER):
        run.folder.remove(name)
    if run.local is None:
        run.folder.write(_name(0), data)
        return
    if run.folder.exists(JOURNAL_FILE):
        run.folder.write(f"{JOURNAL_FILE}.damaged", run.folder.read(JOURNAL_FILE))
    run.folder.write(JOURNAL_FILE, data)


class _EntryList(BaseJournalBackend):  # type: ignore[misc]
    """A journal in memory."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        return self.entries[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self.entries += logs


def parse_journal(data: bytes, where: str) -> list[dict[str, Any]]:
    """Return the entries of a journal, one per line.

    Raises
    ------
    DamagedFileError
        A line is damaged, or makes a trial once more.
    """
    try:
        entries = [json.loads(line) for line in data.splitlines()]
    except (ValueError, RecursionError):
        entries = [None]
    made = [line for line in data.splitlines() if CREATES_TRIAL in line]
    if not all(isinstance(entry, dict) for entry in entries) or len(set(made)) < len(made):
        raise DamagedFileError(f"{where}: damaged (not a journal of Optuna's); restore it from a copy")
    return entries


class FolderJournal(BaseJournalBackend):  # type: ignore[misc]
    """Optuna's journal as numbered files, for storage that cannot append. The run's driver is the only writer.

    Each call of `append_logs` writes one file before it returns. After `MERGE_COUNT` consecutive files, their content
    is written to one file, named for the first and last number, and they are removed.

    Parameters
    ----------
    folder
        The run's folder.
    read_only
        Refuse to write, and read new files at each call of `read_logs`. A writer reads files of others only when it
        writes.
    """

    def __init__(self, folder: Folder, *, read_only: bool = False) -> None:
        self.read_only = read_only
        self._folder = folder
        self._logs: list[dict[str, Any]] = []
        self._next = 0
        """Number of the next file."""
        self._unmerged: list[bytes] = []
        """Content of the newest files, which are not merged yet."""
        self._is_loaded = False

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        if self.read_only or not self._is_loaded:
            self._load()
        return self._logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        if self.read_only:
            raise UserError(f"{self._folder.where}: the study was opened for reading and cannot be changed")
        if not self._is_loaded or self._is_outdated():
            self._next, self._logs, self._unmerged = 0, [], []
            self._load()
        data = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        self._folder.write(_name(self._next), data)
        self._logs += logs
        self._unmerged.append(data)
        self._next += 1
        if len(self._unmerged) >= MERGE_COUNT:
            self._merge()

    def _is_outdated(self) -> bool:
        """Return whether another process has written, which happens if this one was suspended beyond its lease."""
        if self._folder.exists(_name(self._next)):
            return True
        if self._unmerged:
            return not self._folder.exists(_name(self._next - 1))
        return any(last >= self._next for last in _list_files(self._folder).last.values())

    def _load(self) -> None:
        """Read the files that follow those read before; all files, if some of those were merged with newer ones."""
        start, files, contents, covered = self._read_new_files()
        if start == 0:
            self._logs, self._unmerged = [], []
        for (first, last), data in zip(files, contents, strict=True):
            self._logs += parse_journal(data, f"{self._folder.where}/{_name(first, last)}")
            if first == last:
                self._unmerged.append(data)
            else:
                self._unmerged = []
        self._next = files[-1][1] + 1 if files else start
        self._is_loaded = True
        if not self.read_only:
            map_concurrently(self._folder, self._folder.remove, covered)
            if len(self._unmerged) >= MERGE_COUNT:
                self._merge()

    def _read_new_files(self) -> _NewFiles:
        """Read the files that follow those read before, or all files.

        Raises
        ------
        UserError
            A file is missing.
        """
        for _ in range(LISTING_ATTEMPTS - 1):
            with contextlib.suppress(FileNotFoundError):  # the writer merged the files after they were listed
                return self._try_to_read_new_files()
        try:
            return self._try_to_read_new_files()
        except FileNotFoundError as error:
            raise DamagedFileError(f"{error}: missing; restore it from a copy") from None

    def _try_to_read_new_files(self) -> _NewFiles:
        listing = _list_files(self._folder)
        start = self._next if listing.continues_at(self._next) else 0
        files = listing.from_number(start, self._folder.where)
        contents = map_concurrently(self._folder, lambda file: self._folder.read(_name(*file)), files)
        return _NewFiles(start, files, contents, listing.covered)

    def _merge(self) -> None:
        first, last = self._next - len(self._unmerged), self._next - 1
        if max(_list_files(self._folder).last.items()) != (last, last):
            return  # another process has written; the next append reads its files
        self._folder.write(_name(first, last), b"".join(self._unmerged))
        map_concurrently(self._folder, lambda number: self._folder.remove(_name(number)), range(first, last + 1))
        self._unmerged = []


class _NewFiles(NamedTuple):
    """Files that were read, and files to remove."""

    start: int
    """Number at which they start: 0 if all files were read."""
    files: list[tuple[int, int]]
    """First and last number of each."""
    contents: list[bytes]
    covered: list[str]
    """Names of files whose entries are in a longer file too."""


class _Listing(NamedTuple):
    """The files of a journal."""

    last: dict[int, int]
    """Last number of each file, by its first."""
    covered: list[str]
    """Names of files whose entries are in a longer file too."""

    def continues_at(self, number: int) -> bool:
        """Return whether a file starts at `number`, or all files end before it."""
        return number in self.last or number > max(self.last.values(), default=-1)

    def from_number(self, number: int, where: str) -> list[tuple[int, int]]:
        """Return first and last number of the consecutive files from `number` on.

        Raises
        ------
        FileNotFoundError
            A file between them is missing; names it.
        """
        files = []
        while number in self.last:
            files.append((number, self.last[number]))
            number = self.last[number] + 1
        if any(first > number for first in self.last):
            raise FileNotFoundError(f"{where}/{_name(number)}")
        return files


def _list_files(folder: Folder) -> _Listing:
    found = [
        (int(match[1]), int(match[2] or match[1]), name)
        for name in folder.names(_FOLDER)
        if (match := _NAME.fullmatch(name))
    ]
    listing, end = _Listing({}, []), -1
    for first, last, name in sorted(found, key=lambda file: (file[0], -file[1])):
        if first > end:
            listing.last[first] = end = last
        elif last <= end:
            listing.covered.append(name)
        else:
            raise DamagedFileError(
                f"{folder.where}/{name}: overlaps the file before it; restore {folder.where}/{_FOLDER} from a copy"
            )
    return listing


def _name(first: int, last: int | None = None) -> str:
    return f"{_FOLDER}/{first:08d}.jsonl" if last in (None, first) else f"{_FOLDER}/{first:08d}-{last:08d}.jsonl"
