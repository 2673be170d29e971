"""Units of voltage, in the spellings that EEG files and their tables have."""

from __future__ import annotations

import re
from unicodedata import normalize

_PREFIXES = {"": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9, "p": 1e-12}
_MICRO = ("micro", "\u03bc", "\u00b5")
_WORDS = {"milli": "m", "nano": "n", "pico": "p", "mikro": "u", "micro": "u"}
_VOLTAGE = re.compile(r"(?P<prefix>[munp]?)v(?:olts?)?")


def volts_per(unit: str) -> float | None:
    """Return the factor from a unit to volts; None for what is no known voltage.

    ``uV``, ``UV``, ``µV`` with either of Unicode's signs, ``ÂµV`` (UTF-8 read as Latin-1), ``microvolts`` and the like
    are known. ``MV`` and ``MVolts`` are not: they may be meant as millivolts.
    """
    text = re.sub(r"[\s.\[\](){}'\"_\0-]", "", normalize("NFC", unit))
    if text[:1] in ("M", "P") and text[1:].casefold() in ("v", "volt", "volts"):
        return None
    text = text.replace("\u00c2\u00b5", "u").replace("\u00ce\u00bc", "u").replace("\u00e6V", "uV").casefold()
    for sign in _MICRO:
        text = text.replace(sign.casefold(), "u")
    for word, prefix in _WORDS.items():
        if text.startswith(word):
            text = prefix + text.removeprefix(word)
    found = _VOLTAGE.fullmatch(text)
    return _PREFIXES[found["prefix"]] if found else None


def decode_field(data: bytes) -> str:
    """Return the text of a header field: UTF-8 if it is valid, else Latin-1, without spaces and NULs around it."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    return normalize("NFC", text).strip(" \0\t\r\n")
