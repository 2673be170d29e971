"""Numbers as text for people."""

from __future__ import annotations

import math


def format_duration(seconds: float) -> str:
    """Write a duration in its two largest units: ``42 s``, ``1 min 33 s``, ``2 h 05 min``; ``unknown`` for NaN.

    Below ten seconds it has one decimal: ``0.4 s``.
    """
    if math.isnan(seconds):
        return "unknown"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def format_value(value: object) -> str:
    """Write a float with three digits, and anything else as text."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
