"""Change the records of a run as raypipe would write them."""

from __future__ import annotations

import json
from typing import Any

from raypipe.core.record import with_digest
from raypipe.storage.files import Folder, LocalFolder


def edit_record(folder: Folder | str, name: str, changes: dict[str, Any]) -> None:
    """Change fields of a record, with a digest that fits."""
    place = LocalFolder(folder) if isinstance(folder, str) else folder
    record = json.loads(place.read(name))
    record.pop("digest")
    place.write(name, with_digest(record | changes))


def digested(record: dict[str, Any]) -> str:
    """Return a record as JSON, with a digest that fits."""
    return with_digest({key: value for key, value in record.items() if key != "digest"}).decode()


def parsed(text: str) -> dict[str, Any]:
    """Return a record without its digest."""
    record: dict[str, Any] = json.loads(text)
    record.pop("digest", None)
    return record
