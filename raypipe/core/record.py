"""Base classes of frozen models, and of the JSON files that raypipe writes.

Each file has a format number, which is checked when it is read.
"""

from __future__ import annotations

import json
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from raypipe.core.errors import UserError


class OtherFormatError(UserError):
    """A file has another format number than this version of raypipe reads."""


class FrozenModel(BaseModel):
    """Values that are validated and cannot be changed. Unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Record(FrozenModel):
    """A JSON file with a format number.

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
        return (json.dumps(self.model_dump(mode="json"), indent=1, allow_nan=False) + "\n").encode()

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
        UserError
            The file is not JSON, or does not fit the schema.
        """
        try:
            record = cls.model_validate_json(data)  # three times as fast as validating what json.loads returns
        except ValidationError as error:
            raise cls._describe_error(data, error, where) from None
        if "format" not in record.model_fields_set:
            raise cls._other_format_error(None, where)
        return record

    @classmethod
    def _describe_error(cls, data: bytes, error: ValidationError, where: str) -> UserError:
        problem = error.errors()[0]
        if problem["type"] == "json_invalid":
            return UserError(f"{where}: damaged (not a JSON document); restore it from a copy")
        found = json.loads(data)
        if isinstance(found, dict) and found.get("format") != cls.model_fields["format"].default:
            return cls._other_format_error(found.get("format"), where)  # the format explains every other problem
        place = "/".join(map(str, problem["loc"]))
        return UserError(f"{where}: {place + ': ' if place else ''}{problem['msg']}")

    @classmethod
    def _other_format_error(cls, given: object, where: str) -> OtherFormatError:
        found = "no format number" if given is None else f"format {given!r}"
        expected = cls.model_fields["format"].default
        return OtherFormatError(f"{where}: {found}, expected {expected!r}; use the version of raypipe that wrote it")
