"""Count the operations and bytes of a step, and compute the least time that a machine needs for them.

Three floors are computed. *All at peak*: every floating-point operation at the speed of a large matrix product of its
type, memory free. *By kernel*: the sum over the operators that PyTorch runs (matrix products, transforms and passes
over memory) of the larger of operations / that speed and bytes / the speed of a large copy; it assumes that no operator
is fused with another and that nothing stays in a cache. *With launches*: the same, where no operator takes less than
one on a single number.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.report import LARGEST
from benchmarks.timing import copy_bandwidth, launch_seconds, matmul_peak

FREE = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
    *("detach", "_unsafe_view", "_local_scalar_dense"),
}
"""Operators that read and write no elements, although their schemas do not say so."""
SMALL_BATCHES = (8, 16, 32)
"""Sizes of batches that are counted, to compute the counts of larger ones."""
OVERWRITES = {"copy_", "zero_", "fill_", "_foreach_zero_", "_foreach_copy_"}
"""Operators that write their first argument without reading it."""


@dataclass
class Peaks:
    """Measured speeds of a machine."""

    flops: dict[torch.dtype, float]
    """Floating-point operations per second of matrix products, by type."""
    bandwidth: float
    """Bytes per second, read or written."""
    launch: float = 0.0
    """Seconds of an operator on a single number."""

    def of(self, dtype: torch.dtype) -> float:
        """Return the speed of a type; that of float32 for types that were not measured, such as complex numbers."""
        return self.flops.get(dtype, self.flops[torch.float32])


def measure_peaks(device: str, *dtypes: torch.dtype) -> Peaks:
    """Measure a machine, with matrix products in float32 and the given types."""
    types = dict.fromkeys((torch.float32, *dtypes))
    return Peaks({dtype: matmul_peak(device, dtype) for dtype in types}, copy_bandwidth(device), launch_seconds(device))


@dataclass
class Operation:
    """One call of an operator."""

    name: str
    dtype: torch.dtype
    flops: float
    bytes: float


class Counted(TorchDispatchMode):
    """Records the operators that run within the context; views and allocations are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[-1]
        if name not in FREE and not _is_view(func):
            self.operations.append(_operation(name, func, args, kwargs or {}, out))
        return out


def _is_view(func: Any) -> bool:
    aliases = [value.alias_info for value in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _operation(name: str, func: Any, args: Any, kwargs: Any, out: Any) -> Operation:
    read, written = list(_tensors((args, kwargs))), list(_tensors(out))
    if name in OVERWRITES:
        first = {id(tensor) for tensor in _tensors(args[0])}
        written, read = [t for t in read if id(t) in first], [t for t in read if id(t) not in first]
    elif name.endswith("_") and not written:  # an operator on a list of tensors in place returns nothing
        written = list(_tensors(args[0]))
    dtype = next((tensor.dtype for tensor in (*read, *written)), torch.float32)
    formula = flop_registry.get(func._overloadpacket)
    flops = float(formula(*args, **kwargs, out_val=out)) if formula else _transform_flops(name, read, written)
    if formula and dtype.is_complex:
        flops *= 4  # a product of complex numbers is four of real ones
    return Operation(name, dtype, flops, float(sum(map(_bytes, (*read, *written)))))


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _bytes(tensor: Tensor) -> int:
    """Return the bytes of the elements; an expanded dimension counts once."""
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or size == 0)
    return math.prod(sizes) * tensor.element_size()


def _transform_flops(name: str, read: list[Tensor], written: list[Tensor]) -> float:
    """Return the operations of a Fourier transform, by the usual 5 N log2 N; half of it with real numbers."""
    if not name.startswith("_fft"):
        return 0.0
    largest = max((*read, *written), key=Tensor.numel)
    length = max(read[0].shape[-1], written[0].shape[-1])
    return (5.0 if name == "_fft_c2c" else 2.5) * largest.numel() * math.log2(max(2, length))


def count(step: Callable[[], object]) -> list[Operation]:
    """Return the operators of one call of a function, which may use all cores: it is not timed."""
    counted, threads = Counted(), torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        with counted:
            step()
    finally:
        torch.set_num_threads(threads)
    return counted.operations


def count_at(step_of: Callable[[int], Callable[[], object]], batch: int) -> list[Operation]:
    """Return the operators of a step with a batch of many windows, from those of three small batches.

    The operators are the same, and their operations and bytes are polynomials of the batch's size, of degree two at
    most (where all windows of a batch are compared with each other).

    Parameters
    ----------
    step_of
        Makes the step with a batch of a size. Its first call is not counted: it makes the optimiser's state.
    batch
        Size of the batch.

    Raises
    ------
    ValueError
        The operators differ between the small batches.
    """
    counted = []
    for size in SMALL_BATCHES:
        step = step_of(size)
        step()
        counted.append(count(step))
    if len({tuple(each.name for each in operations) for operations in counted}) > 1:
        raise ValueError(f"the operators of a step differ between batches of {SMALL_BATCHES}")
    weights = [
        math.prod((batch - other) / (size - other) for other in SMALL_BATCHES if other != size)
        for size in SMALL_BATCHES
    ]
    return [
        Operation(
            same[0].name,
            same[0].dtype,
            sum(weight * each.flops for weight, each in zip(weights, same, strict=True)),
            sum(weight * each.bytes for weight, each in zip(weights, same, strict=True)),
        )
        for same in zip(*counted, strict=True)
    ]


@dataclass
class Floors:
    """Least seconds of a step, as the module explains."""

    all_at_peak: float
    by_kernel: float
    with_launches: float
    operators: int
    gflop: float
    mib: float
    largest: dict[str, float]
    """Seconds of the floor by kernel that each operator takes, the largest first."""

    def figures(self, seconds: float) -> dict[str, Any]:
        """Return the floors in milliseconds, and their shares of the measured seconds."""
        return {
            "GFLOP": round(self.gflop, 3),
            "MiB": round(self.mib, 1),
            "operators": self.operators,
            "floor, all at peak (ms)": round(1e3 * self.all_at_peak, 4),
            "floor by kernel (ms)": round(1e3 * self.by_kernel, 4),
            "floor with launches (ms)": round(1e3 * self.with_launches, 4),
            "measured (ms)": round(1e3 * seconds, 4),
            "share of all at peak": round(self.all_at_peak / seconds, 4),
            "share of the floor by kernel": round(self.by_kernel / seconds, 4),
            "share of the floor with launches": round(self.with_launches / seconds, 4),
            LARGEST: {name: round(1e3 * value, 4) for name, value in list(self.largest.items())[:6]},
        }


def floors(operations: list[Operation], peaks: Peaks) -> Floors:
    """Compute the floors of a step from its operators."""
    parts: dict[str, float] = defaultdict(float)
    least = [max(each.flops / peaks.of(each.dtype), each.bytes / peaks.bandwidth) for each in operations]
    for each, seconds in zip(operations, least, strict=True):
        parts[each.name] += seconds
    return Floors(
        all_at_peak=sum(each.flops / peaks.of(each.dtype) for each in operations),
        by_kernel=sum(least),
        with_launches=sum(max(seconds, peaks.launch) for seconds in least),
        operators=len(operations),
        gflop=sum(each.flops for each in operations) / 1e9,
        mib=sum(each.bytes for each in operations) / 2**20,
        largest=dict(sorted(parts.items(), key=lambda item: -item[1])),
    )
