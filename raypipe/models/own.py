"""Networks of users: classes from their files or from packages, as a `Network`.

Micro-batches divide the whole of such a network, unless it has BatchNorm, whose statistics need the whole batch. Its
dropout masks are drawn by torch while it computes, not beforehand (see `Network.draws_itself`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from raypipe.core.errors import UserError
from raypipe.core.own_calls import network_arguments
from raypipe.core.own_code import load_object
from raypipe.models.network import DropoutMasks, Network

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class OwnNetwork(Network):
    """Wrap a user's network, which maps normalised windows (B, C, T) to (B, n_outputs).

    Parameters
    ----------
    n_channels, n_times, n_outputs, norm
        See `Network`.
    sfreq
        Sampling rate in Hz.
    name, code, args
        See `raypipe.core.model_config.OwnConfig`.

    Raises
    ------
    UserError
        There is no such class, it is no `torch.nn.Module`, or it does not take these arguments.
    """

    draws_itself = True

    def __init__(
        self,
        n_channels: int,
        n_times: int,
        n_outputs: int,
        *,
        sfreq: float,
        name: str,
        code: str,
        args: Mapping[str, Any],
        norm: str,
    ) -> None:
        super().__init__(n_channels, n_times, n_outputs, norm=norm)
        self.name = name
        made = load_object(name, code, "model/name")
        if not (isinstance(made, type) and issubclass(made, nn.Module)):
            raise UserError(f"{name}: no class of torch.nn.Module, but {_described(made)}")
        sizes = {"n_channels": n_channels, "n_times": n_times, "n_outputs": n_outputs, "sfreq": sfreq}
        self.network: nn.Module = made(**network_arguments(made, name, sizes, args))
        if any(isinstance(p, nn.parameter.UninitializedParameter) for p in self.network.parameters()):
            with torch.no_grad():
                self.network.eval()(torch.zeros(2, n_channels, n_times))  # layers that are lazy get their sizes
            self.network.train()
        self.whole_batches = any(isinstance(module, BATCH_NORMS) for module in self.network.modules())

    def dropout_plan(self, batch: int) -> list[tuple[int, float]]:
        """Return no masks: the network draws its own."""
        return []

    def front(self, x: Tensor, *, prepared: bool = False, masks: DropoutMasks | None = None) -> Tensor:
        """Normalise; run a network with BatchNorm, which needs the whole batch."""
        y_BCT = x if prepared else self.prepare(x)
        return self._run(y_BCT) if self.whole_batches else y_BCT

    def back(self, y: Tensor, masks: DropoutMasks | None = None) -> Tensor:
        """Run a network without BatchNorm on normalised windows; return the outputs of one that has run."""
        return y if self.whole_batches else self._run(y)

    def _run(self, y_BCT: Tensor) -> Tensor:
        out = self.network(y_BCT)
        wanted = (len(y_BCT), self.n_outputs)
        if not isinstance(out, Tensor) or out.shape != wanted:
            raise ValueError(f"windows {tuple(y_BCT.shape)} gave {_described(out)}, not a tensor {wanted}")
        return out


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
