"""Arguments that users' code is called with: sizes, tensors, and what a configuration has as ``args``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raypipe.core.errors import UserError, nearest

SIZES: dict[str, tuple[str, ...]] = {
    "n_channels": ("n_channels", "n_chans"),
    "n_times": ("n_times",),
    "n_outputs": ("n_outputs",),
    "sfreq": ("sfreq",),
}
"""Sizes that are passed to a network, each with the names that its parameter may have (braindecode's too)."""


def network_arguments(
    network: Callable[..., Any], name: str, sizes: Mapping[str, float], args: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments that a network is made with, by the names of its parameters.

    Parameters
    ----------
    network
        The class.
    name
        Its name, for messages.
    sizes
        Values of `SIZES`; ``sfreq`` is left out where the network has no such parameter.
    args
        The ``model/args/`` part of a configuration.

    Raises
    ------
    UserError
        A size cannot be passed, an argument is unknown (names the nearest one), or one is missing.
    """
    parameters = inspect.signature(network).parameters
    named = [key for key, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    given = _size_arguments(name, named, takes_any, sizes)
    for key in args:
        if key in {each for names in SIZES.values() for each in names}:
            raise UserError(f"model/args/{key}: the data decides it; leave it out")
    free = {key: p for key, p in parameters.items() if key in named and key not in given}
    _check_arguments(name, "model", free, takes_any, args)
    return given | _as_given(args)


def _size_arguments(name: str, named: Sequence[str], takes_any: bool, sizes: Mapping[str, float]) -> dict[str, Any]:
    """Return the sizes by the names of the parameters that take them; ``sfreq`` only where one does."""
    given: dict[str, Any] = {}
    for size, names in SIZES.items():
        parameter = next((each for each in names if each in named), None)
        if parameter is None and takes_any and size != "sfreq":
            parameter = size
        if parameter is not None:
            given[parameter] = sizes[size]
        elif size != "sfreq":
            raise UserError(
                f"{name}: its __init__ takes no '{size}'; it must take n_channels, n_times and n_outputs by these names"
            )
    return given


def function_arguments(
    function: Callable[..., Any],
    name: str,
    section: str,
    tensors: int,
    offered: Mapping[str, Any],
    args: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the keyword arguments that a user's loss or augmentation is called with, beside its tensors.

    Parameters
    ----------
    function
        The function.
    name, section
        Its name, and the section of a configuration that names it (``loss``), for messages.
    tensors
        Number of positional arguments that it is called with.
    offered
        Values that it gets if it has parameters of these names.
    args
        The ``args`` part of its section.

    Raises
    ------
    UserError
        It does not take so many tensors, an argument is unknown (names the nearest one), or one is missing.
    """
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        raise UserError(
            f"{section}/name: {name} does not say which arguments it takes; call it in a function"
        ) from None
    positional = [key for key, p in parameters.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) < tensors and not any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):
        raise UserError(f"{section}/name: {name} takes {len(positional)} positional arguments, and must take {tensors}")
    named = [key for key, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    free = [key for key in named if key not in positional[:tensors]]
    given = {key: value for key, value in offered.items() if key in free}
    for key in offered:
        if key in args:
            raise UserError(f"{section}/args/{key}: raypipe passes it; leave it out")
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    _check_arguments(name, section, {key: parameters[key] for key in free if key not in given}, takes_any, args)
    return given | _as_given(args)


def _as_given(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments with lists, which a configuration holds as tuples."""

    def listed(value: Any) -> Any:
        return [listed(each) for each in value] if isinstance(value, tuple) else value

    return {name: listed(value) for name, value in args.items()}


def _check_arguments(
    name: str, section: str, free: Mapping[str, inspect.Parameter], takes_any: bool, args: Mapping[str, Any]
) -> None:
    """Check that code takes these arguments and needs no others; `free` are parameters that raypipe does not set."""
    for key in args:
        if key not in free and not takes_any:
            raise UserError(f"{section}/args/{key}: {name} takes no argument '{key}'; {nearest(key, free)}")
    missing = [key for key, p in free.items() if p.default is inspect.Parameter.empty and key not in args]
    if missing:
        raise UserError(f"{name} needs the argument '{missing[0]}'; set {section}/args/{missing[0]}")
