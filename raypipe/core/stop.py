"""Request to stop a running sweep or pretraining."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class StopRequest:
    """Flag that asks a sweep to stop after the epochs under way; another thread or a signal handler may set it.

    Attributes
    ----------
    accepted
        True while the work that was started checks the flag. Before and after that, only an exception stops it.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self.accepted = False

    def set(self) -> None:
        """Request the stop."""
        self._event.set()

    def is_set(self) -> bool:
        """Return whether the stop has been requested."""
        return self._event.is_set()

    @contextlib.contextmanager
    def accepting(self) -> Iterator[None]:
        """Set `accepted` for the duration of the block."""
        self.accepted = True
        try:
            yield
        finally:
            self.accepted = False
