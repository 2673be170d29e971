"""Imports of packages that use another one where it is there, and can do without it."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from importlib.abc import MetaPathFinder


class _Hiding(MetaPathFinder):
    """Finder by which one thread does not find a module; other threads do."""

    def __init__(self, name: str) -> None:
        self._name, self._thread = name, threading.get_ident()

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name == self._name and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"{name} is hidden", name=name)


@contextlib.contextmanager
def hidden_module(name: str) -> Iterator[None]:
    """Make modules that this thread imports in the block do without another one, unless that is imported already."""
    finder = _Hiding(name)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
