"""The configuration of a trial's model: ``model/name`` selects its class, and with it the parameters that there are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, PlainSerializer, Tag

from raypipe.core import own_code
from raypipe.core.closed_form_config import CovarianceConfig, LinearConfig
from raypipe.core.network_config import (
    ConformerConfig,
    EegnetConfig,
    Model,
    Network,
    ShallowConfig,
    TcnConfig,
    VitConfig,
)
from raypipe.core.own_code import SourceFile

OWN = "file.py:Name"
"""Tag of `OwnConfig` in the union: a name of a user's code, which no model of raypipe's has."""
MAX_INTEGER = 2**63
"""Integers of arguments are below this."""


def _freeze(value: Any) -> Any:
    """Return an argument of a network so that it can be hashed: text, a number, a truth value, None, or tuples."""
    if isinstance(value, list | tuple):
        return tuple(_freeze(each) for each in value)
    if value is not None and not isinstance(value, str | bool | int | float):
        raise ValueError(f"must be text, a number, True, False, None or a list of these (given {type(value).__name__})")
    if isinstance(value, int) and abs(value) >= MAX_INTEGER:
        raise ValueError("an integer of more than 64 bits")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"must be finite (given {value})")
    return value


def _freeze_args(value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError("must be arguments by name: set model/args/NAME")
    return tuple(sorted((str(name), _freeze(each)) for name, each in value.items()))


class OwnConfig(Network):
    """A network of one's own: ``Net(n_channels, n_times, n_outputs, sfreq, **args)``, see docs/models.md."""

    name: str
    """`file.py:Name` with a file beside the search space, `package.module:Name`, or a name that a package registers
    (entry point `raypipe.models`)."""
    args: Annotated[
        tuple[tuple[str, Any], ...], BeforeValidator(_freeze_args), PlainSerializer(dict, return_type=dict)
    ] = ()
    """Its arguments, searched as `model/args/NAME`."""
    code: Annotated[str, Field(max_length=200)] = ""
    """The file's hash, or the package and its version; set by raypipe."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore_own, (type(self), self.model_dump(), own_code.known_source(self.code))


def _restore_own(kind: Callable[..., Any], fields: Mapping[str, Any], source: SourceFile | None) -> Any:
    """Return a configuration in another process, which then knows the file of its code."""
    if source is not None:
        own_code.keep_source(source)
    return kind(**fields)


def _tag(value: Any) -> str:
    """Return the model that a configuration is of: `OWN` for a user's, the Conformer for one without a name."""
    is_map = isinstance(value, Mapping)
    name = str(value.get("name", "conformer") if is_map else getattr(value, "name", ""))
    if name in MODELS:
        return name
    return OWN if isinstance(value, OwnConfig) or (is_map and "code" in value) or own_code.is_code(name) else name


ModelConfig = Annotated[
    Annotated[ConformerConfig, Tag("conformer")]
    | Annotated[EegnetConfig, Tag("eegnet")]
    | Annotated[ShallowConfig, Tag("shallow")]
    | Annotated[TcnConfig, Tag("tcn")]
    | Annotated[VitConfig, Tag("vit")]
    | Annotated[CovarianceConfig, Tag("covariance")]
    | Annotated[LinearConfig, Tag("linear")]
    | Annotated[OwnConfig, Tag(OWN)],
    Discriminator(_tag),
]
"""The model of a trial; `name` decides which parameters there are."""

MODELS: dict[str, type[Model]] = {
    "conformer": ConformerConfig,
    "eegnet": EegnetConfig,
    "shallow": ShallowConfig,
    "tcn": TcnConfig,
    "vit": VitConfig,
    "covariance": CovarianceConfig,
    "linear": LinearConfig,
}
"""The configurations by ``model/name``; `OwnConfig` has all other names."""


def is_closed_form(model: object) -> bool:
    """Return whether a model, its configuration or its ``model/`` parameters, is fitted in closed form."""
    config = MODELS.get(_tag(model))
    return config is not None and config.closed_form
