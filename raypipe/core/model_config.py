"""The configuration of a trial's model: ``model/name`` selects its class, and with it the parameters that there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Tag

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
from raypipe.core.own_config import OWN, Arguments, OwnCode


class OwnConfig(OwnCode, Network):
    """A network of one's own: ``Net(n_channels, n_times, n_outputs, sfreq, **args)``, see docs/models.md."""

    name: str
    """`file.py:Name` with a file beside the search space, `package.module:Name`, or a name that a package registers
    (entry point `raypipe.models`)."""
    args: Arguments = ()
    """Its arguments, searched as `model/args/NAME`."""


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
