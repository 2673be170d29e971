"""A weighted mean of networks as one module: what ensembles are scored with, what bundles and submissions hold.

This file needs torch (2.2 or later) and its neighbours conformer.py, readout.py, stem.py and tcn.py: submissions carry
them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

if __package__:
    from raypipe.models.conformer import Conformer, kernel_sizes
    from raypipe.models.tcn import Tcn
else:  # in a submission, where the files lie side by side
    from conformer import Conformer, kernel_sizes  # type: ignore[import-not-found,no-redef,unused-ignore]
    from tcn import Tcn  # type: ignore[import-not-found,no-redef,unused-ignore]


def _conformer(n_channels: int, n_times: int, n_outputs: int, sfreq: float, **options: Any) -> nn.Module:
    kernel, pool, stride = kernel_sizes(sfreq, options.pop("kernels"))
    return Conformer(n_channels, n_times, n_outputs, kernel=kernel, pool=pool, stride=stride, **options)


def _tcn(n_channels: int, n_times: int, n_outputs: int, sfreq: float, **options: Any) -> nn.Module:
    used = {name: options[name] for name in ("filters", "depth", "dropout", "norm", "bins")}
    return Tcn(n_channels, n_times, n_outputs, **used)


NETWORKS: dict[str, Callable[..., nn.Module]] = {"conformer": _conformer, "tcn": _tcn}
"""Builders by the name in a trial's ``model/name``; its other ``model/`` parameters are their keywords."""


class EnsembleModule(nn.Module):
    """Networks and their weights: maps windows (B, C, T) to the weighted mean of the members' answers.

    A member's answer is its output times `scale` plus `centre` (regression: target units) or its softmax (classes).

    Parameters
    ----------
    spec
        As a bundle's and a submission's JSON give it: ``kind`` (`regression` or `classification`), ``n_channels``,
        ``n_times``, ``n_outputs``, ``sfreq`` in Hz, and ``members``: for each its ``trial``, ``fold``, ``weight``,
        ``centre``, ``scale`` and ``model`` (the ``model/`` part of the trial's configuration).

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
        self.weights: list[float] = [float(member["weight"]) for member in spec["members"]]
        self.centres: list[float] = [float(member["centre"]) for member in spec["members"]]
        self.scales: list[float] = [float(member["scale"]) for member in spec["members"]]

    def answers(self, x_BCT: Tensor) -> Tensor:
        """Each member's answers (members, B, n_outputs) to windows in microvolts (B, C, T)."""
        answers = []
        for network, centre, scale in zip(self.members, self.centres, self.scales):  # noqa: B905 - runs on 3.9 too
            raw_BO = network(x_BCT)
            answers.append(torch.softmax(raw_BO, dim=1) if self.classes else raw_BO * scale + centre)
        return torch.stack(answers)

    def forward(self, x_BCT: Tensor) -> Tensor:
        """Map windows in microvolts (B, C, T) to the ensemble's answers (B, n_outputs)."""
        answers_MBO = self.answers(x_BCT)
        weights_M = torch.tensor(self.weights, dtype=answers_MBO.dtype, device=answers_MBO.device)
        return torch.einsum("m,mbo->bo", weights_M, answers_MBO)


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
