"""Callbacks that report progress."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], object]
"""Called with the number of steps done, their total and a short text."""


def no_progress(done: int, total: int, text: str) -> None:
    """Report nothing."""
