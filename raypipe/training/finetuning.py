"""Training from a pretrained encoder: of all parameters, of the head alone, or of low-rank changes (LoRA)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from raypipe.core.config import InitConfig
from raypipe.core.errors import UserError
from raypipe.models.network import Encoder
from raypipe.training.optim import split_by_decay

NOT_TRANSFERRED = ("head.", "places.positions")
"""Tensors that are not taken from the encoder: the head, and the positions of the electrodes."""


class LowRank(nn.Module):
    """A weight plus a low-rank change (Hu et al. 2022, arXiv:2106.09685, eq. 3), which is zero at first."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.scale = alpha / rank
        self.down = nn.Parameter(torch.randn(rank, columns) / columns**0.5)
        self.up = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the changed weight."""
        return weight + self.scale * (self.up @ self.down)


def start_from(model: nn.Module, encoder: Mapping[str, Tensor], where: str = "--init") -> None:
    """Load the weights of a pretrained encoder; head and electrode positions stay the network's own.

    Raises
    ------
    UserError
        The encoder has other sizes; the message names what differs.
    """
    own = model.state_dict()
    transferred = {name: tensor for name, tensor in encoder.items() if not name.startswith(NOT_TRANSFERRED)}
    expected = {name for name in own if not name.startswith(NOT_TRANSFERRED)}
    if different := sorted(expected ^ transferred.keys()):
        raise UserError(
            f"{where}: the encoder and this network differ in '{different[0]}'; set model/name, model/depth and "
            "model/expansion as it was pretrained"
        )
    for name, tensor in transferred.items():
        if name == "stem.spatial.weight" and tensor.shape[2] != own[name].shape[2]:
            raise UserError(
                f"{where}: the encoder has {tensor.shape[2]} channels, these windows {own[name].shape[2]}; use "
                "model/name=vit, which works with any channels"
            )
        if tensor.shape != own[name].shape:
            raise UserError(
                f"{where}: the encoder's {name} is {tuple(tensor.shape)}, this network's {tuple(own[name].shape)}; set "
                "model/filters, model/patch and model/expansion as it was pretrained"
            )
    model.load_state_dict(own | transferred)


def initial_id(model: nn.Module) -> str:
    """Return the SHA-256 (16 digits) of the weights before the first step, which the members of a soup must share."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def has_lora(init: InitConfig) -> bool:
    """Return whether low-rank changes are trained."""
    return init.name != "none" and init.tune == "lora"


def choose_trained(model: nn.Module, init: InitConfig) -> None:
    """Freeze the parameters that `init` does not train, and add low-rank changes if it asks for them."""
    if init.name == "none" or init.tune == "full":
        return
    assert isinstance(model, Encoder)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("head."))
    if has_lora(init):
        for layer in model.blocks.modules():
            if isinstance(layer, nn.Linear):
                change = LowRank(layer.weight, init.rank, init.alpha).to(layer.weight.device)
                parametrize.register_parametrization(layer, "weight", change)


def keep_statistics(model: nn.Module, init: InitConfig) -> None:
    """Let a frozen network's BatchNorm normalise as it was pretrained; call this after ``model.train()``."""
    if isinstance(model, Encoder) and init.name != "none" and init.tune != "full":
        layer = model.batch_statistics()
        if layer is not None:
            layer.eval()


def parameter_groups(model: nn.Module, init: InitConfig) -> list[dict[str, Any]]:
    """Return the trained parameters by the factor of their learning rate (``rate``): 1 for the head, less below it.

    Those without weight decay have groups of their own; see `optim.split_by_decay`.
    """
    if init.name == "none":
        return split_by_decay(model, [{"params": [p for p in model.parameters() if p.requires_grad], "rate": 1.0}])
    assert isinstance(model, Encoder)
    depth = len(model.blocks)
    groups: dict[int, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        block = re.match(r"blocks\.(\d+)\.", name)
        below = 0 if name.startswith(("head.", "final_norm.")) else depth - int(block[1]) if block else depth + 1
        groups.setdefault(below, []).append(parameter)
    by_rate = [{"params": group, "rate": init.layer_decay**below} for below, group in sorted(groups.items())]
    return split_by_decay(model, by_rate)


def merge_lora(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a network's state with its low-rank changes merged into the weights.

    Other parametrizations, such as the weight norms of users' networks, stay.
    """
    out = dict(state)
    for path, layer in model.named_modules():
        if parametrize.is_parametrized(layer, "weight") and isinstance(layer.parametrizations.weight[0], LowRank):
            merged = f"{path}.parametrizations.weight."
            out = {name: tensor for name, tensor in out.items() if not name.startswith(merged)}
            with torch.no_grad():
                out[f"{path}.weight"] = layer.weight.detach().clone()
    return out
