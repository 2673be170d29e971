"""Programs: networks of users as lists of torch's operators, which run without the code that they were written in.

`raypipe.packaging.programs` makes a program from a network with `torch.export`. It is JSON, and no code is read from
it. Only operators of torch's Core ATen IR are called, which compute tensors from tensors and have no other effect.

This file needs torch (2.2 or later) and its neighbour network.py: submissions contain both unchanged.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

if __package__:
    from raypipe.models.network import DropoutMasks, Network
else:  # in a submission, where the files are in one folder
    from network import DropoutMasks, Network  # type: ignore[import-not-found,no-redef,unused-ignore]

MAX_NODES = 50_000
MAX_VALUES = 2**28
"""Values of a tensor that a program computes from two windows, at most."""
MAX_INTEGER = 2**40
DTYPES = ("float32", "float64", "int64", "int32", "bool", "complex64", "complex128", "float16", "bfloat16", "uint8")
INTEGER_OPERATORS: dict[str, Callable[..., Any]] = {
    name: getattr(operator, name) for name in ("getitem", "add", "sub", "mul", "floordiv", "mod", "neg")
}
"""Python's operators, for sizes and for results that are tuples."""
FURTHER_OPERATORS = (
    *("_fft_c2r", "_fft_c2c", "view_as_real", "view_as_complex", "real", "imag", "complex", "angle", "polar"),
    *("linalg_vector_norm", "_linalg_eigh", "_linalg_svd", "linalg_qr", "linalg_cholesky_ex", "linalg_inv_ex"),
    *("unfold", "lerp", "median", "logcumsumexp", "sgn", "hann_window", "erfinv"),
)
"""Operators outside Core ATen that are harmless too: Fourier transforms, linear algebra, and some others."""

_OPERATOR = re.compile(r"aten\.([A-Za-z_]\w*)\.([A-Za-z_]\w*)")
_NAME = re.compile(r"(network|constants)(\.\w+)+")


class ProgramNetwork(Network):
    """Run a program on normalised windows.

    Parameters
    ----------
    n_channels, n_times, n_outputs, norm
        See `Network`.
    program
        ``tensors``: shape, type and ``parameter`` (true or false) of each weight and constant by name; ``nodes``: for
        each step its operator, arguments and keyword arguments; ``output``: number of the step that is returned. An
        argument is a JSON value, ``{"node": 3}`` (the result of a step), ``{"tensor": name}``, ``{"input": 0}`` (the
        windows), ``{"dtype": name}``, ``{"layout": name}``, ``{"memory": name}`` or ``{"float": "inf"}``.
        Tensors are made on the windows' device.

    Raises
    ------
    ValueError
        It is no such program, or needs an operator that this torch does not have.
    """

    def __init__(self, n_channels: int, n_times: int, n_outputs: int, *, program: Mapping[str, Any], norm: str) -> None:
        super().__init__(n_channels, n_times, n_outputs, norm=norm)
        if len(program["nodes"]) > MAX_NODES:
            raise ValueError(f"a program of {len(program['nodes']):,} steps; at most {MAX_NODES:,} are read")
        for name, kind in program["tensors"].items():
            _place(self, name, kind)
        self.names = list(program["tensors"])
        self.steps = [(_operator(name), args, options) for name, args, options in program["nodes"]]
        self.output = int(program["output"])
        self.last_uses = _last_uses(program["nodes"], self.output)

    def dropout_plan(self, batch: int) -> list[tuple[int, float]]:
        """Return no masks: a program predicts only."""
        return []

    def front(self, x: Tensor, *, prepared: bool = False, masks: DropoutMasks | None = None) -> Tensor:
        """Normalise."""
        return x if prepared else self.prepare(x)

    def back(self, y: Tensor, masks: DropoutMasks | None = None) -> Tensor:
        """Run the program."""
        return self.run(y)

    def run(self, x_BCT: Tensor, *, limited: bool = False) -> Tensor:
        """Run the program; if `limited`, raise `ValueError` for a step whose result is too large."""
        tensors: dict[str, Tensor] = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        results: list[Any] = [None] * len(self.steps)

        def value(argument: Any) -> Any:
            if isinstance(argument, (list, tuple)):
                return [value(each) for each in argument]
            if not isinstance(argument, Mapping):
                return argument
            ((kind, what),) = argument.items()
            if kind == "node":
                return results[what]
            if kind == "tensor":
                return tensors[what]
            return x_BCT if kind == "input" else _constant(kind, what)

        for number, (function, args, options) in enumerate(self.steps):
            given = {name: value(each) for name, each in options.items()}
            if _takes_device(function):
                given["device"] = x_BCT.device
            results[number] = function(*value(args), **given)
            if limited:
                _check_size(results[number])
            for used in self.last_uses[number]:
                results[used] = None
        out = results[self.output]
        if not isinstance(out, Tensor) or out.shape != (x_BCT.shape[0], self.n_outputs):
            raise ValueError(f"a program must give ({x_BCT.shape[0]}, {self.n_outputs})")
        return out


def check_program(program: Mapping[str, Any], *, n_channels: int, n_times: int, n_outputs: int) -> None:
    """Check that a program runs on windows of a shape, without computing anything.

    Raises
    ------
    ValueError
        It does not, or a result is too large.
    """
    try:
        with torch.device("meta"), torch.no_grad():
            network = ProgramNetwork(n_channels, n_times, n_outputs, program=program, norm="none").eval()
            network.run(torch.empty(2, n_channels, n_times), limited=True)
    except ValueError:
        raise
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[0][:150]
        raise ValueError(f"a program that does not run ({type(error).__name__}: {line})") from None


def is_allowed(function: Any) -> bool:
    """Return whether an operator of torch may be called by a program."""
    core = torch.Tag.core in getattr(function, "tags", ())
    return core or getattr(function, "__name__", "").split(".")[0] in FURTHER_OPERATORS


def _takes_device(function: Any) -> bool:
    schema = getattr(function, "_schema", None)
    return schema is not None and any(argument.name == "device" for argument in schema.arguments)


def _operator(name: str) -> Any:
    if name in INTEGER_OPERATORS:
        return INTEGER_OPERATORS[name]
    match = _OPERATOR.fullmatch(name)
    try:
        function = getattr(getattr(torch.ops.aten, match[1]), match[2]) if match else None
    except (AttributeError, RuntimeError):
        raise ValueError(f"the operator {name} is not in torch {torch.__version__}") from None
    if function is None or not is_allowed(function):
        raise ValueError(f"a program calls '{str(name)[:60]}', which is no operator of Core ATen")
    return function


def _constant(kind: str, what: Any) -> Any:
    if kind == "dtype" and what in DTYPES:
        return getattr(torch, what)
    if kind == "memory" and what in ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d"):
        return getattr(torch, what)
    if kind == "layout" and what == "strided":
        return torch.strided
    if kind == "float" and what in ("inf", "-inf", "nan"):
        return float(what)
    raise ValueError(f"a program has an argument {kind} '{str(what)[:60]}'")


def _place(root: nn.Module, name: str, kind: Mapping[str, Any]) -> None:
    """Make a weight or a constant by its name; its values are loaded later."""
    if not _NAME.fullmatch(name) or kind["dtype"] not in DTYPES:
        raise ValueError(f"a program has a tensor '{name[:60]}' of {str(kind['dtype'])[:60]}")
    tensor = torch.zeros([int(size) for size in kind["shape"]], dtype=getattr(torch, kind["dtype"]))
    module, (*path, last) = root, name.split(".")
    try:
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        if kind["parameter"]:
            module.register_parameter(last, nn.Parameter(tensor, requires_grad=False))
        else:
            module.register_buffer(last, tensor)
    except (KeyError, AttributeError):
        raise ValueError(f"a program has a tensor '{name[:60]}', whose name is taken") from None


def _last_uses(nodes: Sequence[Sequence[Any]], output: int) -> list[list[int]]:
    """Return for each step the results that no later one needs."""
    last: dict[int, int] = {}

    def note(argument: Any, number: int) -> None:
        if isinstance(argument, Mapping):
            if "node" in argument:
                used = int(argument["node"])
                if not 0 <= used < number:
                    raise ValueError(f"step {number} of a program needs step {used}")
                last[used] = number
        elif isinstance(argument, (list, tuple)):
            for each in argument:
                note(each, number)

    for number, (_, args, options) in enumerate(nodes):
        note([*args, *options.values()], number)
    if not 0 <= output < len(nodes):
        raise ValueError(f"a program returns step {output}, and has {len(nodes)}")
    uses: list[list[int]] = [[] for _ in nodes]
    for used, number in last.items():
        if used != output:
            uses[number].append(used)
    return uses


def _check_size(result: Any) -> None:
    for each in result if isinstance(result, (list, tuple)) else [result]:
        if isinstance(each, Tensor) and each.numel() > MAX_VALUES:
            raise ValueError(f"a program computes {each.numel():,} values at once; at most {MAX_VALUES:,} are")
        if isinstance(each, int) and abs(each) > MAX_INTEGER:
            raise ValueError("a program computes a size that is too large")
