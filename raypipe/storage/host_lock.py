"""The lock by which the drivers of one host exclude each other: the kernel releases it when its process ends."""

from __future__ import annotations

import os
import time
from pathlib import Path

from raypipe.core.errors import UserError
from raypipe.storage.files import LocalFolder, lock
from raypipe.storage.regular_files import open_regular
from raypipe.storage.run_layout import require_layout

_LOCK_ATTEMPTS, _LOCK_PAUSE = 20, 0.02


def is_locked(path: Path) -> bool:
    """Return whether a process of this host holds the lock."""
    try:
        with open_regular(path) as file:
            return not lock(file, shared=True)
    except (OSError, UserError):  # the file does not exist yet, or is none; `take_lock` refuses that
        return False


def take_lock(path: Path) -> int | None:
    """Return the open lock file, or None where another process of this host holds it.

    Raises
    ------
    DamagedFileError
        A link, a folder or a fifo is in the place of the file.
    """
    require_layout(LocalFolder(path.parent), whole=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    for _ in range(_LOCK_ATTEMPTS):
        if lock(handle):
            return handle
        time.sleep(_LOCK_PAUSE)  # `raypipe status` holds the lock for a moment to check it
    os.close(handle)
    return None
