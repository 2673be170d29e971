"""A slot that dies while Ray's control store is down too may be missed by Ray for ever; its silence tells.

The raylet reports a dead actor once. A control store that is killed in that moment comes back with the actor alive, and
whoever waits for its answer waits on. So slots beat, the desk listens, and the driver has a silent one declared dead.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import ray

BEAT = 2.0
"""Seconds from beat to beat, by a thread of its own: neither storage nor a wait holds it up."""
SILENCE = 60.0
"""Seconds without a beat after which a slot is taken for dead."""
LOOK = 5.0
"""Seconds from one question of the driver's to the next."""


def send_heartbeats(desk: Any, me: bytes) -> threading.Event:
    """Have a thread of this process tell the desk that it lives; setting the event ends it."""
    over = threading.Event()

    def keep() -> None:
        while not over.wait(BEAT):
            with contextlib.suppress(Exception):  # a desk that is gone is somebody else's care
                desk.beat.remote(me)

    threading.Thread(target=keep, name="raypipe-beat", daemon=True).start()
    return over


class Watchdog:
    """The driver's: asks the desk now and then who is silent, and has those declared dead.

    Parameters
    ----------
    desk
        The sweep's desk.
    tell
        Called when a slot is declared dead.
    silence
        Seconds; None for `SILENCE`.
    every
        See `LOOK`.
    """

    def __init__(
        self, desk: Any, tell: Callable[[], object] = lambda: None, silence: float | None = None, every: float = LOOK
    ) -> None:
        self._desk, self._tell, self._every = desk, tell, every
        self._silence = SILENCE if silence is None else silence
        self._named: set[bytes] = set()
        self._asked: Any = None
        self._looked = time.monotonic()

    def look(self) -> bool:
        """Take an answer that has come, or ask when it is time to; it never waits.

        True where a slot that was declared dead still has its group when it has been silent for as long again: nobody
        has followed it (its successor's start was lost with the control store too), and only a new beginning helps.
        """
        if self._asked is None:
            if time.monotonic() - self._looked >= self._every:
                self._asked = self._desk.silent.remote(self._silence)
            return False
        if not ray.wait([self._asked], timeout=0)[0]:
            return False
        asked, self._asked, self._looked = self._asked, None, time.monotonic()
        with contextlib.suppress(ray.exceptions.RayError):  # of a desk that has died, which is noticed elsewhere
            for slot in ray.get(asked):
                if slot in self._named:
                    return True
                self._named.add(slot)
                ray.kill(ray.cloudpickle.loads(slot))
                self._tell()
        return False
