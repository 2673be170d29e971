"""The networks of a bundle whose members take windows of different stores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raypipe.ensembles.members import build_module, own_errors
from raypipe.models.combine import calibrate
from raypipe.models.ensemble import EnsembleModule, combine_models
from raypipe.packaging.bundle_info import BundleInfo
from raypipe.packaging.weights import Layout, weights_layout
from raypipe.training.transfer import to_device

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class StorePredictions:
    """Predictions of the networks of one store."""

    values: Floats
    """(networks, N, outputs)."""
    variances: Floats | None
    """(networks, N); None where none predicts any."""

    def select(self, rows: NDArray[np.int64]) -> StorePredictions:
        """Return the predictions of some windows, in the order of `rows`."""
        return StorePredictions(self.values[:, rows], None if self.variances is None else self.variances[:, rows])


class StoreModules:
    """The networks of each store, and what combines them.

    Parameters
    ----------
    info
        Record of the bundle, with recipes.
    tensors
        Weights of all networks.
    device
        Where they are run.
    """

    def __init__(self, info: BundleInfo, tensors: Mapping[str, torch.Tensor], device: torch.device) -> None:
        self.info = info
        self._code = info.code_members()
        self.modules: dict[str, EnsembleModule] = {}
        for name, spec in info.networks_of_stores().items():
            own = {
                f"members.{number}.{tensor.removeprefix(f'members.{place}.')}": tensors[tensor]
                for number, place in enumerate(info.recipes[name].members)
                for tensor in tensors
                if tensor.startswith(f"members.{place}.")
            }
            self.modules[name] = build_module(spec.model_dump(mode="json"), own, device)

    @torch.no_grad()
    def predict(self, name: str, x_BCT: NDArray[Any]) -> StorePredictions:
        """Return the predictions of a store's networks for its windows, prepared as its recipe says.

        Raises
        ------
        UserError
            The code of a user's network raises an error.
        """
        module = self.modules[name]
        given = to_device(np.ascontiguousarray(x_BCT, dtype=np.float32), module.device)
        with own_errors(self._code):
            values_MBO, variances_MB = module.predict_members(given)
        return StorePredictions(values_MBO.cpu().numpy(), None if variances_MB is None else variances_MB.cpu().numpy())

    @torch.no_grad()
    def combine(self, found: Mapping[str, StorePredictions]) -> Floats:
        """Combine the predictions that each store's networks make of the same windows: (N, outputs)."""
        info = self.info
        n = next(iter(found.values())).values.shape[1]
        values_MNO = np.empty((len(info.members), n, info.n_outputs), np.float32)
        variances_MN = np.zeros((len(info.members), n), np.float32)
        for name, recipe in info.recipes.items():
            values_MNO[recipe.members] = found[name].values
            if (own := found[name].variances) is not None:
                variances_MN[recipe.members] = own
        predict_variance = any(each.variances is not None for each in found.values())
        combined_NO = combine_models(
            torch.from_numpy(values_MNO),
            torch.from_numpy(variances_MN) if predict_variance else None,
            [member.weight for member in info.members],
            info.rule,
            len({member.fold for member in info.members}),
        )
        if info.calibration is not None:
            combined_NO = calibrate(combined_NO, info.calibration.model_dump())
        return combined_NO.float().numpy()


def layout_of_stores(info: BundleInfo) -> Layout:
    """Return shape and type of the weights of all networks, numbered as the bundle's members."""
    layout: Layout = {}
    for name, spec in info.networks_of_stores().items():
        places = info.recipes[name].members
        for tensor, kind in weights_layout(spec).items():
            _, number, rest = tensor.split(".", 2)
            layout[f"members.{places[int(number)]}.{rest}"] = kind
    return layout
