"""The fold models of chosen trials, read from a run and put together as one module."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from raypipe.errors import UserError
from raypipe.models.ensemble import EnsembleModule
from raypipe.store import RunStore
from raypipe.windows import WindowStore


def ensemble_spec(
    run: RunStore,
    windows: WindowStore,
    trials: Sequence[int],
    weights: Sequence[float],
    rule: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Describe an ensemble's networks as `EnsembleModule` takes them; `centre` and `scale` still at 0 and 1."""
    folds = range(run.folds.n_folds)
    spec = {
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
    return spec if rule is None else spec | {"rule": dict(rule)}


def read_members(
    run: RunStore,
    windows: WindowStore,
    trials: Sequence[int],
    weights: Sequence[float],
    rule: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read the fold models of trials: the complete spec, and the state of `EnsembleModule`.

    Raises
    ------
    UserError
        A weights file is missing.
    """
    spec = ensemble_spec(run, windows, trials, weights, rule)
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


def most_members(run: RunStore, trials: Sequence[int], max_members: int | None, max_mb: float | None) -> int | None:
    """How many of these trials may be shipped within a number of networks and of megabytes; None for all.

    Any choice among the trials fits: the largest of them are counted.

    Raises
    ------
    UserError
        Not even one trial fits.
    """
    n_folds, most = run.folds.n_folds, len(trials)
    if max_members is not None:
        most = min(most, max_members // n_folds)
        if most < 1:
            raise UserError(f"--max-members {max_members}: a trial has {n_folds} networks, one a fold; allow {n_folds}")
    if max_mb is not None:
        sizes = sorted((_megabytes(run, number) for number in trials), reverse=True)
        fits = sum(total <= max_mb for total in itertools.accumulate(sizes))
        if fits < 1:
            raise UserError(f"--max-mb {max_mb:g}: the {n_folds} networks of a trial take up to {sizes[0]:.2f} MB")
        most = min(most, fits)
    return most if most < len(trials) else None


def _megabytes(run: RunStore, number: int) -> float:
    folds = (run.weights(number, fold) for fold in range(run.folds.n_folds))
    return float(sum(t.numel() * t.element_size() for tensors in folds for t in tensors.values())) / 1e6
