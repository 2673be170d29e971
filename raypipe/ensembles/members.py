"""The fold models of chosen trials, read from a run and put together as one module."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from raypipe.core.errors import UserError
from raypipe.data.window_store import WindowStore
from raypipe.models.ensemble import EnsembleModule
from raypipe.storage.out_of_fold import unpack_tensors
from raypipe.storage.records import Member, digest
from raypipe.storage.run_store import RunStore


def ensemble_spec(
    run: RunStore,
    windows: WindowStore,
    members: Sequence[Member],
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
                "trial": member.trial,
                **({"epoch": member.epoch} if member.epoch else {}),
                "fold": fold,
                "weight": float(weight) / len(folds),
                "centre": 0.0,
                "scale": 1.0,
                "model": run.config(member.trial).model.model_dump(mode="json"),
            }
            for member, weight in zip(members, weights, strict=True)
            for fold in folds
        ],
    }
    return spec if rule is None else spec | {"rule": dict(rule)}


@dataclass(frozen=True)
class Soup:
    """Networks whose weights are means of members' networks, one a fold (`raypipe.ensembles.soup`)."""

    members: list[Member]
    """Ingredients: trials and snapshots that share a network and an initialisation."""
    folds: list[dict[str, torch.Tensor]]
    """By fold, tensors as `RunStore.weights` gives them."""
    student: bool = False
    """There is one network, which was trained to answer as the members do together (`distillation`)."""

    def save(self, run: RunStore) -> dict[str, Any]:
        """Write the weights to the run; the record of them that `load` takes."""
        from safetensors.torch import save

        files = {f"ensemble/soup-fold-{fold}.safetensors": save(tensors) for fold, tensors in enumerate(self.folds)}
        for name, data in files.items():
            run.folder.write(name, data)
        checksums = {name: digest(data) for name, data in files.items()}
        return {**listed(self.members), "files": checksums, **({"student": True} if self.student else {})}

    @classmethod
    def load(cls, run: RunStore, record: Mapping[str, Any]) -> Soup:
        """Read what `save` wrote.

        Raises
        ------
        ValueError
            A file is missing, damaged or of another ensemble.
        """
        folds = []
        for name, expected in record["files"].items():
            if not run.folder.exists(name) or digest(data := run.folder.read(name)) != expected:
                raise ValueError(f"{name} is missing, or its checksum differs")
            folds.append(unpack_tensors(data))
        return cls(unlisted(record), folds, bool(record.get("student", False)))


def listed(members: Sequence[Member]) -> dict[str, list[int]]:
    """Members as a record's JSON has them: `trials`, and `epochs` where any is a snapshot."""
    epochs = {"epochs": [member.epoch for member in members]} if any(member.epoch for member in members) else {}
    return {"trials": [member.trial for member in members], **epochs}


def unlisted(record: Mapping[str, Any]) -> list[Member]:
    """Read what `listed` made; raises what a damaged record deserves."""
    trials = [int(number) for number in record["trials"]]
    epochs = [int(epoch) for epoch in record.get("epochs") or [0] * len(trials)]
    return [Member(*pair) for pair in zip(trials, epochs, strict=True)]


def fold_tensors(run: RunStore, member: Member, fold: int) -> dict[str, torch.Tensor]:
    """Weights of a member's fold model.

    Raises
    ------
    UserError
        They are missing or damaged.
    """
    try:
        return run.weights(member.trial, fold, member.epoch)
    except FileNotFoundError:
        raise UserError(
            f"{run.where}: {member} lacks the weights of fold {fold}; restore the run from a copy"
        ) from None


def _filled(
    spec: dict[str, Any], networks: Sequence[Mapping[str, torch.Tensor]]
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A spec with its members' `centre` and `scale`, and the state of `EnsembleModule`."""
    state: dict[str, torch.Tensor] = {}
    for place, (member, tensors) in enumerate(zip(spec["members"], networks, strict=True)):
        member["centre"], member["scale"] = float(tensors["target.centre"]), float(tensors["target.scale"])
        for name, tensor in tensors.items():
            if name.startswith("model."):
                state[f"members.{place}.{name.removeprefix('model.')}"] = tensor
    return spec, state


def read_soup(
    run: RunStore, windows: WindowStore, like: Member, networks: Mapping[int, Mapping[str, torch.Tensor]]
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """As `read_members`, of networks like those of a member, by fold, weighted alike."""
    spec = ensemble_spec(run, windows, [like], [1.0])
    members = [member | {"weight": 1.0 / len(networks)} for member in spec["members"] if member["fold"] in networks]
    return _filled(spec | {"members": members}, [networks[member["fold"]] for member in members])


def read_members(
    run: RunStore,
    windows: WindowStore,
    members: Sequence[Member],
    weights: Sequence[float],
    rule: Mapping[str, Any] | None = None,
    soup: Soup | None = None,
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read the fold models of members: the complete spec, and the state of `EnsembleModule`.

    Where there is a soup, its networks stand for those of the members.

    Raises
    ------
    UserError
        A weights file is missing.
    """
    if soup is not None:
        return read_soup(run, windows, soup.members[0], dict(enumerate(soup.folds)))
    spec = ensemble_spec(run, windows, members, weights, rule)
    return _filled(spec, [fold_tensors(run, member, fold) for member in members for fold in range(run.folds.n_folds)])


def build_module(spec: dict[str, Any], state: dict[str, torch.Tensor]) -> EnsembleModule:
    """The module of a spec and its weights, in evaluation mode; the caller's random stream is left as it was."""
    with torch.random.fork_rng(devices=[]):
        module = EnsembleModule(spec)
    module.load_state_dict(state)
    return module.eval().requires_grad_(False)


def most_members(run: RunStore, members: Sequence[Member], max_members: int | None, max_mb: float | None) -> int | None:
    """How many of these members may be shipped within a number of networks and of megabytes; None for all.

    Any choice among the members fits: the largest of them are counted.

    Raises
    ------
    UserError
        Not even one member fits.
    """
    n_folds, most = run.folds.n_folds, len(members)
    if max_members is not None:
        most = min(most, max_members // n_folds)
        if most < 1:
            raise UserError(f"--max-members {max_members}: a trial has {n_folds} networks, one a fold; allow {n_folds}")
    if max_mb is not None:
        sizes = sorted((_megabytes(run, member.trial) for member in members), reverse=True)
        fits = sum(total <= max_mb for total in itertools.accumulate(sizes))
        if fits < 1:
            raise UserError(f"--max-mb {max_mb:g}: the {n_folds} networks of a trial take up to {sizes[0]:.2f} MB")
        most = min(most, fits)
    return most if most < len(members) else None


def _megabytes(run: RunStore, number: int) -> float:
    folds = (run.weights(number, fold) for fold in range(run.folds.n_folds))
    return float(sum(t.numel() * t.element_size() for tensors in folds for t in tensors.values())) / 1e6
