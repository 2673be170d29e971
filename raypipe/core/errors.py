"""Exceptions, and helpers for messages of one line."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable

_DISK_FULL = re.compile(r"HTTP status 507|StorageFull|QuotaExceeded")
"""Messages of object stores, which have no error numbers."""
_NO_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "out of memory",
    "_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # of its handle, which needs memory
    "unable to find an engine",  # of cuDNN, when none of its algorithms gets its workspace
    "bad_alloc",
)


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where, and what would be right.

    The command line prints it without a traceback and exits with status 2.
    """


class StorageError(UserError):
    """The storage cannot be used any longer. All written files are whole, and the same command continues."""


class DamagedFileError(StorageError):
    """A file that raypipe wrote is damaged or was changed, which is no trial's fault."""


class DiskFullError(StorageError):
    """The disk is full."""


class CheckpointError(Exception):
    """A checkpoint file is truncated, changed or of another kind. The one before it may be whole."""


class LostCheckpointError(Exception):
    """A checkpoint that a trial's end needs is missing or damaged. No trial is to blame: its fold is trained again."""


class InterruptedSweepError(Exception):
    """The sweep was interrupted (Ctrl-C, SIGTERM) and has stopped after saving its state."""


class LostSweepError(Exception):
    """A process that executes the sweep has died, not because of a trial: the broker, Ray Tune, or Ray's control store.

    The sweep restarts.

    Parameters
    ----------
    reason
        The process that died, in words.
    progress
        True if an epoch was finished before.
    """

    def __init__(self, reason: str, progress: bool) -> None:
        super().__init__(reason)
        self.progress = progress


class BrokenGpuError(Exception):
    """A process can use its GPU no longer; another process may."""


class InterruptedEpochError(Exception):
    """The worker was stopped in the middle of an epoch. The trial's last checkpoint is valid."""


class NonFiniteError(Exception):
    """The training loss, its gradient or the score is not finite."""


_PATH = re.compile(r"(?:Posix|Windows)?Path\('([^']*)'\)")
"""How Python shows the objects that paths are, in messages of other packages."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 300 characters; its type where it has no message.

    One that ends with a colon announces the reason, and is joined with the next one.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return _PATH.sub(r"\1", line)[:300]


def disk_full(error: OSError, where: object) -> DiskFullError | None:
    """Return the error that users see for "no space left" and "quota exceeded"; None for any other error."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT) and not _DISK_FULL.search(str(error)):
        return None
    return DiskFullError(
        f"{where}: no space left on the disk; free some space and run the same command again (nothing written so far "
        "is lost)"
    )


def out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out: in Python, in torch on host or GPU, or on the machine, when Ray kills a process.

    Errors of torch and Ray are recognised by name, since neither is imported here.
    """
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY)


def nearest(name: str, names: Iterable[str]) -> str:
    """Return ``did you mean 'x'?`` for the closest of `names`, or ``available: x, y`` if none is close."""
    known = [str(n) for n in names]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return "available: " + ", ".join(known) if known else "none is available"
