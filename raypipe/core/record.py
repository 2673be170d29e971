"""Base classes of frozen models, and of the JSON files that raypipe writes.

Each file has a format number and a digest of its content, which are checked when it is read.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from raypipe.core.errors import DamagedFileError, UserError

_DIGEST = re.compile(rb',\n "digest": "([0-9a-f]{64})"\n}\n\Z')
"""End of a record: the SHA-256 of what precedes it."""


class OtherFormatError(UserError):
    """A file has another format number than this version of raypipe reads."""


class FrozenModel(BaseModel):
    """Values that are validated and cannot be changed. Unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Record(FrozenModel):
    """A JSON file with a format number and a digest, by which a change of a single byte is noticed.

    A subclass declares the file's fields, and its format as a Literal with a default::

        class Retry(Record):
            format: Literal["raypipe-retry/1"] = "raypipe-retry/1"
            micro_batch: int

    ``write_record(folder, name, Retry(micro_batch=8))`` writes it and ``read_record(Retry, folder, name)`` reads it
    (both in `raypipe.storage.files`). Code that holds the file's bytes calls `to_json` and `parse`. A list is stored in
    a field of a record, so that the file has a format too.

    Raise the number whenever a file of the old form would be misread. Only the newest number is read.
    """

    format: str

    def to_json(self) -> bytes:
        """Return the content of the file.

        Raises
        ------
        ValueError
            A number is not finite.
        """
        return with_digest(self.model_dump(mode="json"))

    @classmethod
    def parse(cls, data: bytes, where: str) -> Self:
        """Read the content of a file.

        Parameters
        ----------
        data
            JSON.
        where
            Path or URI of the file, for messages.

        Raises
        ------
        OtherFormatError
            The file has another format.
        DamagedFileError
            The file is not JSON, does not fit the schema, or is not what raypipe has written.
        """
        content = without_digest(data)
        try:
            # Three times as fast as validating what json.loads returns.
            record = cls.model_validate_json(data if content is None else content)
        except ValidationError as error:
            raise cls._describe_error(data, error, where) from None
        if "format" not in record.model_fields_set:
            raise cls._other_format_error(None, where)
        if content is None:
            raise DamagedFileError(
                f"{where}: changed since raypipe wrote it (its digest differs, or is missing); restore it from a copy"
            )
        return record

    @classmethod
    def _describe_error(cls, data: bytes, error: ValidationError, where: str) -> UserError:
        problem = next((p for p in error.errors() if p["loc"] != ("digest",)), error.errors()[0])
        if problem["type"] == "json_invalid":
            return DamagedFileError(f"{where}: damaged (not a JSON document); restore it from a copy")
        found = json.loads(data)
        if isinstance(found, dict) and found.get("format") != cls.model_fields["format"].default:
            return cls._other_format_error(found.get("format"), where)  # the format explains every other problem
        if problem["loc"] == ("digest",):
            return DamagedFileError(f"{where}: changed since raypipe wrote it (its digest differs); restore it")
        place = "/".join(map(str, problem["loc"]))
        return DamagedFileError(f"{where}: {place + ': ' if place else ''}{problem['msg']}")

    @classmethod
    def _other_format_error(cls, given: object, where: str) -> OtherFormatError:
        found = "no format number" if given is None else f"format {given!r}"
        expected = cls.model_fields["format"].default
        return OtherFormatError(f"{where}: {found}, expected {expected!r}; use the version of raypipe that wrote it")


def with_digest(content: dict[str, Any]) -> bytes:
    """Return a record's content as JSON, with its digest at the end.

    Raises
    ------
    ValueError
        A number is not finite.
    """
    body = json.dumps(content, indent=1, allow_nan=False).encode()[:-2]  # without the last bracket
    return body + f',\n "digest": "{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode()


def without_digest(data: bytes) -> bytes | None:
    """Return the JSON that `with_digest` was given; None if the digest is missing or is not that of the content."""
    end = _DIGEST.search(data, max(0, len(data) - 100))
    if end is None or hashlib.sha256(data[: end.start()]).hexdigest() != end[1].decode():
        return None
    return data[: end.start()] + b"\n}\n"
