"""Flags of the verbs that run a sweep, made from `SweepOptions`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args

import typer
from pydantic import BeforeValidator

from raypipe.core.options import SweepOptions, default_of, flag_of, help_of

Verb = TypeVar("Verb", bound=Callable[..., None])

UNCHANGED = "unchanged"
"""Default shown for a flag that replaces an option of an existing run."""


def sweep_flags(*names: str, unchanged: Collection[str] = ()) -> Callable[[Verb], Verb]:
    """Replace a verb's ``**options`` by a flag for each named option of `SweepOptions`.

    Parameters
    ----------
    *names
        Options with their defaults.
    unchanged
        Options whose flag defaults to None: an existing run keeps its own value.
    """

    def add(verb: Verb) -> Verb:
        signature = inspect.signature(verb, eval_str=True)
        own = [param for param in signature.parameters.values() if param.kind is not param.VAR_KEYWORD]
        flags = [_parameter(name) for name in names] + [_parameter(name, kept=True) for name in unchanged]
        verb.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[param.replace(kind=param.KEYWORD_ONLY) for param in (*own, *flags)]
        )
        return verb

    return add


def _parameter(name: str, kept: bool = False) -> inspect.Parameter:
    field, flag = SweepOptions.model_fields[name], flag_of(name)
    spelled = [f"--{name.replace('_', '-')}", flag.alias] if flag.alias else []
    option = typer.Option(
        *spelled,
        help=help_of(name),
        show_default=UNCHANGED if kept else default_of(name) if flag.unset else True,
        metavar=flag.metavar,
        envvar=flag.envvar,
        rich_help_panel=flag.group,
    )
    default = None if kept else field.default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=_typed(name, option))


def _typed(name: str, option: Any) -> Any:
    field = SweepOptions.model_fields[name]
    if any(isinstance(each, BeforeValidator) for each in field.metadata):
        return Annotated[str | None, option]  # read from text when the options are validated
    kinds = [kind for kind in get_args(field.annotation) if kind is not NoneType]
    optional = NoneType in get_args(field.annotation)
    return Annotated[kinds[0] if optional else field.annotation, option]
