"""Parameters of a trial by name, such as ``loss/gamma``: their names, values and defaults, and how they are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from raypipe.core.config import SECTIONS, TrialConfig
from raypipe.core.errors import UserError, nearest
from raypipe.core.model_config import MODELS
from raypipe.core.own_config import OWN
from raypipe.core.text import either, short_line


def parameter_names(model: type[BaseModel] = TrialConfig, prefix: str = "") -> list[str]:
    """Return every name that a search space may set, such as ``optim/lr``; of models, those of all of them."""
    return list(_fields(model, prefix))


def list_parameters() -> set[str]:
    """Return the names of parameters whose default is a list, such as ``optim/betas``."""
    return {name for name, field in _fields(TrialConfig, "").items() if isinstance(field.default, list | tuple)}


def _fields(model: type[BaseModel], prefix: str) -> dict[str, FieldInfo]:
    """Return the fields of parameters by name."""
    fields: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        inner = field.annotation
        if name == "code":  # which raypipe sets
            continue
        if not prefix and name in SECTIONS:
            for config in SECTIONS[name]:
                fields |= _fields(config, f"{name}/")
        elif isinstance(inner, type) and issubclass(inner, BaseModel):
            fields |= _fields(inner, f"{prefix}{name}/")
        else:
            fields[prefix + name] = field
    return fields


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
        kind = loc.pop(1) if loc and loc[0] in SECTIONS and len(loc) > 1 else ""  # the tag of the union
        name = "/".join(loc)
        if problem["type"] == "union_tag_invalid":
            given = problem["ctx"]["tag"]
            raise UserError(
                f"{where}: model/name: there is no model '{given}'; {nearest(given, MODELS)} (your own is {OWN})"
            ) from None
        if problem["type"] == "extra_forbidden":
            raise UserError(f"{where}: {_unknown(name, kind)}") from None
        message = problem["msg"].removeprefix("Value error, ")
        given = problem["input"]
        shown = "" if isinstance(given, BaseModel | Mapping) else f" (given {_described(given)})"
        of = f"parameter '{name}': " if name else ""
        raise UserError(f"{where}: {of}{message}{shown}") from None


def _unknown(name: str, kind: str) -> str:
    """Return an error's text for a parameter that is unknown, or that another configuration of its section has.

    Parameters
    ----------
    name
        The parameter.
    kind
        Tag of the configuration in its union; empty for a section that is none.
    """
    section, _, rest = name.partition("/")
    known = parameter_names()
    if kind and name in known:
        having = [OWN] if rest == "args" else [each for each in MODELS if name in _names_of_model(each)]
        hint = f" (its arguments: {section}/args/{rest})" if kind == OWN else ""
        of = kind if kind in (*MODELS, OWN) else "one of raypipe's"
        others = f"{section}/name={either(having or [OWN])}" if section == "model" or rest == "args" else "others"
        return f"parameter '{name}' is for {others}, not for {section}/name={of}{hint}"
    if kind == OWN:
        what = "network" if section == "model" else section
        return f"unknown parameter '{name}'; an argument of the {what} is {section}/args/{rest}"
    return f"unknown parameter '{name}'; {nearest(name, _names_of_model(kind) if kind in MODELS else known)}"


def _names_of_model(name: str) -> list[str]:
    return parameter_names(MODELS[name], "model/")


def _described(value: object) -> str:
    """Return a value from outside as short text; Python writes no integer of more than 4300 digits."""
    try:
        return short_line(repr(value))
    except ValueError:
        return "a number of thousands of digits"
