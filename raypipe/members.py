"""The fold models of chosen trials, read from a run and put together as one module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from raypipe.errors import UserError
from raypipe.models.ensemble import EnsembleModule
from raypipe.store import RunStore
from raypipe.windows import WindowStore


def ensemble_spec(
    run: RunStore, windows: WindowStore, trials: Sequence[int], weights: Sequence[float]
) -> dict[str, Any]:
    """Describe an ensemble's networks as `EnsembleModule` takes them; `centre` and `scale` still at 0 and 1."""
    folds = range(run.folds.n_folds)
    return {
        "kind": run.info.kind,
        "n_channels": windows.n_channels,
        "n_times": windows.crop_samples,
        "n_outputs": windows.n_outputs,
        "sfreq": windows.sfreq,
        "members": [
            {
                "trial": number,
                "fold": fold,
                "weight": float(weight) / len(folds),
                "centre": 0.0,
                "scale": 1.0,
                "model": run.config(number).model.model_dump(mode="json"),
            }
            for number, weight in zip(trials, weights, strict=True)
            for fold in folds
        ],
    }


def read_members(
    run: RunStore, windows: WindowStore, trials: Sequence[int], weights: Sequence[float]
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read the fold models of trials: the complete spec, and the state of `EnsembleModule`.

    Raises
    ------
    UserError
        A weights file is missing.
    """
    spec = ensemble_spec(run, windows, trials, weights)
    state: dict[str, torch.Tensor] = {}
    for number, member in enumerate(spec["members"]):
        try:
            tensors = run.weights(member["trial"], member["fold"])
        except FileNotFoundError:
            raise UserError(
                f"{run.where}: trial {member['trial']} lacks the weights of fold {member['fold']}; restore the run "
                "from a copy"
            ) from None
        member["centre"], member["scale"] = float(tensors["target.centre"]), float(tensors["target.scale"])
        for name, tensor in tensors.items():
            if name.startswith("model."):
                state[f"members.{number}.{name.removeprefix('model.')}"] = tensor
    return spec, state


def build_module(spec: dict[str, Any], state: dict[str, torch.Tensor]) -> EnsembleModule:
    """The module of a spec and its weights, in evaluation mode; the caller's random stream is left as it was."""
    with torch.random.fork_rng(devices=[]):
        module = EnsembleModule(spec)
    module.load_state_dict(state)
    return module.eval().requires_grad_(False)
