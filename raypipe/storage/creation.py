"""One driver at a time creates a run: by a lock in a local folder, by claims behind a URI."""

from __future__ import annotations

import os
import random
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from raypipe.storage.files import Folder, LocalFolder, open_folder
from raypipe.storage.host_lock import take_lock
from raypipe.storage.lease import LOCK_FILE, in_use_error, read_lease

CLAIMS = "creating/"
"""Folder of the claims of drivers that are creating the run."""
CLAIM_SECONDS = 60.0
"""Seconds after which a claim that stays is taken for that of a dead driver."""
_PAUSES = (0.2, 1.0)
"""Range of the pauses (s) between two attempts, drawn at random so that two drivers do not meet again."""


@contextmanager
def sole_creator(where: str | Path, sleep: Callable[[float], object] = time.sleep) -> Iterator[None]:
    """Keep other drivers from creating the same run, for the duration of the block.

    Parameters
    ----------
    where
        Folder of the run.
    sleep
        Waits for some seconds.

    Raises
    ------
    UserError
        Another driver of this host creates or drives the run. Behind a URI, the others are waited for.
    """
    folder = open_folder(where)
    if not isinstance(folder, LocalFolder):
        claim = _claim(folder, sleep)
        try:
            yield
        finally:
            folder.remove(claim)
        return
    handle = take_lock(folder.path / LOCK_FILE)
    if handle is None:
        raise in_use_error(folder, read_lease(folder))
    try:
        yield
    finally:
        os.close(handle)


def _claim(folder: Folder, sleep: Callable[[float], object]) -> str:
    """Write a claim, and return its name once there is no other.

    Of two drivers that both write a claim and then list all, the one that lists later sees both and withdraws. So no
    two find themselves alone, on any storage that lists what was written.
    """
    waited: dict[str, float] = {}
    while True:
        name = f"{CLAIMS}{uuid.uuid4().hex}"
        folder.write(name, b"")
        others = [other for other in folder.names(CLAIMS.rstrip("/")) if other != name]
        if not others:
            return name
        folder.remove(name)
        now = time.monotonic()
        waited = {other: waited.get(other, now) for other in others}
        for other, since in waited.items():
            if now - since > CLAIM_SECONDS:
                folder.remove(other)
        sleep(random.uniform(*_PAUSES))
