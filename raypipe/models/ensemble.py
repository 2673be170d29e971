"""Networks and how they are combined as one module: what ensembles are scored with, what is shipped.

This file needs torch (2.2 or later) and its neighbours combine.py, conformer.py, readout.py, stacked.py, stem.py,
tcn.py and vit.py: submissions carry them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

if __package__:
    from raypipe.models.combine import combine
    from raypipe.models.conformer import Conformer, kernel_sizes
    from raypipe.models.stacked import Stacks
    from raypipe.models.tcn import Tcn
    from raypipe.models.vit import ViT
else:  # in a submission, where the files lie side by side
    from combine import combine  # type: ignore[import-not-found,no-redef,unused-ignore]
    from conformer import Conformer, kernel_sizes  # type: ignore[import-not-found,no-redef,unused-ignore]
    from stacked import Stacks  # type: ignore[import-not-found,no-redef,unused-ignore]
    from tcn import Tcn  # type: ignore[import-not-found,no-redef,unused-ignore]
    from vit import ViT  # type: ignore[import-not-found,no-redef,unused-ignore]


def _conformer(n_channels: int, n_times: int, n_outputs: int, sfreq: float, **options: Any) -> nn.Module:
    kernel, pool, stride = kernel_sizes(sfreq, options.pop("kernels"))
    options.pop("patch", None)
    return Conformer(n_channels, n_times, n_outputs, kernel=kernel, pool=pool, stride=stride, **options)


def _tcn(n_channels: int, n_times: int, n_outputs: int, sfreq: float, **options: Any) -> nn.Module:
    used = {name: options[name] for name in ("filters", "depth", "dropout", "norm", "bins")}
    used["variance"] = options.get("variance", False)  # runs of raypipe 0.1 have none
    return Tcn(n_channels, n_times, n_outputs, **used)


def _vit(n_channels: int, n_times: int, n_outputs: int, sfreq: float, **options: Any) -> nn.Module:
    names = ("patch", "depth", "heads", "expansion", "dropout", "norm")
    return ViT(n_channels, n_times, n_outputs, width=options["filters"], **{name: options[name] for name in names})


NETWORKS: dict[str, Callable[..., nn.Module]] = {"conformer": _conformer, "tcn": _tcn, "vit": _vit}
"""Builders by the name in a trial's ``model/name``; its other ``model/`` parameters are their keywords."""


class EnsembleModule(nn.Module):
    """Networks and how they are combined: maps windows (B, C, T) to one answer.

    A member's answer is its output times `scale` plus `centre` (regression: target units) or its softmax (classes).
    Networks of a regression may give a second column, the variance of their answer.
    Without a rule, the answer is the members' weighted mean. A rule (`combine`) was fitted on answers of single fold
    models, so it is applied to the models of each fold, and the answers of the folds are averaged.

    Parameters
    ----------
    spec
        As a bundle's and a submission's JSON give it: ``kind`` (`regression` or `classification`), ``n_channels``,
        ``n_times``, ``n_outputs``, ``sfreq`` in Hz, and ``members``: for each its ``trial``, ``fold``, ``weight``,
        ``centre``, ``scale`` and ``model`` (the ``model/`` part of the trial's configuration). With a ``rule``, members
        are in order of trial, then fold, and every trial has the same folds.

    Notes
    -----
    A new module has random weights; `load_state_dict` (strict) gives it the trained ones. Keys: ``members.<i>.*``.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__()
        if spec["kind"] not in ("regression", "classification") or not spec["members"]:
            raise ValueError(f"no ensemble: kind {spec['kind']!r}, {len(spec['members'])} members")
        self.classes = spec["kind"] == "classification"
        self.shape = (int(spec["n_channels"]), int(spec["n_times"]))
        networks = []
        for member in spec["members"]:
            options = dict(member["model"])
            build = NETWORKS[options.pop("name")]
            networks.append(build(*self.shape, int(spec["n_outputs"]), float(spec["sfreq"]), **options))
        self.members = nn.ModuleList(networks)
        self.rule: Mapping[str, Any] | None = spec.get("rule")
        self.n_folds = len({int(member["fold"]) for member in spec["members"]})
        if self.rule is not None and len(networks) % self.n_folds:
            raise ValueError(f"{len(networks)} members are not {self.n_folds} folds of each trial")
        self.stacks = Stacks(self.members)
        self.n_outputs = int(spec["n_outputs"])
        self.tells = [bool(getattr(each, "bins", 0) or getattr(each, "variance", False)) for each in networks]
        self.weights: list[float] = [float(member["weight"]) for member in spec["members"]]
        self.centres: list[float] = [float(member["centre"]) for member in spec["members"]]
        self.scales: list[float] = [float(member["scale"]) for member in spec["members"]]

    def answers(self, x_BCT: Tensor) -> Tensor:
        """Each member's answers (members, B, n_outputs) to windows in microvolts (B, C, T)."""
        return self.told(x_BCT)[0]

    def told(self, x_BCT: Tensor) -> tuple[Tensor, Tensor | None]:
        """Each member's answers, and the variances of them (members, B) that it tells, in squared target units.

        A member that tells none has zeros; without any that does, there are no variances.
        """
        raws = self.stacks(x_BCT) if not torch.is_grad_enabled() and not self.training else None
        answers, variances = [], []
        for place, (network, centre, scale) in enumerate(zip(self.members, self.centres, self.scales)):  # noqa: B905 - 3.9
            raw_BO = network(x_BCT) if raws is None else raws[place]
            if self.classes:
                answers.append(torch.softmax(raw_BO, dim=1))
                continue
            answers.append(raw_BO[:, : self.n_outputs] * scale + centre)
            variances.append(raw_BO[:, 1] * scale**2 if self.tells[place] else torch.zeros_like(raw_BO[:, 0]))
        return torch.stack(answers), torch.stack(variances) if any(self.tells) else None

    def by_fold(self, members_MB: Tensor) -> Tensor:
        """Sort what members give, (members, B, ...), by fold: (folds, trials, B, ...)."""
        return members_MB.view(-1, self.n_folds, *members_MB.shape[1:]).transpose(0, 1)

    def forward(self, x_BCT: Tensor) -> Tensor:
        """Map windows in microvolts (B, C, T) to the ensemble's answers (B, n_outputs)."""
        answers_MBO, variances_MB = self.told(x_BCT)
        if self.rule is not None:
            answers_FTBO = self.by_fold(answers_MBO)
            variances_F = [None] * self.n_folds if variances_MB is None else list(self.by_fold(variances_MB))
            folds = [combine(self.rule, answers_FTBO[fold], told) for fold, told in enumerate(variances_F)]
            return torch.stack(folds).mean(0)
        weights_M = torch.tensor(self.weights, dtype=answers_MBO.dtype, device=answers_MBO.device)
        return torch.einsum("m,mbo->bo", weights_M, answers_MBO)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EnsembleModule:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.stacks.forget()
        return self

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        """Take up weights; see `torch.nn.Module.load_state_dict`."""
        self.stacks.forget()
        return super().load_state_dict(*args, **options)


class ScorerModule(nn.Module):
    """An ensemble as the challenge's scorer asks for it: one number a window, (B, 1).

    The value itself for regression, the second class's probability for two classes.

    Parameters
    ----------
    ensemble
        What answers.
    input_scale
        Factor that turns the scorer's unit into microvolts: 1e6 for volts, which MNE gives.
    """

    def __init__(self, ensemble: EnsembleModule, input_scale: float) -> None:
        super().__init__()
        self.ensemble = ensemble
        self.input_scale = input_scale

    def forward(self, x_BCT: Tensor) -> Tensor:
        """Map windows (B, C, T) to (B, 1)."""
        y_BO: Tensor = self.ensemble(x_BCT * self.input_scale)
        return y_BO[:, -1:]
