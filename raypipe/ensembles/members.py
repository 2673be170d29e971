"""Read the fold models of members from a run, and build one module of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from raypipe.core.errors import UserError
from raypipe.core.foreign_code import code_errors
from raypipe.core.own_code import known_source
from raypipe.core.record import FrozenModel
from raypipe.core.text import short_line
from raypipe.data.window_store import WindowStore
from raypipe.models.ensemble import EnsembleModule
from raypipe.storage.out_of_fold import unpack_tensors
from raypipe.storage.records import Member, digest
from raypipe.storage.run_store import RunStore

CPU = torch.device("cpu")
Tensors = Mapping[str, torch.Tensor]
Spec = dict[str, Any]
"""Describes the networks of an `EnsembleModule`."""


class MergedRecord(FrozenModel):
    """`MergedNetworks` in ``ensemble.json``."""

    trials: list[int]
    epochs: list[int]
    """Epoch of each member that is a snapshot; 0 for the trial's best epoch."""
    files: dict[str, str]
    """SHA-256 of each fold's weights, by name in the run."""
    student: bool


@dataclass(frozen=True)
class MergedNetworks:
    """Networks that replace those of the members: one for each fold, or a single one that was distilled."""

    members: list[Member]
    """Members whose weights were averaged (`raypipe.ensembles.soup`), or whose configuration the network has."""
    folds: list[dict[str, torch.Tensor]]
    """Tensors of each network, as `RunStore.weights` returns them."""
    distilled: bool = False
    """There is one network, trained to predict what the ensemble predicts (`raypipe.ensembles.distillation`)."""

    def save(self, run: RunStore) -> MergedRecord:
        """Write the weights to the run; return the record that `load` takes."""
        from safetensors.torch import save

        files = {f"ensemble/soup-fold-{fold}.safetensors": save(tensors) for fold, tensors in enumerate(self.folds)}
        for name, data in files.items():
            run.folder.write(name, data)
        return MergedRecord(
            trials=[member.trial for member in self.members],
            epochs=[member.epoch for member in self.members],
            files={name: digest(data) for name, data in files.items()},
            student=self.distilled,
        )

    @classmethod
    def load(cls, run: RunStore, record: MergedRecord) -> MergedNetworks:
        """Read what `save` wrote.

        Raises
        ------
        ValueError
            A file is missing, damaged or of another ensemble.
        """
        folds = []
        for name, expected in record.files.items():
            if not run.folder.exists(name) or digest(data := run.folder.read(name)) != expected:
                raise ValueError(f"{name} is missing, or its checksum differs")
            folds.append(unpack_tensors(data))
        members = [Member(*pair) for pair in zip(record.trials, record.epochs, strict=True)]
        return cls(members, folds, record.student)


# From a run to a module


def member_windows(run: RunStore, windows: WindowStore, member: Member) -> WindowStore:
    """Return the windows of the store that a member was trained on."""
    return windows.of(run.config(member.trial).data.store)


def members_by_store(run: RunStore, members: Sequence[Member]) -> dict[str, list[int]]:
    """Return the indices of members by the store that they were trained on; its name is empty for a single store."""
    found: dict[str, list[int]] = {}
    for index, member in enumerate(members):
        found.setdefault(run.config(member.trial).data.store, []).append(index)
    return found


def read_members(
    run: RunStore,
    windows: WindowStore,
    members: Sequence[Member],
    weights: Sequence[float],
    rule: Mapping[str, Any] | None = None,
    merged: MergedNetworks | None = None,
    calibration: Mapping[str, Any] | None = None,
) -> tuple[Spec, dict[str, torch.Tensor]]:
    """Read the fold models of members, or the networks that replace them.

    Parameters
    ----------
    windows
        Windows of the store that all of them were trained on.

    Returns
    -------
    spec
        As `EnsembleModule` takes it.
    state
        Its weights.

    Raises
    ------
    UserError
        A weights file is missing or damaged.
    """
    extra = {} if calibration is None else {"calibration": dict(calibration)}
    if merged is not None:
        spec, state = merged_spec(run, windows, merged.members[0], dict(enumerate(merged.folds)))
        return spec | extra, state
    spec = ensemble_spec(run, windows, members, weights, rule) | extra
    return _complete(spec, [fold_tensors(run, member, fold) for member in members for fold in range(run.folds.n_folds)])


def merged_spec(
    run: RunStore, windows: WindowStore, like: Member, networks: Mapping[int, Tensors]
) -> tuple[Spec, dict[str, torch.Tensor]]:
    """Return spec and state of networks by fold that have the configuration of a member and equal weights."""
    spec = ensemble_spec(run, windows, [like], [1.0])
    members = [member | {"weight": 1.0 / len(networks)} for member in spec["members"] if member["fold"] in networks]
    return _complete(spec | {"members": members}, [networks[member["fold"]] for member in members])


def ensemble_spec(
    run: RunStore,
    windows: WindowStore,
    members: Sequence[Member],
    weights: Sequence[float],
    rule: Mapping[str, Any] | None = None,
) -> Spec:
    """Return the description of fold models that `EnsembleModule` takes; `centre` and `scale` are not filled in."""
    folds = range(run.folds.n_folds)
    spec = {
        "kind": run.info.kind,
        "n_channels": windows.n_channels,
        "n_times": windows.crop_samples,
        "n_outputs": windows.n_outputs,
        "sfreq": windows.sfreq,
        "stored": windows.dtype,
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


def fold_tensors(run: RunStore, member: Member, fold: int) -> dict[str, torch.Tensor]:
    """Read the weights of a member's fold model.

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


def _complete(spec: Spec, networks: Sequence[Tensors]) -> tuple[Spec, dict[str, torch.Tensor]]:
    """Fill in `centre` and `scale` of each member, and return the spec with the state of its module."""
    state: dict[str, torch.Tensor] = {}
    for number, (member, tensors) in enumerate(zip(spec["members"], networks, strict=True)):
        member["centre"], member["scale"] = tensors["target.centre"].tolist(), tensors["target.scale"].tolist()
        for name, tensor in tensors.items():
            if name.startswith("model."):
                state[f"members.{number}.{name.removeprefix('model.')}"] = tensor
    return spec, state


def build_module(spec: Spec, state: dict[str, torch.Tensor], device: torch.device = CPU) -> EnsembleModule:
    """Build the module of a spec and its weights on a device, in evaluation mode, without a change of random states.

    Raises
    ------
    UserError
        The code of a user's network raises an error.
    """
    with torch.random.fork_rng(devices=[]), own_errors(spec["members"]):
        module = EnsembleModule(spec)
    module.load_state_dict(state)
    return module.eval().requires_grad_(False).to(device)


@contextmanager
def own_errors(members: Iterable[Mapping[str, Any]]) -> Iterator[None]:
    """Run the block, which runs the code of users' networks: whatever it raises becomes one line.

    Parameters
    ----------
    members
        Networks as a spec has them; of those of raypipe, and of programs, errors are passed on.

    Raises
    ------
    UserError
        The code raises an error.
    """
    models = [member["model"] for member in members if "code" in member["model"] and member.get("program") is None]
    if not models:
        yield
        return
    source = known_source(models[0]["code"])
    with code_errors(short_line(models[0]["name"]), source.name if source else ""):
        yield


# Limits


def count_members_within(
    run: RunStore, members: Sequence[Member], max_networks: int | None, max_mb: float | None
) -> int | None:
    """Return how many of these members may be used within a number of networks and of megabytes; None for all.

    Any selection of that many fits, because the largest members are counted.

    Raises
    ------
    UserError
        Not even one member fits.
    """
    n_folds, count = run.folds.n_folds, len(members)
    if max_networks is not None:
        count = min(count, max_networks // n_folds)
        if count < 1:
            raise UserError(
                f"--max-members {max_networks}: a trial has {n_folds} networks, one per fold; allow {n_folds}"
            )
    if max_mb is not None:
        sizes = sorted((_megabytes(run, member.trial) for member in members), reverse=True)
        fitting = sum(total <= max_mb for total in itertools.accumulate(sizes))
        if fitting < 1:
            raise UserError(f"--max-mb {max_mb:g}: the {n_folds} networks of a trial take up to {sizes[0]:.2f} MB")
        count = min(count, fitting)
    return count if count < len(members) else None


def _megabytes(run: RunStore, trial: int) -> float:
    folds = (run.weights(trial, fold) for fold in range(run.folds.n_folds))
    return float(sum(t.numel() * t.element_size() for tensors in folds for t in tensors.values())) / 1e6
