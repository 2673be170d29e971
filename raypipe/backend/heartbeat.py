"""Heartbeats that detect a trial actor whose death Ray missed because its control store (GCS) was down.

The raylet reports a dead actor once. A GCS that is killed at that moment comes back with the actor listed as alive, and
Tune waits for its answer forever. Therefore trial actors send heartbeats to the broker, and the driver kills the ones
that send none.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import ray

from raypipe.backend.ray_compat import kill_actor

if TYPE_CHECKING:
    from ray.actor import ActorHandle

HEARTBEAT_SECONDS = 2.0
"""Seconds between heartbeats. A separate thread sends them, so that neither storage nor a wait delays them."""
DEAD_AFTER_SECONDS = 60.0
"""Seconds without a heartbeat after which an actor is declared dead."""
CHECK_SECONDS = 5.0
"""Seconds between two checks of the driver."""


def send_heartbeats(broker: ActorHandle, actor: bytes) -> threading.Event:
    """Send the heartbeats of this process's actor to the broker, in a thread, until the returned event is set."""
    stop = threading.Event()

    def send() -> None:
        while not stop.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(Exception):  # the driver notices a dead broker
                broker.heartbeat.remote(actor)

    threading.Thread(target=send, name="raypipe-heartbeat", daemon=True).start()
    return stop


class Watchdog:
    """Kill trial actors that send no heartbeats; runs in the driver.

    Parameters
    ----------
    broker
        Handle of the sweep's broker.
    on_actor_lost
        Called when an actor is declared dead.
    dead_after
        Seconds without a heartbeat; None for `DEAD_AFTER_SECONDS`.
    every
        Seconds between two checks.
    """

    def __init__(
        self,
        broker: ActorHandle,
        on_actor_lost: Callable[[], object] = lambda: None,
        dead_after: float | None = None,
        every: float = CHECK_SECONDS,
    ) -> None:
        self._broker, self._on_actor_lost, self._every = broker, on_actor_lost, every
        self._dead_after = DEAD_AFTER_SECONDS if dead_after is None else dead_after
        self._killed: set[bytes] = set()
        self._pending: ray.ObjectRef | None = None
        self._checked = time.monotonic()

    def check(self) -> bool:
        """Ask the broker for silent actors or read its answer, without waiting for it.

        Returns
        -------
        bool
            True if an actor that was killed still owns its group and has been silent for as long again: no actor has
            replaced it, because the start of the new one was lost with the GCS too. The sweep must be restarted.
        """
        if self._pending is None:
            if time.monotonic() - self._checked >= self._every:
                self._pending = self._broker.silent_actors.remote(self._dead_after)
            return False
        if not ray.wait([self._pending], timeout=0)[0]:
            return False
        pending, self._pending, self._checked = self._pending, None, time.monotonic()
        with contextlib.suppress(ray.exceptions.RayError):  # `RunSearch` notices a dead broker
            for actor in ray.get(pending):
                if actor in self._killed:
                    return True
                self._killed.add(actor)
                kill_actor(actor)
                self._on_actor_lost()
        return False
