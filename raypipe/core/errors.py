"""The one exception that users are meant to read."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: one line that says what is wrong, where, and what would be right.

    The command line prints it without a traceback and leaves with exit status 2.
    """


class StorageError(UserError):
    """The storage cannot be used any longer; what was written before is whole and the same command goes on."""


class DiskFullError(StorageError):
    """No room is left where raypipe writes."""


class CheckpointError(Exception):
    """A checkpoint file is truncated, altered or of another kind; the one before it may still be good."""


class InterruptedSweepError(Exception):
    """The sweep was asked to stop (Ctrl-C, SIGTERM) and has stopped in good order."""


class LostSweepError(Exception):
    """What executes the sweep has died (its desk, Ray Tune), for which no trial is to blame; it is begun again.

    Parameters
    ----------
    reason
        Who died, in words.
    progress
        Whether an epoch was finished before.
    """

    def __init__(self, reason: str, progress: bool) -> None:
        super().__init__(reason)
        self.progress = progress


class InterruptedEpochError(Exception):
    """The trial was taken off this worker in mid-epoch; its last checkpoint stands."""


class NonFiniteError(Exception):
    """The training loss, its gradient or the score is no longer a number."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line of at most 300 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def disk_full(error: OSError, where: object) -> DiskFullError | None:
    """Turn "no space left" and "quota exceeded" into the line users see; None for any other error."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT) and not _FULL.search(str(error)):
        return None
    return DiskFullError(
        f"{where}: no space left on the disk; make room and run the same command again (nothing written so far is lost)"
    )


# What object stores say; they have no error numbers.
_FULL = re.compile(r"HTTP status 507|StorageFull|QuotaExceeded")

_NO_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "out of memory",
    "_STATUS_ALLOC_FAILED",
    "bad_alloc",
)


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's, torch's on host or GPU, or the machine's, for which Ray kills a process.

    Told by names, since neither torch nor Ray is imported here.
    """
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY)


def missing_package(extra: str) -> str:
    """How an extra is installed; raypipe itself is on no index."""
    return f"in raypipe's clone: pip install -c constraints.txt -e '.[{extra}]'"


def nearest(name: str, names: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the closest of `names`, or a listing of them when none is close."""
    known = [str(n) for n in names]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return "there is: " + ", ".join(known) if known else "there is none"
