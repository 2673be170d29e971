"""Read the weights of networks from a file, after a check that they are those that a description asks for."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from raypipe.core.model_config import ModelConfig, OwnConfig
from raypipe.core.random_streams import seeded
from raypipe.ensembles.members import CPU, own_errors
from raypipe.models.builders import build_network
from raypipe.models.network import Network
from raypipe.packaging.network_spec import NetworkMember, NetworkSpec

_HEADER_BYTES = 2**20
_HEADER_BYTES_PER_TENSOR = 512
_OWN = re.compile(r"members\.\d+\.(network|constants)\.")
"""Beginning of the names of weights, buffers and constants of users' networks."""

Layout = dict[str, tuple[torch.Size, torch.dtype]]
"""Shape and type of each tensor, by name."""


def weights_layout(spec: NetworkSpec) -> Layout:
    """Return shape and type of the weights of networks.

    Memory is taken by users' networks that are no programs only.

    Raises
    ------
    UserError
        The code of a user's network raises an error.
    """
    by_model: dict[tuple[ModelConfig, str | None], Layout] = {}
    layout: Layout = {}
    for number, member in enumerate(spec.members):
        key = member.model, member.program
        if key not in by_model:
            by_model[key] = {name: (t.shape, t.dtype) for name, t in _build(spec, member).state_dict().items()}
        layout |= {f"members.{number}.{name}": kind for name, kind in by_model[key].items()}
    return layout


def _build(spec: NetworkSpec, member: NetworkMember) -> Network:
    """Build a network without memory, or from users' code, which may read the numbers of its tensors."""
    sizes = {"n_channels": spec.n_channels, "n_times": spec.n_times, "n_outputs": spec.n_outputs}
    options = member.model.model_dump()
    if member.program is None and isinstance(member.model, OwnConfig):
        with seeded(0, CPU), own_errors([{"model": options}]):
            return build_network(options, sfreq=spec.sfreq, program=None, **sizes)
    program = None if member.program is None else spec.programs[member.program].model_dump()
    with torch.device("meta"):
        return build_network(options, sfreq=spec.sfreq, program=program, **sizes)


def max_file_bytes(layout: Layout) -> int:
    """Return the size of the largest safetensors file that has these weights."""
    values = sum(shape.numel() * dtype.itemsize for shape, dtype in layout.values())
    return values + _HEADER_BYTES + _HEADER_BYTES_PER_TENSOR * len(layout)


def check_tensors(layout: Layout, tensors: Mapping[str, torch.Tensor]) -> None:
    """Check that tensors have this layout, and finite values where the network is raypipe's.

    A user's network may hold what is not finite, such as the mask of a causal attention; its predictions are checked.

    Raises
    ------
    ValueError
        Names the first tensor that is missing, has another shape or type, or has values that are not finite.
    """
    for name, (shape, dtype) in layout.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise ValueError(f"Missing key: {name}")
        if tensor.shape != shape or tensor.dtype != dtype:
            raise ValueError(f"{name}: {_described(tensor.shape, tensor.dtype)}, expected {_described(shape, dtype)}")
        if _OWN.match(name):
            continue
        # Positions of electrodes are NaN where they are unknown.
        if not name.endswith(".places.positions") and not torch.isfinite(tensor).all():
            raise ValueError(f"{name}: has values that are not finite")
        if name.endswith(".running_var") and bool((tensor < 0).any()):
            raise ValueError(f"{name}: has variances below zero")
    if more := sorted(tensors.keys() - layout.keys()):
        raise ValueError(f"no network has a tensor '{more[0][:80]}'")


def _described(shape: torch.Size, dtype: torch.dtype) -> str:
    return f"{tuple(shape)} {str(dtype).removeprefix('torch.')}"
