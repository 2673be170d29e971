"""Make the flags of the verbs that train from the models of their options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import typer
from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from raypipe.core.options import default_of, flag_of, help_of

Verb = TypeVar("Verb", bound=Callable[..., None])

UNCHANGED = "unchanged"
"""Default shown for a flag that replaces an option of an existing run."""


def option_flags(options: type[BaseModel], *names: str, unchanged: Collection[str] = ()) -> Callable[[Verb], Verb]:
    """Replace a verb's ``**options`` by a flag for each named option.

    Parameters
    ----------
    options
        Model of the options.
    *names
        Options with their defaults.
    unchanged
        Options whose flag defaults to None: an existing run keeps its own value.
    """

    def add(verb: Verb) -> Verb:
        signature = inspect.signature(verb, eval_str=True)
        own = [param for param in signature.parameters.values() if param.kind is not param.VAR_KEYWORD]
        flags = [_parameter(options, name) for name in names]
        flags += [_parameter(options, name, kept=True) for name in unchanged]
        verb.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[param.replace(kind=param.KEYWORD_ONLY) for param in (*own, *flags)]
        )
        return verb

    return add


def _parameter(options: type[BaseModel], name: str, kept: bool = False) -> inspect.Parameter:
    field, flag = options.model_fields[name], flag_of(options, name)
    spelled = [f"--{name.replace('_', '-')}"] if field.default is False else []  # without a --no- form
    option = typer.Option(
        *spelled,
        help=help_of(options, name),
        show_default=UNCHANGED if kept else default_of(options, name) if flag.unset else True,
        metavar=flag.metavar,
        envvar=flag.envvar,
        rich_help_panel=flag.group,
    )
    default = None if kept else field.default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=_typed(field, option))


def _typed(field: FieldInfo, option: Any) -> Any:
    """Return the type of a flag, with its option."""
    kinds = get_args(field.annotation) if get_origin(field.annotation) in (Union, UnionType) else [field.annotation]
    if str in kinds or any(isinstance(each, BeforeValidator) for each in field.metadata):
        return Annotated[str | None, option]  # read from text when the options are validated
    return Annotated[next(kind for kind in kinds if kind is not NoneType), option]
