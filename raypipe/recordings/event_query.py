"""Conditions on the rows of a table of events, in the syntax of `pandas.DataFrame.query`.

A condition compares columns with texts, numbers and lists of either (``==``, ``!=``, ``<``, ``<=``, ``>``, ``>=``,
``in``, ``not in``), and joins comparisons by ``and``, ``or``, ``not`` or, in parentheses, by ``&``, ``|``, ``~``. A
name in backticks may hold any characters. Nothing else is understood: no calls, no attributes, no variables. So a
condition from elsewhere can do no harm.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raypipe.core.errors import UserError
from raypipe.recordings.signal import UnreadableRecordingError
from raypipe.recordings.tables import find_column, is_missing, list_columns, parse_number

if TYPE_CHECKING:
    import pandas as pd

MAX_LENGTH = 1000
"""Characters of a condition."""
MAX_DEPTH = 30
"""Levels of nesting."""
MAX_NUMBER = 1e300
"""Largest constant."""
TEXT, NUMBER, STRICT_NUMBER, TRUTH, CELLS = "text", "number", "strict number", "truth", "cells"
"""How a column is read: for a comparison with texts; for equality with numbers, where other cells are unequal to all;
for order and arithmetic, where all cells must be numbers or missing; as a condition of its own; and for equality with
another column, where each cell is a number, missing or text."""
_PAIRED = "="
"""Stands before the name of a column that is read as `CELLS`, beside its other uses."""

Columns = Mapping[str, NDArray[Any]]

_EQUALITIES: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {ast.Eq: operator.eq, ast.NotEq: operator.ne}
_ORDERS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_TRUTHS = {"true": 1.0, "false": 0.0}
_QUOTED = re.compile(r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|`([^`]+)`""")
_PLACEHOLDER = "quoted_column_{}_"


@dataclass(frozen=True)
class EventQuery:
    """A condition that selects rows of a table of events; `parse_query` makes it."""

    text: str
    tree: ast.expr = field(repr=False, compare=False)
    names: Mapping[str, str] = field(repr=False, compare=False)
    """Columns by the names in `tree`."""
    kinds: Mapping[str, str] = field(repr=False, compare=False)
    """How each column is read, by its name in `tree`."""

    def rows(self, events: pd.DataFrame, path: Path) -> NDArray[np.bool_]:
        """Return which rows of a table of text cells satisfy the condition.

        Parameters
        ----------
        path
            File of the table, for messages.

        Raises
        ------
        UnreadableRecordingError
            The table lacks a column, or a column that is compared by order holds cells that are no numbers.
        """
        columns = {name: self._column(events, name, path) for name in self.kinds}
        return np.broadcast_to(_truth(self.tree, columns), len(events)).astype(bool)

    def _column(self, events: pd.DataFrame, name: str, path: Path) -> NDArray[Any]:
        column = find_column(events, self.names[name])
        if column is None:
            raise UnreadableRecordingError(
                f"{path}: no column '{self.names[name]}', which --select names ({list_columns(events)})"
            )
        cells = [str(cell) for cell in events[column]]
        if self.kinds[name] == TEXT:
            return np.array(cells, object)
        numbers = [_TRUTHS.get(cell.lower(), parse_number(cell)) for cell in cells]
        if self.kinds[name] == CELLS:
            missing = float("nan")
            pairs = zip(cells, numbers, strict=True)
            return np.array([(missing if is_missing(cell) else cell) if n is None else n for cell, n in pairs], object)
        if self.kinds[name] != NUMBER:
            for row, (cell, number) in enumerate(zip(cells, numbers, strict=True)):
                odd = not is_missing(cell) if number is None else self.kinds[name] == TRUTH and number not in (0, 1)
                if odd:
                    what = "a number" if self.kinds[name] == STRICT_NUMBER else "true, false, 1 or 0"
                    raise UnreadableRecordingError(
                        f"{path}: column '{column}' holds '{cell}' (row {row + 1}); --select needs {what} there"
                    )
        return np.array(numbers, float)


def parse_query(text: str) -> EventQuery:
    """Read a condition.

    Raises
    ------
    UserError
        It is no condition (says why, and where).
    """
    names: dict[str, str] = {}

    def hide(found: re.Match[str]) -> str:
        if found[1]:
            return found[1]
        name = _PLACEHOLDER.format(len(names))
        names[name] = found[2]
        return name

    if len(text) > MAX_LENGTH:
        raise UserError(f"--select: longer than {MAX_LENGTH} characters")
    try:
        tree = ast.parse(_QUOTED.sub(hide, text.strip()), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UserError(
            f"--select {text!r}: no condition; write one such as 'trial_type == \"target\" and correct == 1'"
        ) from None
    kinds: dict[str, str] = {}
    try:
        for name, kind in _check_condition(tree, 0):
            key = _PAIRED + name if kind == CELLS else name
            kinds[key] = _joined(kinds.get(key, kind), kind, names.get(name, name))
    except _RefusedError as error:
        raise UserError(f"--select {text!r}: {error}") from None
    if not kinds:
        raise UserError(f"--select {text!r}: names no column")
    own = {key: key.removeprefix(_PAIRED) for key in kinds}
    return EventQuery(text, tree, {key: names.get(name, name) for key, name in own.items()}, kinds)


def _joined(one: str, other: str, column: str) -> str:
    """Return how a column is read that is used in two ways."""
    if one != other and TEXT in (one, other):
        raise _RefusedError(f"column '{column}' is compared with text and with numbers; use one of them")
    return next(kind for kind in (TEXT, STRICT_NUMBER, TRUTH, NUMBER, CELLS) if kind in (one, other))


class _RefusedError(Exception):
    """A part of a condition that is not understood."""


def _check_condition(node: ast.expr, depth: int) -> Iterator[tuple[str, str]]:
    """Check that a node is a condition; yield the names of columns in it, and how they are read."""
    if depth > MAX_DEPTH:
        raise _RefusedError("nested too deeply")
    if isinstance(node, ast.BoolOp):
        for part in node.values:
            yield from _check_condition(part, depth + 1)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.Invert):
        yield from _check_condition(node.operand, depth + 1)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
        for part in (node.left, node.right):
            yield from _check_condition(part, depth + 1)
    elif isinstance(node, ast.Compare):
        yield from _check_comparison(node, depth)
    elif isinstance(node, ast.Name):
        yield node.id, TRUTH
    else:
        raise _RefusedError(f"'{_shown(node)}' is no comparison")


def _check_comparison(node: ast.Compare, depth: int) -> Iterator[tuple[str, str]]:
    sides = [node.left, *node.comparators]
    for left, test, right in zip(sides, node.ops, sides[1:], strict=False):
        members = _compared_with(node, test, right)
        paired = [part for part in members if _are_paired(left, test, part)]
        if paired:
            yield from ((part.id, CELLS) for part in (left, *paired) if isinstance(part, ast.Name))
            members = [part for part in members if part not in paired]
        if members:
            yield from _check_values(node, test, [left, *members], depth)


def _check_values(node: ast.Compare, test: ast.cmpop, parts: list[ast.expr], depth: int) -> Iterator[tuple[str, str]]:
    """Check columns that are compared with texts or numbers, or in order; yield how each column is read."""
    texts = [part for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    numbers = [part for part in parts if not isinstance(part, ast.Name) and part not in texts]
    if texts and numbers:
        raise _RefusedError(f"'{_shown(node)}' compares text with numbers; use one of them")
    kind = TEXT if texts else STRICT_NUMBER if type(test) in _ORDERS else NUMBER
    yield from ((part.id, kind) for part in parts if isinstance(part, ast.Name))
    for number in numbers:
        yield from _check_number(number, depth + 1)


def _are_paired(left: ast.expr, test: ast.cmpop, right: ast.expr) -> bool:
    """Return whether two columns are compared for equality: their cells, such as ``1`` and ``1.0``, not their text."""
    return isinstance(left, ast.Name) and isinstance(right, ast.Name) and type(test) not in _ORDERS


def _compared_with(node: ast.Compare, test: ast.cmpop, right: ast.expr) -> list[ast.expr]:
    """Return what the left side of a comparison is compared with: one node, or the members of a list."""
    if type(test) in _ORDERS or type(test) in _EQUALITIES:
        return [right]
    if not isinstance(test, ast.In | ast.NotIn):
        raise _RefusedError(f"'{_shown(node)}' is no comparison; use ==, !=, <, <=, >, >=, in or not in")
    if not isinstance(right, ast.List | ast.Tuple | ast.Set) or not right.elts:
        raise _RefusedError(f"'{_shown(right)}' is no list such as [1, 2]")
    return right.elts


def _check_number(node: ast.expr, depth: int) -> Iterator[tuple[str, str]]:
    """Check that a node is a number, or arithmetic of numbers and columns."""
    if depth > MAX_DEPTH:
        raise _RefusedError("nested too deeply")
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        for part in (node.left, node.right):
            yield from _check_number(part, depth + 1)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
        raise _RefusedError("comparisons beside & and | need parentheses; or use and, or")
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        yield from _check_number(node.operand, depth + 1)
    elif isinstance(node, ast.Name):
        yield node.id, STRICT_NUMBER
    elif not (isinstance(node, ast.Constant) and isinstance(node.value, int | float) and abs(node.value) <= MAX_NUMBER):
        raise _RefusedError(f"'{_shown(node)}' is neither a column nor a text or number")


def _shown(node: ast.expr) -> str:
    shown = ast.unparse(node)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _truth(node: ast.expr, columns: Columns) -> NDArray[np.bool_]:
    """Return where a condition holds."""
    if isinstance(node, ast.BoolOp):
        join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
        return np.asarray(join.reduce(np.broadcast_arrays(*[_truth(part, columns) for part in node.values])))
    if isinstance(node, ast.UnaryOp):
        return np.logical_not(_truth(node.operand, columns))
    if isinstance(node, ast.BinOp):
        join = np.logical_and if isinstance(node.op, ast.BitAnd) else np.logical_or
        return np.asarray(join(_truth(node.left, columns), _truth(node.right, columns)))
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        parts = [
            _compared(left, test, right, columns) for left, test, right in zip(sides, node.ops, sides[1:], strict=False)
        ]
        return np.asarray(np.logical_and.reduce(np.broadcast_arrays(*parts)))
    assert isinstance(node, ast.Name)
    return np.asarray(columns[node.id] == 1)


def _compared(
    left: ast.expr, test: ast.cmpop, right: ast.expr, columns: Mapping[str, NDArray[Any]]
) -> NDArray[np.bool_]:
    if isinstance(test, ast.In | ast.NotIn):
        assert isinstance(right, ast.List | ast.Tuple | ast.Set)
        found = np.logical_or.reduce(
            np.broadcast_arrays(*[_compared(left, ast.Eq(), part, columns) for part in right.elts])
        )
        return np.asarray(found if isinstance(test, ast.In) else np.logical_not(found))
    if _are_paired(left, test, right):
        assert isinstance(left, ast.Name) and isinstance(right, ast.Name)
        sides = columns[_PAIRED + left.id], columns[_PAIRED + right.id]
    else:
        sides = _value(left, columns), _value(right, columns)
    return np.asarray((_EQUALITIES | _ORDERS)[type(test)](*sides), bool)


def _value(node: ast.expr, columns: Columns) -> Any:
    """Return a column, a text, a number, or arithmetic of them in floating point (0-dimensional where constant)."""
    if isinstance(node, ast.Name):
        return columns[node.id]
    if isinstance(node, ast.Constant):
        return np.array(node.value, object if isinstance(node.value, str) else float)
    if isinstance(node, ast.UnaryOp):
        value = _value(node.operand, columns)
        return -value if isinstance(node.op, ast.USub) else value
    assert isinstance(node, ast.BinOp)
    with np.errstate(all="ignore"):
        return _ARITHMETIC[type(node.op)](_value(node.left, columns), _value(node.right, columns))
