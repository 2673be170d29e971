"""Base classes of frozen models, and of the JSON files that raypipe writes.

Each file has a format number and a digest of its content, which are checked when it is read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer
from pydantic_core import ErrorDetails

from raypipe.core.errors import DamagedFileError, UserError
from raypipe.core.text import short_line

_DIGEST = re.compile(rb',\n "digest": "([0-9a-f]{64})"\n}\n\Z')
"""End of a record: the SHA-256 of what precedes it."""


class OtherFormatError(UserError):
    """A file has another format number than this version of raypipe reads."""


MAX_MESSAGE = 1000
"""Characters up to which a message on values that do not fit a schema is shown in full."""


class FrozenModel(BaseModel):
    """Values that are validated and cannot be changed. Unknown names, and numbers that are not finite, are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def leaving_out(name: str) -> Any:
    """Return a serializer of a model that leaves a field out where it has its default.

    So a field that few records need changes neither the others nor their digests::

        class Recipe(FrozenModel):
            extra: str = ""
            _serializer = leaving_out("extra")
    """

    def serialize(self: BaseModel, to_values: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = to_values(self)
        default = type(self).model_fields[name].get_default(call_default_factory=True, validated_data={})
        if getattr(self, name) == default:
            values.pop(name, None)
        return values

    # Older pydantic would look the name Any up in the module of the class.
    return model_serializer(mode="wrap", return_type=dict[str, Any])(serialize)


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

    max_bytes: ClassVar[int] = 256 * 2**20
    """Size of the largest file that is read."""
    max_values: ClassVar[int] = 20_000_000
    """Number of values in the largest file that is read. Each takes up to some hundred bytes of memory."""
    from_elsewhere: ClassVar[bool] = False
    """The file may come from somebody else: a name that occurs twice in an object is refused."""

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
        if excess := cls.excess(data):
            raise DamagedFileError(f"{where}: {excess}")
        content = without_digest(data)
        try:
            # Three times as fast as validating what json.loads returns.
            record = cls.model_validate_json(data if content is None else content)
        except ValidationError as error:
            raise cls._describe_error(data, error, where) from None
        if "format" not in record.model_fields_set:
            raise cls._other_format_error(None, where)
        if cls.from_elsewhere:
            _require_single_names(data, where)
        if content is None:
            raise DamagedFileError(
                f"{where}: changed since raypipe wrote it (its digest differs, or is missing); restore it from a copy"
            )
        return record

    @classmethod
    def excess(cls, data: bytes) -> str:
        """Return in words why the content of a file is too large to be read; an empty text if it is not."""
        if len(data) > cls.max_bytes:
            return f"{len(data) / 2**20:.0f} MB; at most {cls.max_bytes / 2**20:.0f} are read"
        count = sum(map(data.count, (b",", b"[", b"{")))
        return f"about {count:,} values; at most {cls.max_values:,} are read" if count > cls.max_values else ""

    @classmethod
    def _describe_error(cls, data: bytes, error: ValidationError, where: str) -> UserError:
        problem = first_problem(error, ignored=("digest",))
        if problem["type"] == "json_invalid":
            return DamagedFileError(f"{where}: damaged (not a JSON document); restore it from a copy")
        found = json.loads(data)
        if isinstance(found, dict) and found.get("format") != cls.model_fields["format"].default:
            return cls._other_format_error(found.get("format"), where)  # the format explains every other problem
        if problem["loc"] == ("digest",):
            return DamagedFileError(f"{where}: changed since raypipe wrote it (its digest differs); restore it")
        return DamagedFileError(f"{where}: {describe_problem(problem)}")

    @classmethod
    def _other_format_error(cls, given: object, where: str) -> OtherFormatError:
        found = "no format number" if given is None else f"format {short_line(repr(given))}"
        expected = cls.model_fields["format"].default
        return OtherFormatError(f"{where}: {found}, expected {expected!r}; use the version of raypipe that wrote it")


def first_problem(error: ValidationError, ignored: tuple[str, ...] = ()) -> ErrorDetails:
    """Return the first problem of values that do not fit a schema, or the first at another place than `ignored`."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    return next((problem for problem in problems if problem["loc"] != ignored), problems[0])


def describe_problem(problem: ErrorDetails) -> str:
    """Return the place and the message of a problem as one short line."""
    place = short_line("/".join(map(str, problem["loc"])))
    message = problem["msg"].removeprefix("Value error, ")
    # pydantic quotes a text that names no member of a union, all of it and as it is.
    if len(message) > MAX_MESSAGE:
        message = short_line(message, MAX_MESSAGE // 2) + message[-MAX_MESSAGE // 4 :]
    message = short_line(message, MAX_MESSAGE)
    return f"{place}: " * bool(place) + message


def _require_single_names(data: bytes, where: str) -> None:
    """Refuse JSON with a name that occurs twice in an object: programs differ in which value they take."""

    def check(pairs: Iterable[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise DamagedFileError(f"{where}: '{short_line(name)}' is in one object twice")
            seen.add(name)

    json.loads(data, object_pairs_hook=check)


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
