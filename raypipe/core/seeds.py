"""Seeds of named random streams, so that no stream's state has to be stored and restored."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: object) -> int:
    """Return a seed of 63 bits for a named stream, the same on every machine and in every process."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
