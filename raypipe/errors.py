"""The one exception that users are meant to read."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: one line that says what is wrong, where, and what would be right.

    The command line prints it without a traceback and leaves with exit status 2.
    """


class DiskFullError(UserError):
    """No room is left where raypipe writes; what was written before is whole and the same command goes on."""


class CheckpointError(Exception):
    """A checkpoint file is truncated, altered or of another kind; the one before it may still be good."""


class InterruptedSweepError(Exception):
    """The sweep was asked to stop (Ctrl-C, SIGTERM) and has stopped in good order."""


class InterruptedEpochError(Exception):
    """The trial was taken off this worker in mid-epoch; its last checkpoint stands."""


class NonFiniteError(Exception):
    """The training loss, its gradient or the score is no longer a number."""


def disk_full(error: OSError, where: object) -> DiskFullError | None:
    """Turn "no space left" and "quota exceeded" into the line users see; None for any other error."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    return DiskFullError(
        f"{where}: no space left on the disk; make room and run the same command again (nothing written so far is lost)"
    )


def nearest(name: str, names: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the closest of `names`, or a listing of them when none is close."""
    known = [str(n) for n in names]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return "there is: " + ", ".join(known) if known else "there is none"
