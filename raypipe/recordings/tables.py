"""Read BIDS tables (tab-separated values, BIDS specification 1.10) as text, and the numbers in them.

Cells are text without spaces or quotes around them, so that ``01`` stays ``01`` and a quote swallows no rows. A reader
of one table decides which cells are numbers or missing.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from raypipe.core.errors import UserError, first_line, nearest
from raypipe.recordings.signal import UnreadableRecordingError
from raypipe.storage.regular_files import read_whole

MISSING = frozenset({"", "n/a", "na", "nan", "null", "#n/a", "<na>", "-", "--", ".", "?"})
"""Spellings of a missing value, in lower case."""
MISSING_NUMBER = MISSING | {"none", "missing"}
"""Spellings of a missing value in a column of numbers. In a column of text, ``none`` may be a class."""

_SEPARATORS = {"\t": "tabs", ",": "commas", ";": "semicolons"}
_INVISIBLE = re.compile("[\u200b\u200c\u200d\u2060\ufeff]")
_NUMBER = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf(?:inity)?)", re.ASCII | re.IGNORECASE)
_NUMBER_WITH_MORE = re.compile(
    r"[<>~=\u2264\u2265\u2248]?=? ?[+-]?\d+(?:[.,]\d+)? ?"
    r"(?:%|y|yo|yrs?|years?|m|mo|months?|w|weeks?|d|days?|h|kg|cm|ms|s)?",
    re.ASCII | re.IGNORECASE,
)
_NUMBER_WITH_COMMAS = re.compile(r"[+-]?\d+(?:,\d+)+(?:\.\d+)?", re.ASCII)


def read_tsv(path: Path) -> pd.DataFrame:
    """Read a table; all cells are text, and names of columns are as in the file.

    Raises
    ------
    UnreadableRecordingError
        The file is not a table of tab-separated values.
    """
    try:
        lines = re.split(r"\r\n|\n|\r", _decode(read_whole(path)))
    except UserError as error:
        raise UnreadableRecordingError(str(error)) from None
    except (OSError, ValueError) as error:
        raise UnreadableRecordingError(
            f"{path}: not a table of values separated by tabs ({first_line(error)})"
        ) from None
    return _table(path, [(number, _cells(line)) for number, line in enumerate(lines, start=1) if line.strip()])


def read_table(path: Path) -> pd.DataFrame:
    """Read a table separated by tabs, commas or semicolons, whichever its first line has; all cells are text.

    Returns
    -------
    pandas.DataFrame
        Rows, with their number in the file (the first line has the names) as index.

    Raises
    ------
    UserError
        There is no such file, or it is no such table.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        text = _decode(read_whole(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a table ({first_line(error)})") from None
    separator = max(_SEPARATORS, key=next((line for line in text.splitlines() if line.strip()), "").count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        rows = [(reader.line_num, [_clean(cell) for cell in row]) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise UserError(f"{path}: not a table of values separated by {_SEPARATORS[separator]} ({error})") from None
    table = _table(path, rows, _SEPARATORS[separator])
    table.index = pd.Index([number for number, _ in rows[1:]])
    return table


def _table(path: Path, rows: list[tuple[int, list[str]]], separator: str = "tabs") -> pd.DataFrame:
    """Return the table of numbered lines of cells, the first of which has the names of the columns."""
    what = f"not a table of values separated by {separator}"
    if not rows:
        raise UnreadableRecordingError(f"{path}: not a table: it is empty")
    header = list(rows[0][1])
    while header and not header[-1]:
        header.pop()
    repeated = [name for name in header if header.count(name) > 1]
    if repeated or not header:
        raise UnreadableRecordingError(f"{path}: its first line names {_first_column(repeated)}")
    cells = [_fit(path, number, row, len(header), what) for number, row in rows[1:]]
    return pd.DataFrame(cells, columns=pd.Index(header, dtype=object), dtype=object)


def _first_column(repeated: list[str]) -> str:
    return f"column '{repeated[0]}' twice" if repeated else "no column"


def _decode(data: bytes) -> str:
    """Decode a table: UTF-8 (with or without a byte-order mark), UTF-16 with one, else Latin-1."""
    if b"\0" in data and not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("it holds binary data")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _cells(line: str) -> list[str]:
    return [cell.strip('"').strip() for cell in map(_clean, line.split("\t"))]


def _clean(cell: str) -> str:
    return _INVISIBLE.sub("", unicodedata.normalize("NFC", cell)).strip()


def _fit(path: Path, number: int, row: list[str], width: int, what: str) -> list[str]:
    """Return a row of `width` cells; cells that are missing at its end are empty."""
    if any(row[width:]):
        raise UnreadableRecordingError(f"{path}: {what} (line {number} has {len(row)} cells, its first line {width})")
    return row[:width] + [""] * (width - len(row))


def find_column(table: pd.DataFrame, name: str) -> str | None:
    """Return the table's own name of a column: `name`, or the only one that differs in upper and lower case."""
    if name in table.columns:
        return name
    found = [str(column) for column in table.columns if str(column).casefold() == name.casefold()]
    return found[0] if len(found) == 1 else None


def missing_column(path: Path, column: str, table: pd.DataFrame) -> str:
    """Return the message for a table that lacks a column; it names the most similar one."""
    if len(table.columns) == 1 and re.search(r"[,; ]", str(table.columns[0])):
        return f"{path}: no column '{column}'; its first line is not separated by tabs"
    return f"{path}: no column '{column}'; {nearest(column, table.columns)}"


def list_columns(table: pd.DataFrame) -> str:
    """Return the names of a table's columns for a message."""
    return f"columns: {', '.join(map(str, table.columns))}"


def is_missing(cell: str) -> bool:
    """Return whether a cell is a spelling of a missing value."""
    return cell.lower() in MISSING


def parse_number(cell: str) -> float | None:
    """Return the number that a cell holds, infinite ones included; None for other text and missing values."""
    return float(cell) if _NUMBER.fullmatch(cell) else None


def is_number_with_commas(cell: str) -> bool:
    """Return whether a cell is a number with commas, such as ``20,5`` or ``1,200``, which can be read in two ways."""
    return _NUMBER_WITH_COMMAS.fullmatch(cell) is not None


def is_number_with_more(cell: str) -> bool:
    """Return whether a cell is a number with a unit or a sign, such as ``20 y``, ``20%`` or ``>89``."""
    return _NUMBER_WITH_MORE.fullmatch(cell) is not None


def list_some(names: Iterable[str], at_most: int = 3) -> str:
    """Return the first few names, separated by commas, with ``...`` if there are more."""
    known = list(names)
    return ", ".join(known[:at_most]) + (", ..." if len(known) > at_most else "")
