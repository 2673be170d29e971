"""Networks and the rule that combines them as one module: used to score ensembles, and shipped in submissions.

This file needs torch (2.2 or later) and the other files of its folder that a submission contains, unchanged.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

if __package__:
    from raypipe.models.builders import build_network
    from raypipe.models.closed_form import ClosedForm
    from raypipe.models.combine import calibrate, combine
    from raypipe.models.network import Network
    from raypipe.models.stacked import NetworkStacks
else:  # in a submission, where the files are in one folder
    from builders import build_network  # type: ignore[import-not-found,no-redef,unused-ignore]
    from closed_form import ClosedForm  # type: ignore[import-not-found,no-redef,unused-ignore]
    from combine import calibrate, combine  # type: ignore[import-not-found,no-redef,unused-ignore]
    from network import Network  # type: ignore[import-not-found,no-redef,unused-ignore]
    from stacked import NetworkStacks  # type: ignore[import-not-found,no-redef,unused-ignore]


class EnsembleModule(nn.Module):
    """Networks and the rule that combines them: maps windows (B, C, T) to one prediction per window.

    A member's prediction is its output times `scale` plus `centre` (regression: in target units) or its softmax
    (classes). Networks of a regression may have a second output, the variance. Without a rule, the prediction is the
    members' weighted mean. A rule (see `combine`) is applied to the models of each fold, since it was fitted on
    predictions of one fold model per trial, and the results are averaged over the folds.

    Parameters
    ----------
    spec
        The JSON in a bundle or a submission: ``kind`` (`regression` or `classification`), ``n_channels``,
        ``n_times``, ``n_outputs``, ``sfreq`` in Hz, and ``members``: for each its ``trial``, ``fold``, ``weight``,
        ``centre``, ``scale`` (lists with one for each of several values) and ``model`` (the ``model/`` part of the
        trial's configuration). A user's network has the name of its ``program`` among the ``programs``
        (`raypipe.models.program`). Where the windows that it was trained on were ``stored`` as `float16`, all are
        rounded to that, for directions that an average reference empties hold rounding errors, and logarithms of them
        are large. With a ``rule``, members are in order of trial, then fold, and every trial has the
        same folds. A ``calibration`` (`combine.calibrate`) is applied to the ensemble's class probabilities.

    Raises
    ------
    ValueError
        The ``kind`` is unknown, there are no members, or with a rule, they are not all folds of each trial.

    Notes
    -----
    A new module has random weights; load the trained ones with `load_state_dict`. Keys: ``members.<i>.*``.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__()
        members = spec["members"]
        if spec["kind"] not in ("regression", "classification") or not members:
            raise ValueError(f"no ensemble: kind {spec['kind']!r}, {len(members)} members")
        self.classes = spec["kind"] == "classification"
        self.shape = (int(spec["n_channels"]), int(spec["n_times"]))
        self.n_outputs = int(spec["n_outputs"])
        self.rounds = spec.get("stored") == "float16"
        n_channels, n_times = self.shape
        sizes = {"n_channels": n_channels, "n_times": n_times, "n_outputs": self.n_outputs}
        programs = spec.get("programs") or {}
        networks = [
            build_network(
                member["model"], sfreq=float(spec["sfreq"]), program=programs.get(member.get("program")), **sizes
            )
            for member in members
        ]
        self.members = nn.ModuleList(networks)
        self.rule: Mapping[str, Any] | None = spec.get("rule")
        self.calibration: Mapping[str, Any] | None = spec.get("calibration")
        self.n_folds = len({int(member["fold"]) for member in members})
        if self.rule is not None and len(networks) % self.n_folds:
            raise ValueError(f"{len(networks)} members are not {self.n_folds} folds of each trial")
        self.stacks = NetworkStacks(self.members)
        self.features_like = _equal_features(networks, [member["model"] for member in members])
        self.predicts_variance = [network.predicts_variance for network in networks]
        self.weights: list[float] = [float(member["weight"]) for member in members]
        self.centres: list[float | list[float]] = [member["centre"] for member in members]
        self.scales: list[float | list[float]] = [member["scale"] for member in members]

    @property
    def device(self) -> torch.device:
        """Device of the members; those that are fitted in closed form have buffers only."""
        return next(itertools.chain(self.parameters(), self.buffers())).device

    def predict_members(self, x_BCT: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return each member's predictions (members, B, n_outputs), and their variances (members, B).

        Variances are in squared target units, and zero for members that predict none. They are None if no member does.
        """
        if self.rounds:
            x_BCT = _rounded(x_BCT)
        raws = self.stacks(x_BCT) if not torch.is_grad_enabled() and not self.training else None
        values, variances = [], []
        features: dict[int, Tensor] = {}
        for place, (network, centre, scale) in enumerate(zip(self.members, self.centres, self.scales)):  # noqa: B905 - 3.9
            like = self.features_like[place]
            if raws is not None:
                raw_BO = raws[place]
            elif like is None:
                raw_BO = network(x_BCT)
            else:
                assert isinstance(network, ClosedForm)
                if like not in features:
                    features[like] = network.front(x_BCT)
                raw_BO = network.back(features[like])
            if self.classes:
                values.append(torch.softmax(raw_BO, dim=1))
                continue
            values.append(raw_BO[:, : self.n_outputs] * _factor(scale, raw_BO) + _factor(centre, raw_BO))
            predicted = self.predicts_variance[place]
            spread = _factor(scale, raw_BO) ** 2 if predicted else 0.0
            variances.append(raw_BO[:, 1] * spread if predicted else torch.zeros_like(raw_BO[:, 0]))
        return torch.stack(values), torch.stack(variances) if any(self.predicts_variance) else None

    def forward(self, x_BCT: Tensor) -> Tensor:
        """Map windows in microvolts, or aligned ones, (B, C, T) to the ensemble's predictions (B, n_outputs)."""
        combined_BO = self.combine_members(x_BCT)
        return combined_BO if self.calibration is None else calibrate(combined_BO, self.calibration)

    def combine_members(self, x_BCT: Tensor) -> Tensor:
        """Return the ensemble's predictions (B, n_outputs) before they are calibrated."""
        values_MBO, variances_MB = self.predict_members(x_BCT)
        return combine_models(values_MBO, variances_MB, self.weights, self.rule, self.n_folds)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EnsembleModule:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.stacks.forget()
        return self

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        """Load weights; see `torch.nn.Module.load_state_dict`. Stacks of the old weights are dropped."""
        self.stacks.forget()
        return super().load_state_dict(*args, **options)


def combine_models(
    values_MBO: Tensor,
    variances_MB: Tensor | None,
    weights: Sequence[float],
    rule: Mapping[str, Any] | None,
    n_folds: int,
) -> Tensor:
    """Return the prediction (B, n_outputs) of fold models: their weighted mean, or the mean of a rule's over the folds.

    Parameters
    ----------
    values_MBO, variances_MB
        Predictions of the models in order of trial, then fold, and their variances, as `predict_members` returns them.
    weights
        (M,) shares of the models.
    rule
        Combines the models of each fold (`combine`); None for the weighted mean.
    n_folds
        Number of folds.
    """
    if rule is None:
        weights_M = torch.tensor(weights, dtype=values_MBO.dtype, device=values_MBO.device)
        return torch.einsum("m,mbo->bo", weights_M, values_MBO)
    values_FTBO = _by_fold(values_MBO, n_folds)
    variances_F = [None] * n_folds if variances_MB is None else list(_by_fold(variances_MB, n_folds))
    return torch.stack([combine(rule, values_FTBO[fold], variances_F[fold]) for fold in range(n_folds)]).mean(0)


def _rounded(x_BCT: Tensor) -> Tensor:
    """Round windows as a store of float16 does."""
    limit = torch.finfo(torch.float16).max
    return x_BCT.clamp(-limit, limit).half().to(x_BCT.dtype)


def _by_fold(members_MB: Tensor, n_folds: int) -> Tensor:
    """Arrange predictions (members, B, ...) by fold: (folds, trials, B, ...)."""
    return members_MB.view(-1, n_folds, *members_MB.shape[1:]).transpose(0, 1)


def _factor(values: float | list[float], like: Tensor) -> Any:
    """Return a number as it is, and one for each of several values as a tensor with the type and device of `like`."""
    return torch.tensor(values, dtype=like.dtype, device=like.device) if isinstance(values, list) else float(values)


def _equal_features(networks: Sequence[Network], models: Sequence[Mapping[str, Any]]) -> list[int | None]:
    """Return for each network the first one that has the same features of any window; None where they are its own.

    Folds of a model in closed form differ in their linear map only, unless something else is fitted.
    """
    first: dict[str, int] = {}
    return [
        first.setdefault(json.dumps(dict(model), sort_keys=True), place)
        if isinstance(network, ClosedForm) and network.has_fixed_features
        else None
        for place, (network, model) in enumerate(zip(networks, models))  # noqa: B905 - 3.9
    ]


class ScorerModule(nn.Module):
    """An ensemble with the output that the challenge's scorer expects: one number per window, (B, 1).

    It is the value for regression, and the second class's probability for two classes.

    Parameters
    ----------
    ensemble
        The ensemble.
    input_scale
        Factor from the scorer's unit to microvolts: 1e6 for volts, which MNE gives.
    """

    def __init__(self, ensemble: EnsembleModule, input_scale: float) -> None:
        super().__init__()
        self.ensemble = ensemble
        self.input_scale = input_scale

    def forward(self, x_BCT: Tensor) -> Tensor:
        """Map windows (B, C, T) to (B, 1)."""
        y_BO: Tensor = self.ensemble(x_BCT * self.input_scale)
        return y_BO[:, -1:]
