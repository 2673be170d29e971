"""A callback that records the events of a sweep."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

from raypipe.trial.callback import SweepCallback

EVENTS = sorted(name for name in vars(SweepCallback) if name.startswith("on_"))
"""Names of the methods of a callback."""


class Recorder(SweepCallback):
    """Record every event.

    Parameters
    ----------
    then
        Called with the name and the arguments of an event, after it is recorded.

    Attributes
    ----------
    events
        Names of the methods that were called, and their arguments by name.
    """

    def __init__(self, then: Callable[[str, SimpleNamespace], object] = lambda name, given: None) -> None:
        self.events: list[tuple[str, SimpleNamespace]] = []
        self._then = then
        for name in EVENTS:
            signature = inspect.signature(getattr(SweepCallback, name))
            setattr(self, name, partial(self._record, name, signature))

    def _record(self, name: str, signature: inspect.Signature, *given: Any, **named: Any) -> None:
        arguments = dict(signature.bind(self, *given, **named).arguments)
        del arguments["self"]
        self.events.append((name, SimpleNamespace(**arguments)))
        self._then(*self.events[-1])

    @property
    def names(self) -> list[str]:
        """Return the names of the events, in order."""
        return [name for name, _ in self.events]

    def of(self, name: str) -> list[SimpleNamespace]:
        """Return the arguments of all events of a name."""
        return [given for found, given in self.events if found == name]
