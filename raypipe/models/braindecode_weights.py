"""Convert weights between `Conformer` and braindecode's EEGConformer, which is the same network with other names."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_LAYERS = {
    "stem.temporal": "patch_embedding.shallownet.0",
    "stem.spatial": "patch_embedding.shallownet.1",
    "batch_norm": "patch_embedding.shallownet.2",
    "pointwise": "patch_embedding.projection.0",
    "head.1": "fc.fc.0",
    "head.4": "fc.fc.3",
    "head.7": "final_layer",
}
_IN_BLOCK = {
    "norm1": "0.fn.0",
    "projection": "0.fn.1.projection",
    "norm2": "1.fn.0",
    "feed.0": "1.fn.1.0",
    "feed.3": "1.fn.1.3",
}
_STACKED = ("queries", "keys", "values")


def weights_to_braindecode(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the state of a `Conformer` to that of braindecode's EEGConformer of the same sizes (braindecode 1.8).

    That network does not normalise its windows: pass it the result of `normalise`.
    """
    out: dict[str, Tensor] = {}
    for key, tensor in state.items():
        layer, _, kind = key.rpartition(".")
        if layer == "pointwise" and kind == "weight":
            tensor = tensor[..., None, None]
        if match := re.fullmatch(r"blocks\.(\d+)\.(.+)", layer):
            block, inner = match.groups()
            if inner == "qkv":
                for name, part in zip(_STACKED, tensor.chunk(3), strict=True):
                    out[f"transformer.{block}.0.fn.1.{name}.{kind}"] = part
                continue
            out[f"transformer.{block}.{_IN_BLOCK[inner]}.{kind}"] = tensor
        else:
            out[f"{_LAYERS[layer]}.{kind}"] = tensor
    return out


def weights_from_braindecode(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the state of braindecode's EEGConformer to that of a `Conformer` of the same sizes.

    Raises
    ------
    ValueError
        The state contains a tensor that this network does not have; the message names it.
    """
    layers = {theirs: ours for ours, theirs in _LAYERS.items()}
    in_block = {theirs: ours for ours, theirs in _IN_BLOCK.items()}
    out: dict[str, Tensor] = {}
    stacked: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        layer, _, kind = key.rpartition(".")
        match = re.fullmatch(r"transformer\.(\d+)\.(.+)", layer)
        if match and match[2].removeprefix("0.fn.1.") in _STACKED:
            stacked.setdefault(f"blocks.{match[1]}.qkv.{kind}", {})[match[2].removeprefix("0.fn.1.")] = tensor
        elif match and match[2] in in_block:
            out[f"blocks.{match[1]}.{in_block[match[2]]}.{kind}"] = tensor
        elif layer in layers:
            out[f"{layers[layer]}.{kind}"] = tensor[..., 0, 0] if key.endswith("projection.0.weight") else tensor
        else:
            raise ValueError(f"'{key}' is no tensor of braindecode's EEGConformer (names as in braindecode 1.8)")
    return out | {name: torch.cat([parts[part] for part in _STACKED]) for name, parts in stacked.items()}
