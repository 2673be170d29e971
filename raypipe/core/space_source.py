"""Search spaces that are functions or dictionaries of a program, as the text of a file, which a run keeps.

The text of a function is its source, with the imports, functions and plain values that it uses from around it.
"""

from __future__ import annotations

import ast
import inspect
import math
import symtable
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

from raypipe.core.errors import UserError
from raypipe.core.own_code import distributions
from raypipe.core.parameters import list_parameters, parameter_names
from raypipe.core.text import short_line

RANGE = {"low", "high", "log", "step"}
"""Keys of a range in a dictionary."""
START = "START"
"""Key of a dictionary, or attribute of a function, with the points that run first."""
FUTURE = "from __future__ import annotations\n"
"""Line of a file whose annotations are not evaluated."""
CO_FUTURE_ANNOTATIONS: int = annotations.compiler_flag
"""Flag of the functions of such a file."""


class SpaceSource(NamedTuple):
    """A search space as text."""

    text: str
    name: str
    """For messages."""
    folder: Path
    """Paths of users' code are relative to it."""


def source_of(space: Callable[[Any], Any] | Mapping[str, Any]) -> SpaceSource:
    """Return the text of a space that is a function or a dictionary.

    Raises
    ------
    UserError
        It is neither, or uses something that cannot be written down.
    """
    if isinstance(space, Mapping):
        return SpaceSource(_text_of_dictionary(space), "the search space", Path.cwd())
    if not isinstance(space, FunctionType):
        raise UserError(
            f"the search space must be a file, a function space(trial) or a dictionary (given {type(space).__name__})"
        )
    file = Path(inspect.getsourcefile(space) or "")
    return SpaceSource(
        _text_of_function(space), f"{space.__name__}(trial)", file.parent if file.is_file() else Path.cwd()
    )


# Functions


@dataclass
class _Kept:
    """What a function's text has so far; all functions share its names, whatever modules they are from."""

    texts: dict[str, str] = field(default_factory=dict)
    """By name; empty for a name that stays Python's own."""
    users: dict[str, str] = field(default_factory=dict)
    """Function that uses a name first."""
    functions: set[FunctionType] = field(default_factory=set)

    def add(self, name: str, text: str, user: str) -> None:
        """Add the text that makes a name again.

        Raises
        ------
        UserError
            Another function uses the name for something else.
        """
        first = self.users.setdefault(name, user)
        if self.texts.setdefault(name, text) != text:
            raise UserError(
                f"{user} uses another {name} than {first}; the run keeps them in one file, where a name has one value: "
                "rename one of the two"
            )


def _text_of_function(function: FunctionType) -> str:
    name, kept = function.__name__, _Kept()
    _keep_function(function, name, name, kept)
    for reserved in (START, "space"):
        if reserved in kept.texts and reserved != name:
            raise UserError(
                f"{kept.users[reserved]} uses the name {reserved}, which means something else in the file that the run "
                "keeps; rename it"
            )
    head = f"{(inspect.getdoc(function) or 'A search space from Python.')!r}\n"
    if any(map(_leaves_annotations, kept.functions)):
        head += FUTURE
    start = f"{START} = {_literal(getattr(function, START), START)}\n" if hasattr(function, START) else ""
    named = "" if name == "space" else f"\n\nspace = {name}\n"
    texts = {name: text for name, text in kept.texts.items() if text}
    imports = sorted(text for text in texts.values() if text.startswith(("import ", "from ")))
    values = sorted(text for name, text in texts.items() if text.startswith(f"{name} = "))
    functions = [text for text in texts.values() if text not in imports and text not in values]
    return (
        head
        + "".join([*imports, start, *values])
        + "\n\n"
        + "\n\n".join(reversed(functions)).rstrip("\n")
        + "\n"
        + named
    )


def _keep_function(function: FunctionType, name: str, user: str, kept: _Kept) -> None:
    """Add the source of a function to `kept`, and what it uses."""
    if function in kept.functions:
        return
    try:
        text = _dedented(inspect.getsource(function))
    except (OSError, TypeError):
        raise UserError(f"{name}: its source is not known here; write it to a file, and name the file") from None
    if not text.startswith("def ") or function.__name__ != name or inspect.unwrap(function) is not function:
        raise UserError(f"{name}: no plain function (def {name}), of which a run could keep the source")
    kept.functions.add(function)
    kept.add(name, text, user)
    around = {**function.__globals__, **inspect.getclosurevars(function).nonlocals}
    _check_defaults(function, text, around)
    for used in _globals_of(FUTURE + text if _leaves_annotations(function) else text, name):
        if used in around:
            _keep(used, around[used], name, kept)
        else:
            kept.add(used, "", name)


def _dedented(text: str) -> str:
    """Return a function's source without the first line's indentation, which lines of its texts may not have."""
    first = text[: len(text) - len(text.lstrip(" \t"))]
    return "".join(line.removeprefix(first) for line in text.splitlines(keepends=True))


def _leaves_annotations(function: FunctionType) -> bool:
    """Return whether a function's annotations are not evaluated: names in them may be there for type checkers only."""
    return bool(function.__code__.co_flags & CO_FUTURE_ANNOTATIONS)


def _check_defaults(function: FunctionType, text: str, around: dict[str, Any]) -> None:
    """Check that the defaults of a function's arguments are what its text would make them now.

    Raises
    ------
    UserError
        What they were made from has changed, or is not at hand.
    """
    (definition,) = ast.parse(text).body
    assert isinstance(definition, ast.FunctionDef)
    given = inspect.signature(function).parameters
    arguments = [*definition.args.posonlyargs, *definition.args.args]
    written = dict(zip(reversed(arguments), reversed(definition.args.defaults), strict=False))
    written |= {
        arg: each for arg, each in zip(definition.args.kwonlyargs, definition.args.kw_defaults, strict=True) if each
    }
    for argument, expression in written.items():
        default = given[argument.arg].default
        try:
            made = eval(compile(ast.Expression(expression), "default", "eval", dont_inherit=True), around)
        except Exception:
            made = inspect.Parameter.empty
        if made is not default and not (_is_plain(made) and repr(made) == repr(default)):
            raise UserError(
                f"{function.__name__}: the default of {argument.arg} is no longer what its source says; write the "
                "value itself"
            )


def _globals_of(text: str, name: str) -> list[str]:
    """Return the names that a function's source uses from around it."""

    def walk(table: symtable.SymbolTable) -> set[str]:
        found = {s.get_name() for s in table.get_symbols() if s.is_referenced() and s.is_global()}
        return found.union(*(walk(child) for child in table.get_children()))

    top = symtable.symtable(text, name, "exec")
    return sorted((walk(top) | {s.get_name() for s in top.get_symbols() if s.is_referenced()}) - {name})


def _keep(name: str, value: Any, user: str, kept: _Kept) -> None:
    """Add a line or a function to `kept` that makes a name again."""
    if isinstance(value, ModuleType) and _is_installed(value.__name__):
        text = f"import {value.__name__} as {name}\n" if value.__name__ != name else f"import {name}\n"
        kept.add(name, text, user)
    elif (origin := _import_of(value)) is not None:
        module, imported = origin
        kept.add(name, f"from {module} import {imported}" + (f" as {name}\n" if name != imported else "\n"), user)
    elif isinstance(value, FunctionType):
        _keep_function(value, name, user, kept)
    else:
        kept.add(name, f"{name} = {_literal(value, f'{user} uses {name}, which')}\n", user)


def _import_of(value: Any) -> tuple[str, str] | None:
    """Return the installed module and the name by which an object can be imported from it; None if it cannot."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not (isinstance(module, str) and isinstance(name, str) and _is_installed(module)):
        return None
    return (module, name) if getattr(sys.modules.get(module), name, None) is value else None


def _is_installed(module: str) -> bool:
    """Return whether a module is Python's or of an installed package, and so there when a run is continued."""
    root = module.partition(".")[0]
    return root in sys.stdlib_module_names or root in distributions()


# Dictionaries


def _text_of_dictionary(space: Mapping[str, Any]) -> str:
    points = space.get(START, [])
    draws, constants = [], []
    given = _flat({key: value for key, value in space.items() if key != START})
    names = [name for name, _ in given]
    if twice := next((name for name in names if names.count(name) > 1), None):
        section, _, rest = twice.partition("/")
        raise UserError(f"{twice}: it is there twice, under '{twice}' and in '{section}' as '{rest}'; leave one out")
    no_lists = set(parameter_names()) - list_parameters()
    for name, value in given:
        if isinstance(value, list | tuple) and name in no_lists:
            shown = short_line(repr(list(value)))
            raise UserError(f"{name}: a list is not a choice; to draw one of its values: {{'choices': {shown}}}")
        if (draw := _draw_of(name, value)) is None:
            constants.append(f"        {name!r}: {_literal(value, name)},\n")
        else:
            draws.append(f"    trial.{draw}\n")
    return (
        f"'A search space from a dictionary.'\n\n{START} = {_literal(points, START)}\n\n\ndef space(trial):\n"
        f"{''.join(draws)}    return {{\n{''.join(constants)}    }}\n"
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return values by parameter name; dictionaries that are no ranges or choices are groups of parameters.

    So are a section and arguments, whatever their keys: `low` and `high` are parameters of some models.
    """
    groups = _groups()
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        if not isinstance(name, str):
            raise UserError(f"names of parameters must be text such as 'optim/lr' (given {name!r})")
        is_group = isinstance(value, Mapping) and (
            prefix + name in groups or not ("choices" in value or RANGE & value.keys())
        )
        found += _flat(value, f"{prefix}{name}/") if is_group else [(prefix + name, value)]
    return found


def _groups() -> set[str]:
    """Return the names of sections, and of the arguments of users' code."""
    names = [name for name in parameter_names() if "/" in name]
    return {name.partition("/")[0] for name in names} | {name for name in names if name.endswith("/args")}


def _draw_of(name: str, value: Any) -> str | None:
    """Return the call that draws a parameter; None for a constant."""
    kind = type(value).__name__
    if kind in ("FloatDistribution", "IntDistribution", "CategoricalDistribution"):  # Optuna's, which is slow to import
        value = dict(vars(value)) if kind == "CategoricalDistribution" else _range_of(value)
    if not isinstance(value, Mapping):
        return None
    if value.keys() == {"choices"}:
        return _choice(name, value["choices"])
    if {"low", "high"} <= value.keys() <= RANGE:
        return _range(name, value)
    raise UserError(f"{name}: must be a constant, {{'choices': [...]}} or {{'low': a, 'high': b}} with log or step")


def _choice(name: str, choices: Any) -> str:
    if isinstance(choices, str) or not isinstance(choices, Sequence):
        raise UserError(f"{name}: choices must be a list (given {choices!r})")
    return f"suggest_categorical({name!r}, {_literal(list(choices), name)})"


def _range(name: str, value: Mapping[str, Any]) -> str:
    low, high = value["low"], value["high"]
    if not (isinstance(low, int | float) and isinstance(high, int | float) and low <= high):
        raise UserError(f"{name}: low must be a number, and high one that is not below it (given {low!r} and {high!r})")
    whole = isinstance(low, int) and isinstance(high, int) and isinstance(value.get("step") or 1, int)
    options = [f"{key}={_literal(value[key], name)}" for key in ("step", "log") if value.get(key)]
    ends = [_literal(end, name) for end in (low, high)]
    return f"suggest_{'int' if whole else 'float'}({', '.join([repr(name), *ends, *options])})"


def _range_of(distribution: Any) -> dict[str, Any]:
    found = {key: getattr(distribution, key) for key in ("low", "high", "log", "step")}
    return found if found["step"] != 1 or isinstance(found["low"], float) else found | {"step": None}


def _literal(value: Any, what: str) -> str:
    """Return the text of a plain value."""
    if not _is_plain(value):
        raise UserError(
            f"{what}: a {type(value).__name__} cannot be kept with the run; write the search space to a file, "
            "or use plain values"
        )
    return repr(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(each) for each in value)
    if isinstance(value, dict):
        return all(_is_plain(each) for pair in value.items() for each in pair)
    return value is None or type(value) in (str, int, bool) or (type(value) is float and math.isfinite(value))
