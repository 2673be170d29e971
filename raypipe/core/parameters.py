"""Parameters of a trial by name, such as ``loss/gamma``: their names, values and defaults, and how they are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from raypipe.core.config import TrialConfig
from raypipe.core.errors import UserError, nearest
from raypipe.core.model_config import MODELS, OWN, OwnConfig
from raypipe.core.text import either, short_line


def parameter_names(model: type[BaseModel] = TrialConfig, prefix: str = "") -> list[str]:
    """Return every name that a search space may set, such as ``optim/lr``; of models, those of all of them."""
    names: list[str] = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if name == "code":  # which raypipe sets
            continue
        if name == "model":
            models: list[type[BaseModel]] = [*MODELS.values(), OwnConfig]
            names += dict.fromkeys(each for config in models for each in parameter_names(config, "model/"))
        elif isinstance(inner, type) and issubclass(inner, BaseModel):
            names += parameter_names(inner, f"{prefix}{name}/")
        else:
            names.append(prefix + name)
    return names


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Turn ``{"loss/gamma": 2}`` into ``{"loss": {"gamma": 2}}``; names without a slash and nested dicts are kept.

    Raises
    ------
    UserError
        A name is used both as a parameter and as a group of parameters.
    """
    out: dict[str, Any] = {}
    for name, value in flat.items():
        group = out
        *path, last = name.split("/")
        for part in path:
            group = group.setdefault(part, {})
            if not isinstance(group, dict):
                raise UserError(f"parameter '{name}': '{part}' is itself a parameter")
        if isinstance(value, Mapping) and isinstance(group.get(last, {}), dict):
            group.setdefault(last, {}).update(nest(value))
        else:
            group[last] = value
    return out


def flatten(config: TrialConfig) -> dict[str, Any]:
    """Return the values of a configuration by parameter name, such as ``loss/gamma``."""
    return _flat(config.model_dump(mode="json"))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in values.items():
        out |= _flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {prefix + name: value}
    return out


def defaults(config: TrialConfig) -> dict[str, Any]:
    """Return the default values of the parameters that a configuration with this model has, by name."""
    own = type(config.model).model_construct().model_dump(mode="json")
    epochs = {"epochs": 1} if config.model.closed_form else {}
    return flatten(TrialConfig()) | epochs | {f"model/{name}": value for name, value in _flat(own).items()}


def changed_parameters(config: TrialConfig) -> dict[str, Any]:
    """Return the values that are not the defaults, by parameter name; the model's name where it is not the default."""
    default = defaults(config) | {"model/name": TrialConfig().model.name}
    return {name: value for name, value in flatten(config).items() if name not in default or value != default[name]}


def parse_config(params: Mapping[str, Any], where: str = "configuration") -> TrialConfig:
    """Validate parameters, flat (``loss/gamma``) or nested.

    Raises
    ------
    UserError
        A parameter is unknown (names the nearest one), or a value is out of range.
    """
    try:
        return TrialConfig.model_validate(nest(params))
    except ValidationError as error:
        problem = error.errors()[0]
        loc = [str(part) for part in problem["loc"]]
        model = loc.pop(1) if loc[:1] == ["model"] and len(loc) > 1 else ""  # the tag of the union
        name = "/".join(loc)
        if problem["type"] == "union_tag_invalid":
            given = problem["ctx"]["tag"]
            raise UserError(
                f"{where}: model/name: there is no model '{given}'; {nearest(given, MODELS)} (your own is {OWN})"
            ) from None
        if problem["type"] == "extra_forbidden":
            raise UserError(f"{where}: {_unknown(name, model)}") from None
        message = problem["msg"].removeprefix("Value error, ")
        given = problem["input"]
        shown = "" if isinstance(given, BaseModel | Mapping) else f" (given {_described(given)})"
        of = f"parameter '{name}': " if name else ""
        raise UserError(f"{where}: {of}{message}{shown}") from None


def _unknown(name: str, model: str) -> str:
    """Return an error's text for a parameter that is unknown, or that the model (its name, if known) does not have."""
    if model and name in parameter_names():
        having = [other for other, config in MODELS.items() if name in parameter_names(config, "model/")]
        having = having or [OWN]
        hint = f" (its arguments: model/args/{name.removeprefix('model/')})" if model == OWN else ""
        return f"parameter '{name}' is for model/name={either(having)}, not for model/name={model}{hint}"
    if model == OWN and name.startswith("model/"):
        return f"unknown parameter '{name}'; an argument of the network is model/args/{name.removeprefix('model/')}"
    own = parameter_names(MODELS[model], "model/") if model in MODELS else parameter_names()
    return f"unknown parameter '{name}'; {nearest(name, own)}"


def _described(value: object) -> str:
    """Return a value from outside as short text; Python writes no integer of more than 4300 digits."""
    try:
        return short_line(repr(value))
    except ValueError:
        return "a number of thousands of digits"
