"""Imports of packages that use another one where it is there, and can do without it."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from importlib.abc import MetaPathFinder


class _Hiding(MetaPathFinder):
    """Finder by which a thread does not find the modules that it hides; other threads do.

    It stays where it is: another thread that looks for a module at the time that a finder is removed skips the next
    one, which knows the modules that are built in.
    """

    def __init__(self) -> None:
        self._names = threading.local()

    def hidden(self) -> list[str]:
        """Return the modules that this thread hides."""
        if not hasattr(self._names, "hidden"):
            self._names.hidden = []
        return self._names.hidden  # type: ignore[no-any-return]

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name in self.hidden():
            raise ModuleNotFoundError(f"{name} is hidden", name=name)


_HIDING = _Hiding()


@contextlib.contextmanager
def hidden_module(name: str) -> Iterator[None]:
    """Make modules that this thread imports in the block do without another one, unless that is imported already."""
    if _HIDING not in sys.meta_path:
        sys.meta_path.insert(0, _HIDING)
    _HIDING.hidden().append(name)
    try:
        yield
    finally:
        _HIDING.hidden().remove(name)
