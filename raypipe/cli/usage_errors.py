"""Explain in one line why a command line cannot be parsed: what is wrong, where, and what would be right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import typer

from raypipe.cli.common import app
from raypipe.core.errors import nearest

# Typer brings its own click or uses the one that is installed; by this name both are found.
UsageError: type[Any] = typer.BadParameter.__mro__[1]


def explain(error: Any, words: Sequence[str]) -> str:
    """Return one line about a `UsageError`, or an empty text if click prints its help instead.

    Parameters
    ----------
    error
        The error that click raised.
    words
        The command line as it was typed, without the program's name.
    """
    kind = type(error).__name__
    if kind == "NoArgsIsHelpError":
        return ""
    message = _lower_first(str(error.message).strip().rstrip("."))
    if unknown := re.match(r"no such command '(.*?)'", message):
        return f"{unknown[1]}: no such verb; {nearest(unknown[1], _commands())}"
    verb, command = _command_of(error, words)
    if kind == "NoSuchOption":
        return f"{verb} {error.option_name}: no such option; {nearest(error.option_name, _long_options(command))}"
    param = _param_of(error, command)
    if param is None:
        return f"{verb}: {message}; see raypipe {verb} --help"
    name, wanted = _name_of(param), _help_of(param)
    if kind == "MissingParameter":
        return f"{verb}: {name} is missing{wanted}"
    problem = (
        message.removeprefix("value error, ")
        .removeprefix(f"option '{name}' ")
        .partition(", unable")[0]
        .replace("input should", "must")
    )
    if param.nargs > 1:  # a value that is missing swallows the next option
        problem = f"takes {'two' if param.nargs == 2 else param.nargs} numbers"
    return f"{verb} {name}{_values_of(param, words)}: {problem}{wanted}"


def _commands() -> dict[str, Any]:
    return typer.main.get_command(app).commands  # type: ignore[attr-defined,no-any-return]


def _command_of(error: Any, words: Sequence[str]) -> tuple[str, Any]:
    """Return the verb that an error is about, and its command; ``raypipe`` if it is about none."""
    verb, context = next((word for word in words if word in _commands()), "raypipe"), error.ctx
    if context is None:
        return verb, _commands().get(verb)
    if context.parent is None and not hasattr(context.command, "commands"):  # a command that is to be submitted
        verb = str(context.info_name).removeprefix("raypipe ")
    return verb, context.command


def _params(command: Any) -> list[Any]:
    return [] if command is None else list(command.params)


def _is_option(param: Any) -> bool:
    return bool(param.param_type_name == "option")


def _long_options(command: Any) -> list[str]:
    names = [name for param in _params(command) if _is_option(param) for name in param.opts]
    return [name for name in names if name.startswith("--")]


def _param_of(error: Any, command: Any) -> Any:
    """Return the option or argument that an error is about; None if it is about none."""
    found = getattr(error, "param", None)
    name = getattr(error, "option_name", None)
    return found or next((param for param in _params(command) if name in param.opts), None)


def _name_of(param: Any) -> str:
    if _is_option(param):
        return str(max(param.opts, key=len))
    return str(param.metavar or param.name.upper()).strip("[]")


def _help_of(param: Any) -> str:
    """Return the first sentence of a parameter's help in brackets, with a space before; empty if it has none."""
    sentence = (param.help or "").partition(". ")[0].rstrip(".").replace("\\[", "[")
    return f" ({sentence})" if sentence else ""


def _values_of(param: Any, words: Sequence[str]) -> str:
    """Return the values of an option as they were typed, with a space before; empty if they are not found."""
    if not _is_option(param):
        return ""
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in param.opts:
            values = [value] if equals else list(words[place + 1 : place + 1 + param.nargs])
            return "".join(f" {value}" for value in values if not value.startswith("--"))
    return ""


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
