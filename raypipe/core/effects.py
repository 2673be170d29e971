"""Parameters that have no effect beside others, and how search spaces that draw such parameters are found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raypipe.core.metrics import Kind
from raypipe.core.model_config import is_closed_form
from raypipe.core.own_config import OWN

if TYPE_CHECKING:
    from raypipe.core.search_space import SearchSpace

N_DRAWS = 40
"""Configurations of a space that are drawn to find parameters without effect."""

LOSS_PARAMETERS = {
    "gamma": ("focal",),
    "beta": ("focal",),
    "delta": ("huber",),
    "width": ("kl",),
    "variance_power": ("nll",),
}
"""Parameters that only some losses use, with these losses."""
_SAM, _MIXUP = ("sam", "asam", "looksam", "msam"), ("mixup", "cmixup", "cutmix", "cutmix-channels")
_AUGMENT_PARAMETERS = {
    "noise": "noise",
    "gain": "amplitude",
    "shift": "time-shift",
    "dropped": "channel-dropout",
    "bandwidth": "band-stop",
    "phase": "fourier-surrogate",
}
_AUGMENT = (*_AUGMENT_PARAMETERS.values(), "sign-flip", OWN)
_SIMCLR: dict[str, tuple[str, ...]] = {"pretrain/name": ("simclr",)}

USED_WITH: dict[str, dict[str, tuple[str, ...]]] = {
    **{f"loss/{name}": {"loss/name": losses} for name, losses in LOSS_PARAMETERS.items()},
    "optim/cycles": {"optim/schedule": ("cyclic",)},
    **{f"model/{name}": {"model/bands": ("even", "log")} for name in ("low", "high", "n_bands")},
    "model/bands": {"model/predictors": ("band-power",)},
    "model/rate": {"model/predictors": ("time-courses",)},
    **{f"sam/{name}": {"sam/name": _SAM} for name in ("rho", "only")},
    **{f"sam/{name}": {"sam/name": ("looksam",)} for name in ("every", "alpha")},
    **{f"mixup/{name}": {"mixup/name": _MIXUP} for name in ("alpha", "prob", "other_subject")},
    "augment/prob": {"augment/name": _AUGMENT},
    **{f"augment/{name}": {"augment/name": (kind,)} for name, kind in _AUGMENT_PARAMETERS.items()},
    "mixup/bandwidth": {"mixup/name": ("cmixup",)},
    "init/tune": {"init/name": ("pretrained",)},
    "init/layer_decay": {"init/name": ("pretrained",), "init/tune": ("full", "lora")},
    **{f"init/{name}": {"init/name": ("pretrained",), "init/tune": ("lora",)} for name in ("rank", "alpha")},
    **{f"pretrain/{name}": {"pretrain/name": ("mae",)} for name in ("mask", "decoder_width", "decoder_depth")},
    **{f"pretrain/{name}": _SIMCLR for name in ("temperature", "projection", "strength", "time_shift", "negatives")},
    "pretrain/weight": {**_SIMCLR, "pretrain/negatives": ("same-subject",)},
}
"""Parameters that have an effect only if others have one of the given values; `OWN` is any name of users' code."""
USED_BY_KIND: dict[str, Kind] = {
    **dict.fromkeys(("loss/beta", "loss/delta", "loss/width", "loss/variance_power"), "regression"),
    **dict.fromkeys(("model/bins", "model/variance", "target_scale", "shrink"), "regression"),
    **dict.fromkeys(("loss/smoothing", "loss/balanced"), "classification"),
}
"""Parameters that have an effect on one kind of target only."""
UNUSED_IN_PRETRAINING = (
    "sam/name", "augment/name", "mixup/name", "optim/ema", "loss/name", "sampling", "early_stop", "target_scale",
    "shrink", "precision",
)  # fmt: skip
"""Parameters of training with targets, which pretraining does not use."""
USED_IN_CLOSED_FORM = ("loss/balanced", "sampling", "shrink", "seed", "data/store")
"""Parameters beside those of the model that a model which is fitted in closed form uses."""


def why_unused(parameters: Mapping[Any, Any], name: str, kind: Kind | None = None) -> str | None:
    """Return what switches a parameter off, such as ``sam/name=none`` does ``sam/rho``; None if it has an effect.

    Parameters
    ----------
    parameters
        Values by name; those that are missing switch nothing off.
    name
        The parameter.
    kind
        Kind of the target, if it is known.
    """
    for other, values in USED_WITH.get(name, {}).items():
        given = parameters.get(other)
        if isinstance(given, str) and (OWN if ":" in given else given) not in values:
            return f"{other}={given}"
    model = {"name": parameters.get("model/name")}
    if is_closed_form(model) and not name.startswith("model/") and name not in USED_IN_CLOSED_FORM:
        return f"model/name={model['name']}"
    pretraining = parameters.get("pretrain/name", "none")
    if name in UNUSED_IN_PRETRAINING and isinstance(pretraining, str) and pretraining != "none":
        return f"pretrain/name={pretraining}"
    if kind is not None and USED_BY_KIND.get(name, kind) != kind:
        return f"a {kind} target"
    return None


def parameters_without_effect(space: SearchSpace, kind: Kind | None = None) -> str | None:
    """Return a line that names the parameters that a space draws though they have no effect; None if it draws none.

    Configurations are drawn at random from a fixed seed. A parameter has no effect if another one, or the kind of the
    target, switches it off, or if the space replaces what it draws by a constant.
    """
    from raypipe.core.parameters import flatten

    drawn = [(values, flatten(config)) for values, config in space.draw_with_values(N_DRAWS)]
    names = sorted({name for values, _ in drawn for name in values})
    found = [found for name in names if (found := _without_effect(name, drawn, kind))]
    return (
        f"{space.name}: drawn without effect: {'; '.join(found)}; draw them only where they are used" if found else None
    )


def _without_effect(
    name: str, drawn: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], kind: Kind | None
) -> str | None:
    """Return a parameter and why it has no effect in some draws (drawn values, all parameters); None if it has."""
    having = [(values[name], parameters) for values, parameters in drawn if name in values]
    reasons = [reason for _, parameters in having if (reason := why_unused(parameters, name, kind))]
    if reasons:
        return f"{name} ({len(reasons)} of {len(having)} draws: {', '.join(sorted(set(reasons)))})"
    chosen, used = {repr(value) for value, _ in having}, {repr(parameters.get(name)) for _, parameters in having}
    if len(chosen) > 1 and len(used) == 1:
        return f"{name} (a constant of the space replaces it)"
    return None
