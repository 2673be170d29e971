"""Numbers and foreign text as text for people."""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Iterable
from pathlib import Path
from unicodedata import category

from raypipe.core.errors import UserError

# C0 and C1 controls but newline and tab; marks that reorder text (Unicode TR 9), separators of lines; lone surrogates.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""Write control characters as escapes, such as ``\x1b``, so that a terminal shows them and does not obey them."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    r"""Write control characters and line breaks as escapes: a name that holds ``\n`` can forge no line of output."""
    return visible(text).replace("\n", "\\n")


def check_one_line(name: str, what: str) -> None:
    """Check that a name can be written in one line of UTF-8.

    Raises
    ------
    UserError
        It holds a line break, another control character, or half of a pair of surrogates.
    """
    if any(category(each) in ("Cc", "Cs", "Zl", "Zp") for each in name):
        raise UserError(f"{what}: {name!r} holds a line break or another control character; rename it")


def short_line(text: str, length: int = 80) -> str:
    """Return text from a file as a short line, with ``?`` for what is not printable, and ``...`` where it is cut."""
    line = "".join(character if character.isprintable() else "?" for character in text[:length])
    return line + "..." * (len(text) > length)


def either(names: Iterable[str]) -> str:
    """Join names: ``a``, ``a or b``, ``a, b or c``."""
    return _joined(names, "or")


def every(names: Iterable[str]) -> str:
    """Join names: ``a``, ``a and b``, ``a, b and c``."""
    return _joined(names, "and")


def _joined(names: Iterable[str], word: str) -> str:
    *first, last = names
    return f"{', '.join(first)} {word} {last}" if first else last


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


def format_bytes(count: int) -> str:
    """Write a number of bytes in kB, MB or GB."""
    if count < 1e6:
        return f"{count / 1e3:.0f} kB"
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"


def format_value(value: object) -> str:
    """Write a float with three digits, and anything else as text."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def decode_source(data: bytes, path: str | Path) -> str:
    r"""Return UTF-8 text with ``\n`` at the ends of lines and without a byte-order mark.

    An encoding that a comment of the file names is not used: the copy in the run is UTF-8.

    Raises
    ------
    UserError
        It is no UTF-8.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data:
        raise UserError(f"{path}: UTF-16, or no text at all; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: line {line}: byte 0x{data[error.start]:02x} is no UTF-8; save it as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")
