"""Networks of one architecture evaluated as one: parameters stacked, stems combined into one convolution.

This file needs torch (2.2 or later) and its neighbours conformer.py and network.py: submissions contain them unchanged.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

if __package__:
    from raypipe.models.conformer import Conformer
    from raypipe.models.network import normalise
else:  # in a submission, where the files are in one folder
    from conformer import Conformer  # type: ignore[import-not-found,no-redef,unused-ignore]
    from network import normalise  # type: ignore[import-not-found,no-redef,unused-ignore]

MAX_BATCH = 8
"""Largest batch that is stacked. For larger ones a single network keeps a core busy, and its own stem is faster."""


class _Back(nn.Module):
    """The part of a Conformer after BatchNorm."""

    def __init__(self, network: Conformer) -> None:
        super().__init__()
        self.network = network

    def forward(self, y_BFT: Tensor) -> Tensor:
        return self.network.back(y_BFT)


class ConformerStack:
    """Conformers of one architecture, in evaluation mode.

    Stem and BatchNorm of all networks are one convolution. Its kernels are computed once, since they do not depend on
    the windows. The rest is vectorised over the networks (`torch.func.vmap`).
    """

    def __init__(self, networks: Sequence[Conformer]) -> None:
        self.norm, self.n = networks[0].norm, len(networks)
        kernels, biases = zip(*map(_fused_stem, networks))  # noqa: B905 - runs on 3.9 too
        self.kernels, self.biases = torch.cat(kernels), torch.cat(biases)
        shell = copy.deepcopy(networks[0]).eval()
        for name in ("stem", "batch_norm"):
            delattr(shell, name)
        self._back = _Back(shell)
        states = [dict(network.named_parameters()) for network in networks]
        names = [name for name in states[0] if not name.startswith(("stem.", "batch_norm."))]
        self._parameters = {f"network.{name}": torch.stack([s[name].detach() for s in states]) for name in names}

    def __call__(self, x_BCT: Tensor) -> Tensor:
        """Map windows (B, C, T) to the networks' outputs (M, B, n_outputs), or (M, B, 2) with variances."""
        y_BXT = F.conv1d(normalise(x_BCT, self.norm), self.kernels, self.biases)

        def back(parameters: dict[str, Tensor], y_BFT: Tensor) -> Any:
            return torch.func.functional_call(self._back, parameters, (y_BFT,))

        out: Tensor = torch.func.vmap(back, in_dims=(0, 1))(
            self._parameters, y_BXT.view(len(x_BCT), self.n, -1, y_BXT.shape[2])
        )
        return out


def _fused_stem(network: Conformer) -> tuple[Tensor, Tensor]:
    """Return stem and BatchNorm as one 1-D convolution: kernel (F, C, K) and bias (F,)."""
    stem, norm = network.stem, network.batch_norm
    w_FK, v_GFC = stem.temporal.weight.detach()[:, 0, 0], stem.spatial.weight.detach()[..., 0]
    assert stem.temporal.bias is not None and stem.spatial.bias is not None
    assert norm.running_mean is not None and norm.running_var is not None
    bias_G = stem.spatial.bias.detach() + v_GFC.sum(2) @ stem.temporal.bias.detach()
    scale_G = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
    kernel_GCK = torch.einsum("gfc,fk->gck", v_GFC, w_FK) * scale_G[:, None, None]
    return kernel_GCK, (bias_G - norm.running_mean) * scale_G + norm.bias.detach()


class NetworkStacks:
    """All networks of an ensemble, those of one architecture stacked; built from the weights at the first call.

    Parameters
    ----------
    networks
        Live modules; call `forget` when their weights or their device change.
    """

    def __init__(self, networks: nn.ModuleList) -> None:
        self._networks = [networks]  # a module that has `self` as attribute would otherwise register them again
        self._stacks: list[tuple[list[int], ConformerStack]] | None = None

    def forget(self) -> None:
        """Drop the stacks, whose weights have changed."""
        self._stacks = None

    def __deepcopy__(self, memo: dict[int, Any]) -> NetworkStacks:
        return NetworkStacks(copy.deepcopy(self._networks[0], memo))

    def __call__(self, x_BCT: Tensor) -> list[Tensor] | None:
        """Return the outputs (B, n_outputs) of each network; None where stacking is slower or not possible."""
        networks = [network for network in self._networks[0] if isinstance(network, Conformer)]
        if len(x_BCT) > MAX_BATCH or len(networks) < 2 or len(networks) < len(self._networks[0]):
            return None
        if self._stacks is None:
            self._stacks = _stacks_of(networks)
        out: list[Tensor] = [x_BCT] * len(networks)
        for places, stack in self._stacks:
            for place, raw_BO in zip(places, stack(x_BCT)):  # noqa: B905 - runs on 3.9 too
                out[place] = raw_BO
        return out


def _stacks_of(networks: Sequence[Conformer]) -> list[tuple[list[int], ConformerStack]]:
    """Group networks by architecture; return the positions of each group and its stack."""
    groups: dict[Any, list[int]] = {}
    for place, network in enumerate(networks):
        groups.setdefault(_architecture(network), []).append(place)
    return [(places, ConformerStack([networks[place] for place in places])) for places in groups.values()]


def _architecture(network: Conformer) -> tuple[Any, ...]:
    """Return a key that is equal for networks that can be stacked: all parameter shapes and the other options."""
    shapes = tuple((name, tuple(tensor.shape)) for name, tensor in network.named_parameters())
    heads = tuple(block.heads for block in network.blocks)
    sizes = (network.pool.kernel_size, network.pool.stride, network.n_times)
    return (shapes, network.norm, network.summary, heads, (network.bins, network.variance), sizes)
