"""The console on which everything is printed: foreign text is text there.

File names, labels, reasons and logs come from outside. They are printed without markup, and their control characters as
escapes, so that they can change neither colours nor the terminal's title, its clipboard or earlier lines.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.segment import Segment

from raypipe.core.text import visible


class PlainConsole(Console):
    """Rich's console, on which text is text: no markup, no emoji codes, no control characters but rich's own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        return super()._render_buffer(
            segment if segment.control else Segment(visible(segment.text), segment.style) for segment in buffer
        )
