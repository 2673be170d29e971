"""Private temporary folders that a killed process leaves to the next one to remove."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "rp-"
"""Start of the folders' names; short, since Ray's sockets are below them and their paths are limited."""
NAME_LENGTH = len(PREFIX) + 8
LOCK_FILE = "in-use"
"""File that the process which made a folder keeps locked as long as it lives."""


@contextlib.contextmanager
def scratch_folder(base: Path | None = None) -> Iterator[Path]:
    """Make a folder that only this user can read (mode 0700), and remove it after the block.

    Folders that killed processes of this user have left beside it are removed first.

    Parameters
    ----------
    base
        Folder to make it in; None for the system's temporary folder.

    Raises
    ------
    OSError
        No folder can be made there.
    """
    base = base or Path(tempfile.gettempdir())
    remove_abandoned(base)
    folder, handle = _make(base)
    try:
        yield folder
    finally:
        _remove(folder)
        os.close(handle)


def _make(base: Path) -> tuple[Path, int]:
    """Return a new folder and its open lock file."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        # Another process may remove the folder before its lock is held.
        with contextlib.suppress(FileNotFoundError):
            handle = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            if _lock(handle, if_unsupported=True) and os.fstat(handle).st_nlink:
                return folder, handle
            os.close(handle)


def remove_abandoned(base: Path) -> None:
    """Remove the folders in `base` whose process has died. Those of other users are left."""
    for folder in base.glob(f"{PREFIX}{'?' * (NAME_LENGTH - len(PREFIX))}"):
        with contextlib.suppress(OSError):
            found = folder.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
                _remove_if_abandoned(folder)


def _remove_if_abandoned(folder: Path) -> None:
    try:
        handle = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        folder.rmdir()  # left between two steps of `_make`, or about to get its lock file; fails if anything is in it
        return
    try:
        if _lock(handle, if_unsupported=False):
            _remove(folder)
    finally:
        os.close(handle)


def _lock(handle: int, *, if_unsupported: bool) -> bool:
    """Lock a file without waiting; return whether this process has the lock now."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return if_unsupported
    return True


def _remove(folder: Path) -> None:
    """Remove a folder, its lock file last: what cannot be removed now is found by the next process."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != LOCK_FILE:
                path.unlink(missing_ok=True)
        if [path.name for path in folder.iterdir()] == [LOCK_FILE]:
            (folder / LOCK_FILE).unlink()
            folder.rmdir()
