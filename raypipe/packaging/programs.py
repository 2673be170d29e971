"""Make programs (`raypipe.models.program`) of users' networks, so that they are shipped without their code.

`torch.export.load` is not used for what comes from elsewhere: torch 2.13 unpickles parts of its files, and evaluates
expressions in them with SymPy, so a file could run code.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from raypipe.core.errors import UserError, first_line
from raypipe.core.random_streams import seeded
from raypipe.models.own import OwnNetwork
from raypipe.models.program import DTYPES, INTEGER_OPERATORS, ProgramNetwork, check_program, is_allowed
from raypipe.training import torch_compat

EXAMPLE_BATCH = 3
MAX_BATCH = 65_536
TOLERANCE = 1e-4
"""Largest difference between a network and its program, relative to the scale of the outputs."""
_DROPPED = ("_assert_scalar", "_assert_async", "_assert_tensor_metadata", "sym_constrain_range_for_size")

Spec = dict[str, Any]
State = dict[str, Tensor]


class Unexportable(Exception):  # noqa: N818 - it is caught, and never shown as an error
    """A network cannot be made a program; the message says why."""


class Exported(NamedTuple):
    """A program, and the values of its constants."""

    program: dict[str, Any]
    constants: State


def ship_networks(spec: Spec, state: State) -> tuple[Spec, State, dict[str, str]]:
    """Return spec and state of an ensemble with a program for each network of users.

    Returns
    -------
    spec, state
        Their members have a ``program``, the name of one in ``programs``, and its constants are in the state.
    left
        Names of networks that cannot be made programs, with the reasons.

    Raises
    ------
    UserError
        A program gives other numbers than its network.
    """
    programs: dict[str, Any] = {}
    made: dict[str, Exported | str] = {}
    members, state, left = [], dict(state), {}
    for number, member in enumerate(spec["members"]):
        if "code" not in member["model"]:
            members.append(member)
            continue
        prefix = f"members.{number}."
        network = _network(spec, member, {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        key = repr(sorted(member["model"].items()))
        if key not in made:
            try:
                made[key] = export_program(network)
            except Unexportable as error:
                made[key] = str(error)
        found = made[key]
        if isinstance(found, str):
            left[member["model"]["name"]] = found
            members.append(member)
            continue
        name = str(list(made).index(key))
        programs[name] = found.program
        _compare(network, found)
        members.append(member | {"program": name})
        state |= {prefix + constant: tensor.clone() for constant, tensor in found.constants.items()}
    return spec | {"members": members} | ({"programs": programs} if programs else {}), state, left


def _network(spec: Spec, member: Mapping[str, Any], state: State) -> OwnNetwork:
    with seeded(0, torch.device("cpu")):
        network = OwnNetwork(
            spec["n_channels"], spec["n_times"], spec["n_outputs"], sfreq=spec["sfreq"], **member["model"]
        )
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def export_program(network: OwnNetwork) -> Exported:
    """Make the program of a network in evaluation mode.

    Raises
    ------
    Unexportable
        `torch.export` cannot trace it for batches of any size, or it needs an operator outside Core ATen.
    """
    x_BCT = torch.randn(EXAMPLE_BATCH, network.n_channels, network.n_times, generator=torch.Generator().manual_seed(0))
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            exported = torch.export.export(network.network, (x_BCT,), dynamic_shapes=(({0: batch}),))
            exported = exported.run_decompositions()
    except Exception as error:
        raise Unexportable(f"torch.export: {type(error).__name__}: {first_line(error)}") from None
    found = _Encoder(exported, network).encode()
    try:
        shape = {"n_channels": network.n_channels, "n_times": network.n_times, "n_outputs": network.n_outputs}
        check_program(found.program, **shape)
    except ValueError as error:
        raise Unexportable(str(error)) from None
    return found


class _Encoder:
    """Turn an exported graph into a program."""

    def __init__(self, exported: Any, network: OwnNetwork) -> None:
        self.exported, self.network = exported, network
        self.refs: dict[Any, dict[str, Any]] = {}
        self.nodes: list[list[Any]] = []
        self.constants: State = {}

    def encode(self) -> Exported:
        signature = self.exported.graph_signature
        if signature.buffers_to_mutate:
            raise Unexportable("it changes its buffers when it predicts")
        # A graph writes on nothing: what a network writes on its input is an output before its own.
        place = next(n for n, spec in enumerate(signature.output_specs) if spec.kind.name == "USER_OUTPUT")
        inputs = {spec.arg.name: spec for spec in signature.input_specs}
        output: Any = None
        for node in self.exported.graph.nodes:
            if node.op == "placeholder":
                self.refs[node] = self._input(inputs[node.name])
            elif node.op == "output":
                output = node.args[0][place]
            elif node.op == "call_function":
                self._call(node)
            else:
                raise Unexportable(f"its graph has a {node.op}")
        if "node" not in self.refs.get(output, {}):
            raise Unexportable("its output is computed by nothing")
        parameters = dict(self.network.named_parameters(remove_duplicate=False))
        tensors = {**self.network.state_dict(), **self.constants}
        kinds = {
            name: {
                "shape": list(t.shape),
                "dtype": _dtype_name(t.dtype),
                "parameter": name in parameters,
            }
            for name, t in tensors.items()
        }
        return Exported({"tensors": kinds, "nodes": self.nodes, "output": self.refs[output]["node"]}, self.constants)

    def _input(self, spec: Any) -> dict[str, Any]:
        kind = spec.kind.name
        if kind == "USER_INPUT":
            return {"input": 0}
        if kind == "PARAMETER" or (kind == "BUFFER" and spec.persistent):
            return {"tensor": f"network.{spec.target}"}
        value = self.exported.constants.get(spec.target)
        if not isinstance(value, Tensor):
            raise Unexportable(f"it has a constant that is no tensor ({kind.lower()})")
        name = f"constants.c{len(self.constants)}"
        self.constants[name] = value.detach().clone().contiguous()
        return {"tensor": name}

    def _call(self, node: Any) -> None:
        function = node.target
        name = getattr(function, "__name__", str(function))
        if name.split(".")[0] in _DROPPED:
            return
        if isinstance(function, torch_compat.OpOverload):
            if function.namespace != "aten" or not is_allowed(function):
                raise Unexportable(f"it needs the operator {function}, which is outside Core ATen")
            name = str(function)
        elif INTEGER_OPERATORS.get(name) is not function and getattr(operator, name, None) is not function:
            raise Unexportable(f"it needs {name}")
        elif name not in INTEGER_OPERATORS:
            if not node.users:
                return
            raise Unexportable(f"it needs {name} of sizes")
        args = [self._argument(each) for each in node.args]
        options = {
            key: self._argument(each) for key, each in node.kwargs.items() if key not in ("device", "pin_memory")
        }
        self.refs[node] = {"node": len(self.nodes)}
        self.nodes.append([name, args, options])

    def _argument(self, value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            if value not in self.refs:
                raise Unexportable("its graph needs a step that was left out")
            return self.refs[value]
        if isinstance(value, list | tuple):
            return [self._argument(each) for each in value]
        if isinstance(value, torch.dtype) and (name := _dtype_name(value)) in DTYPES:
            return {"dtype": name}
        if isinstance(value, torch.memory_format):
            return {"memory": str(value).removeprefix("torch.")}
        if value is torch.strided:
            return {"layout": "strided"}
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": str(value)}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise Unexportable(f"it has an argument of type {type(value).__name__}")


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@torch.no_grad()
def _compare(network: OwnNetwork, found: Exported) -> None:
    """Check that a program gives what its network gives, for one window and for several."""
    sizes = network.n_channels, network.n_times, network.n_outputs
    shipped = ProgramNetwork(*sizes, program=found.program, norm=network.norm).eval()
    shipped.load_state_dict({**network.state_dict(), **found.constants})
    generator = torch.Generator().manual_seed(1)
    for batch in (1, 2, EXAMPLE_BATCH + 4):
        x_BCT = torch.randn(batch, network.n_channels, network.n_times, generator=generator) * 10.0
        wanted_BK, found_BK = network(x_BCT), shipped(x_BCT)
        if not bool((wanted_BK - found_BK).abs().max() <= TOLERANCE * (1.0 + wanted_BK.abs().max())):
            raise UserError(f"{network.name}: its program gives other numbers than the network; it cannot be exported")
