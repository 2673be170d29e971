"""Misuse of the command line, told as all bad input is: a line with what is wrong, where, and what would be right."""

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
    """What a `UsageError` says of the words of a command line, in one line; nothing where it is a plea for help."""
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    kind, context = type(error).__name__, error.ctx
    if kind == "NoArgsIsHelpError":
        return ""
    message = str(error.message).strip().rstrip(".")
    if unknown := re.match(r"No such command '(.*?)'", message):
        return f"{unknown[1]}: no such verb; {nearest(unknown[1], commands)}"
    verb = next((word for word in words if word in commands), "raypipe")
    command = context.command if context else commands.get(verb)
    if context and context.parent is None and command is not None and not hasattr(command, "commands"):
        verb = str(context.info_name).removeprefix("raypipe ")  # of a command that is to be submitted
    params = [] if command is None else command.params
    options = [name for param in params if param.param_type_name == "option" for name in param.opts]
    if kind == "NoSuchOption":
        long = [name for name in options if name.startswith("--")]
        return f"{verb} {error.option_name}: no such option; {nearest(error.option_name, long)}"
    about = getattr(error, "param", None)
    if about is None:
        about = next((param for param in params if getattr(error, "option_name", None) in param.opts), None)
    if about is None:
        return f"{verb}: {message[:1].lower()}{message[1:]}; see raypipe {verb} --help"
    optional = about.param_type_name == "option"
    name = max(about.opts, key=len) if optional else (about.metavar or about.name.upper()).strip("[]")
    wanted = " ({})".format(about.help.strip().rstrip(".").replace("\\[", "[")) if about.help else ""
    if kind == "MissingParameter":
        return f"{verb}: {name} is missing{wanted}"
    given = _given(about, words) if optional else ""
    problem = message.removeprefix(f"Option '{name}' ").partition(", unable")[0].replace("Input should", "must")
    return f"{verb} {name}{given}: {problem[:1].lower()}{problem[1:]}{wanted}"


def _given(option: Any, words: Sequence[str]) -> str:
    """The values of an option as they were typed, with a space before; empty where they are not found."""
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in option.opts:
            values = [value] if equals else list(words[place + 1 : place + 1 + option.nargs])
            return "".join(f" {value}" for value in values if not value.startswith("--"))
    return ""
