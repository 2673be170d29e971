"""Read participants.tsv: its rows by subject, and its columns as numbers or as text."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pandas as pd

from raypipe.core.errors import UserError
from raypipe.recordings.recording import Recording
from raypipe.recordings.tables import (
    MISSING,
    MISSING_NUMBER,
    find_column,
    is_missing,
    is_number_with_commas,
    is_number_with_more,
    missing_column,
    parse_number,
    read_tsv,
)

MAX_FLOAT32 = float(np.finfo(np.float32).max)
MAX_ROUNDING = 0.01
"""Largest error of a target in 32 bits, in standard deviations of the column."""
MAX_CELLS = 3
"""Odd cells that a message names."""


def read_participants(root: str | Path) -> pd.DataFrame:
    """Read the ``participants.tsv`` of a BIDS folder.

    Returns
    -------
    pandas.DataFrame
        Text cells, indexed by the subject's label without ``sub-``, spelt as in the file.

    Raises
    ------
    UserError
        The file is missing or damaged, or has two rows of a subject.
    """
    path = Path(root) / "participants.tsv"
    if not path.is_file():
        raise UserError(f"{path}: no such file; the target is read from it")
    table = read_tsv(path)
    column = find_column(table, "participant_id")
    if column is None:
        raise UserError(missing_column(path, "participant_id", table))
    table = table[~table[column].map(is_missing).astype(bool)]
    labels = [re.sub(r"^sub-", "", name, flags=re.IGNORECASE) for name in table[column]]
    table = table.drop(columns=column).set_index(pd.Index(labels, name="subject", dtype=object))
    if not table.index.is_unique:
        raise UserError(f"{path}: subject '{table.index[table.index.duplicated()][0]}' has two rows; keep one")
    return table


def participants_table(root: Path) -> pd.DataFrame | None:
    """Return the table of a BIDS folder, from a cache if the file has not changed; None if there is no such file."""
    path = root / "participants.tsv"
    if not path.is_file():
        return None
    stat = path.stat()
    return _cached_table(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _cached_table(path: Path, size: int, changed: int) -> pd.DataFrame:
    return read_participants(path.parent)


def participant_rows(recordings: Iterable[Recording]) -> dict[tuple[Path, str], Mapping[str, str]]:
    """Return the cells of each recording's subject by name of the column, by BIDS folder and label.

    Subjects without a row are missing, as are those of folders without a participants.tsv.
    """
    labels: dict[Path, list[str]] = {}
    for recording in recordings:
        labels.setdefault(recording.root, []).append(recording.label)
    found: dict[tuple[Path, str], Mapping[str, str]] = {}
    for root, present in labels.items():
        table = participants_table(root)
        if table is None:
            continue
        cells = table.to_dict("index")
        for label, row in match_labels(present, table.index).items():
            found[root, label] = {str(name): str(cell) for name, cell in cells[row].items()}
    return found


def match_labels(labels: Iterable[str], rows: Iterable[str]) -> dict[str, str]:
    """Return the row of participants.tsv of each subject label that has one.

    A row is that of the equal label; else of the only one that differs in upper and lower case or in leading zeros, if
    it is also the only label that the row could mean.
    """
    labels, rows = list(dict.fromkeys(labels)), list(rows)
    found = {label: label for label in labels if label in set(rows)}
    for fold in (_without_case, _without_zeros, _without_prefix):
        taken = set(found.values())
        free_labels = _by_fold((label for label in labels if label not in found), fold)
        free_rows = _by_fold((row for row in rows if row not in taken), fold)
        found |= {
            same[0]: free_rows[name][0]
            for name, same in free_labels.items()
            if len(same) == 1 == len(free_rows.get(name, ()))
        }
    return found


def _without_case(label: str) -> str:
    return normalize("NFC", label).casefold()


def _without_zeros(label: str) -> str:
    return re.sub(r"(?<!\d)0+(?=\d)", "", _without_case(label))


def _without_prefix(label: str) -> str:
    """Return a label without ``sub``, ``sub_`` or ``subject``, and without the ``.0`` that spreadsheets add."""
    plain = re.sub(r"^(?:subject|sub)[_ -]?(?=[^_ -])", "", _without_case(label))
    return _without_zeros(re.sub(r"(?<=\d)\.0+$", "", plain))


def _by_fold(names: Iterable[str], fold: Callable[[str], str]) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for name in names:
        out.setdefault(fold(name), []).append(name)
    return out


@dataclass(frozen=True)
class Column:
    """A column of participants.tsv, without its missing values."""

    values: Mapping[str, float | str]
    """By subject: numbers if `is_numeric`, else text."""
    is_numeric: bool


def typed_column(cells: Mapping[str, str], where: str, *, as_text: bool = False) -> Column:
    """Read a column as numbers if all its cells are, else as text.

    Parameters
    ----------
    cells
        Cells by subject.
    where
        File and column, for messages.
    as_text
        Accept text in a column that is mostly numbers.

    Raises
    ------
    UserError
        Most cells are numbers, but not all (names the others); or a number is infinite, too large for 32 bits, or lost
        in them.
    """
    if not _is_text(cells.values(), as_text):
        numbers = {subject: number for subject, cell in cells.items() if (number := parse_number(cell)) is not None}
        others = {s: cell for s, cell in cells.items() if s not in numbers and cell.lower() not in MISSING_NUMBER}
        if others:
            raise UserError(_odd_cells(where, len(numbers), others))
        _check_float32(numbers, where)
        return Column(numbers, True)
    known = {subject: cell for subject, cell in cells.items() if cell.lower() not in MISSING}
    check_spellings(set(known.values()), where)
    return Column(known, False)


def missing_spellings(cells: Iterable[str], *, as_text: bool = False) -> frozenset[str]:
    """Return the spellings, in lower case, of a missing value in a column, which `typed_column` reads.

    In a column of text ``none`` may be a class.
    """
    return MISSING if _is_text(list(cells), as_text) else MISSING_NUMBER


def _is_text(cells: Collection[str], as_text: bool) -> bool:
    """Return whether the cells of a column are text: most are no numbers, or some are not and text is accepted."""
    n_numbers = sum(parse_number(cell) is not None for cell in cells)
    others = [cell for cell in cells if parse_number(cell) is None and cell.lower() not in MISSING_NUMBER]
    nearly = sum(is_number_with_commas(cell) or is_number_with_more(cell) for cell in others)
    is_numeric = n_numbers + 2 * nearly >= len(others) > 0 or bool(n_numbers and not others)
    return not is_numeric or bool(others and as_text)


def _odd_cells(where: str, n_numbers: int, others: Mapping[str, str]) -> str:
    shown = ", ".join(f"'{cell}' ({subject})" for subject, cell in list(others.items())[:MAX_CELLS])
    more = f" and {len(others) - MAX_CELLS} more" if len(others) > MAX_CELLS else ""
    right = "n/a for a value that is not known"
    if any(map(is_number_with_commas, others.values())):
        right = "numbers without commas and with a decimal point, " + right
    numbers = f"{n_numbers} number{'s' * (n_numbers != 1)} and " if n_numbers else ""
    return f"{where} holds {numbers}cells that are no numbers: {shown}{more}; write {right}"


def check_spellings(classes: set[str], where: str) -> None:
    """Check that no two classes are one that is spelt in two ways.

    Raises
    ------
    UserError
        Names both spellings.
    """
    seen: dict[object, str] = {}
    for name in sorted(classes):
        number = parse_number(name)
        other = seen.setdefault(name.casefold() if number is None else number, name)
        if other != name:
            raise UserError(
                f"{where} spells one class in two ways: '{other}' and '{name}'; write one of them everywhere"
            )


def _check_float32(numbers: Mapping[str, float], where: str) -> None:
    """Check that targets are finite and stay different in 32 bits, in which they are trained on."""
    for subject, number in numbers.items():
        if not math.isfinite(number) or abs(number) > MAX_FLOAT32:
            raise UserError(f"{where} is {number:g} for subject '{subject}': not a finite number of 32 bits")
    values = np.array(list(numbers.values()), float)
    lost = np.abs(values - values.astype(np.float32)).max(initial=0.0)
    if lost > MAX_ROUNDING * values.std() > 0:
        raise UserError(f"{where} is rounded by up to {lost:g} in 32 bits, much for its spread; subtract a constant")
