"""Networks of users: classes from their files or from packages, as a `Network`.

Micro-batches divide the whole of such a network, unless a window's outputs depend on the others of its batch, as with
BatchNorm, or buffers change in a pass, as running statistics do. Its dropout masks are drawn by torch while it
computes, not beforehand (see `Network.draws_itself`). It gets copies of the windows, on which it may write.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from raypipe.core.errors import UserError
from raypipe.core.own_calls import network_arguments
from raypipe.core.own_code import load_object
from raypipe.models.network import DropoutMasks, Network

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_ROUNDING = 1e-2
"""Largest difference of outputs that should be equal, relative to their scale; TensorFloat32 rounds to 1e-3."""


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
        self._whole = True if any(isinstance(module, BATCH_NORMS) for module in self.network.modules()) else None

    def dropout_plan(self, batch: int) -> list[tuple[int, float]]:
        """Return no masks: the network draws its own."""
        return []

    def front(self, x: Tensor, *, prepared: bool = False, masks: DropoutMasks | None = None) -> Tensor:
        """Normalise; run a network that needs the whole batch."""
        y_BCT = x if prepared else self.prepare(x)
        return self._run(y_BCT) if self.needs_whole(y_BCT) else y_BCT

    def back(self, y: Tensor, masks: DropoutMasks | None = None) -> Tensor:
        """Run a network that needs no whole batch on normalised windows; return the outputs of one that has run."""
        return y if self._whole else self._run(y)

    def forward(self, x: Tensor, *, prepared: bool = False, dropout_M: Tensor | None = None) -> Tensor:
        """Map windows (B, C, T), or the result of `prepare`, to (B, n_outputs)."""
        return self._run(x if prepared else self.prepare(x))

    @torch.no_grad()
    def needs_whole(self, y_BCT: Tensor) -> bool:
        """Return whether a pass in training changes buffers, or a window's outputs depend on the others of its batch.

        Copies without dropout are asked for some windows together and apart. One that draws all the same counts as
        dependent, since the two cannot be compared; as does one whose outputs depend on a window's place.
        """
        if self._whole is None and len(y_BCT) == 1:
            self._whole = True
        if self._whole is None:
            some_BCT = y_BCT[:4]
            parts = some_BCT.tensor_split(2)
            together_BK, changed = self._trained_on(some_BCT)
            apart_BK = torch.cat([self._trained_on(part)[0] for part in parts])
            near = (apart_BK - together_BK).abs().max() <= _ROUNDING * (1.0 + together_BK.abs().max())
            self._whole = changed or not bool(near)
        return self._whole

    def _trained_on(self, y_BCT: Tensor) -> tuple[Tensor, bool]:
        """Return the outputs of a copy in training, and whether its buffers changed."""
        other = copy.deepcopy(self).train()
        for module in other.modules():
            if isinstance(module, DROPOUTS):
                module.eval()
        kind = y_BCT.device.type
        with torch.random.fork_rng([y_BCT.device] if kind == "cuda" else []), torch.autocast(kind, enabled=False):
            torch.manual_seed(0)
            out_BK = other._run(y_BCT)
        before, after = dict(self.network.named_buffers()), dict(other.network.named_buffers())
        return out_BK, before.keys() != after.keys() or any(not _equal(before[name], after[name]) for name in before)

    @contextmanager
    def copied_buffers(self) -> Iterator[None]:
        """Let the network write on copies of its buffers within the context, and have its own back after it."""
        kept = [(m, name, own) for m in self.network.modules() for name, own in m.named_buffers(recurse=False)]
        copies = {id(own): own.detach().clone() for _, _, own in kept}
        try:
            for module, name, own in kept:
                setattr(module, name, copies[id(own)])
            yield
        finally:
            for module, name, own in kept:
                setattr(module, name, own)

    def _run(self, y_BCT: Tensor) -> Tensor:
        out = self.network(y_BCT.clone())  # it may write on its input, which others use after it
        wanted = (len(y_BCT), self.n_outputs)
        if not isinstance(out, Tensor) or out.shape != wanted:
            raise ValueError(f"windows {tuple(y_BCT.shape)} gave {_described(out)}, not a tensor {wanted}")
        return out


def _equal(before: Tensor, after: Tensor) -> bool:
    """Return whether a buffer is as it was; NaN equals NaN."""
    same = before.shape == after.shape and before.dtype == after.dtype
    return same and bool(((before == after) | ((before != before) & (after != after))).all())


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
