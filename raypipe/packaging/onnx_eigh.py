"""Eigenvalues and eigenvectors of symmetric matrices in ONNX, which has no operator for them: Jacobi's method.

A round of rotations sets the elements of disjoint pairs to zero, a sweep each element once (Golub & Van Loan 2013, sec.
8.5). It converges quadratically, and is backward stable. It needs the extra `onnx`.
"""

from __future__ import annotations

from typing import Any, TypeVar, Union

import numpy as np
from numpy.typing import NDArray
from onnx.numpy_helper import from_array
from onnxscript import DOUBLE, FLOAT, script
from onnxscript import opset18 as op
from onnxscript.values import Opset

MAX_SWEEPS = 40
"""Should rounding errors keep a matrix above the tolerance; matrices of 129 channels took 18 sweeps or fewer."""


Real = TypeVar("Real", bound=Union[FLOAT, DOUBLE])  # noqa: UP007 - onnxscript knows no other unions


def round_robin(size: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Pair each of `size` indices with each other one, in rounds in which no index is in two pairs.

    Returns
    -------
    partner_RD
        Each index's partner in each round; itself where it has none (circle method: one index stays, others rotate).
    direction_RD
        1 for the lower index of a pair, -1 for the higher, 0 without a partner.
    """
    ring = np.arange(size + size % 2)
    partner_RN = np.empty((len(ring) - 1, len(ring)), dtype=np.int64)
    for partner_N in partner_RN:
        partner_N[ring] = ring[::-1]
        ring = np.concatenate((ring[:1], np.roll(ring[1:], 1)))
    partner_RD = partner_RN[:, :size]
    partner_RD = np.where(partner_RD < size, partner_RD, np.arange(size))
    return partner_RD, np.sign(partner_RD - np.arange(size)).astype(float)


# onnxscript compiles the function's text: a subset of Python, in which every name is a tensor.
@script(Opset("raypipe", 1), default_opset=op)  # type: ignore[untyped-decorator,unused-ignore]
def jacobi(a_NDD, partner_RD, pair_RD, direction_RD, identity_DD, tolerance, tiny, max_sweeps) -> tuple[Real, Real]:  # type: ignore[no-untyped-def]
    """Return ascending eigenvalues (N, D) and eigenvectors (N, D, D), as columns, of symmetric matrices (N, D, D).

    `pair_RD` is the place in a flat matrix of each index's pair. `direction_RD` decides on the rotation where both
    diagonal elements are equal. It ends when the sum of squares off the diagonal is below `tolerance` times
    that of all elements.
    """
    two = op.CastLike(2.0, tolerance)
    one = op.CastLike(1.0, tolerance)
    matrix_axes = op.Constant(value_ints=[1, 2])
    size_1 = op.Shape(identity_DD, start=0, end=1)
    size = op.Squeeze(size_1)
    diagonal_D = op.Range(0, size, 1) * (size + 1)
    flat = op.Concat(op.Shape(a_NDD, start=0, end=1), op.Constant(value_ints=[-1]), axis=0)
    n_rounds = op.Squeeze(op.Shape(partner_RD, start=0, end=1))
    rest_DD = one - identity_DD
    limit_N = tolerance * op.ReduceSumSquare(a_NDD, matrix_axes, keepdims=0)
    a_NDD = op.Identity(a_NDD)
    vt_NDD = op.Expand(identity_DD, op.Shape(a_NDD))
    sweep = op.Constant(value_int=0)
    left_N = op.ReduceSumSquare(a_NDD * rest_DD, matrix_axes, keepdims=0) > limit_N
    goes_on = op.ReduceMax(op.Cast(left_N, to=6), keepdims=0) > 0
    while goes_on:
        for number in range(n_rounds):
            partner_D = op.Gather(partner_RD, number)
            elements_NX = op.Reshape(a_NDD, flat)
            diagonal_ND = op.Gather(elements_NX, diagonal_D, axis=1)
            pair_ND = two * op.Gather(elements_NX, op.Gather(pair_RD, number), axis=1)
            tie_D = tiny * op.Gather(direction_RD, number)
            gap_ND = op.Gather(diagonal_ND, partner_D, axis=1) - diagonal_ND + tie_D
            # Not a sum with tiny, which optimisers of graphs take for a sum with zero.
            reach_ND = op.Abs(gap_ND) + op.Sqrt(gap_ND * gap_ND + pair_ND * pair_ND)
            tangent_ND = op.Sign(gap_ND) * pair_ND / op.Max(reach_ND, tiny)
            cosine_ND = op.Reciprocal(op.Sqrt(tangent_ND * tangent_ND + one))
            cosine_ND1 = op.Unsqueeze(cosine_ND, op.Constant(value_ints=[2]))
            sine_ND1 = op.Unsqueeze(tangent_ND * cosine_ND, op.Constant(value_ints=[2]))
            rows_NDD = cosine_ND1 * a_NDD - sine_ND1 * op.Gather(a_NDD, partner_D, axis=1)
            columns_NDD = op.Transpose(rows_NDD, perm=[0, 2, 1])
            a_NDD = cosine_ND1 * columns_NDD - sine_ND1 * op.Gather(columns_NDD, partner_D, axis=1)
            vt_NDD = cosine_ND1 * vt_NDD - sine_ND1 * op.Gather(vt_NDD, partner_D, axis=1)
        sweep = sweep + 1
        left_N = op.ReduceSumSquare(a_NDD * rest_DD, matrix_axes, keepdims=0) > limit_N
        goes_on = op.And(sweep < max_sweeps, op.ReduceMax(op.Cast(left_N, to=6), keepdims=0) > 0)
    values_ND = op.Gather(op.Reshape(a_NDD, flat), diagonal_D, axis=1)
    sorted_ND, order_ND = op.TopK(values_ND, size_1, axis=1, largest=0, sorted=1)
    order_ND1 = op.Unsqueeze(order_ND, op.Constant(value_ints=[2]))
    sorted_NDD = op.GatherElements(vt_NDD, op.Expand(order_ND1, op.Shape(vt_NDD)), axis=1)
    return sorted_ND, op.Transpose(sorted_NDD, perm=[0, 2, 1])


def eigh(a: Any, UPLO: str = "L", compute_v: bool = True) -> tuple[Any, Any]:
    """Translate ``aten._linalg_eigh`` of symmetric matrices (..., D, D), of which the lower triangle is read."""
    size, dtype = int(a.shape[-1]), a.dtype.numpy()
    partner_RD, direction_RD = round_robin(size)
    place_D = np.arange(size)
    constants = (
        partner_RD,
        np.minimum(place_D, partner_RD) * size + np.maximum(place_D, partner_RD),
        direction_RD,
        np.eye(size),
        np.array((np.finfo(dtype).eps * size) ** 2),
        np.array(np.finfo(dtype).tiny),
    )
    kinds = (np.int64, np.int64, dtype, dtype, dtype, dtype)
    tables = [op.Constant(value=from_array(table.astype(kind))) for table, kind in zip(constants, kinds, strict=True)]
    shape = op.Shape(a)
    lower_NDD = op.Trilu(op.Reshape(a, op.Constant(value_ints=[-1, size, size])), upper=0)
    below_NDD = op.Trilu(lower_NDD, op.Constant(value_int=-1), upper=0)
    matrices_NDD = op.Add(lower_NDD, op.Transpose(below_NDD, perm=[0, 2, 1]))
    values_ND, vectors_NDD = jacobi(matrices_NDD, *tables, op.Constant(value_int=MAX_SWEEPS))
    return op.Reshape(values_ND, op.Slice(shape, [0], [-1], [0])), op.Reshape(vectors_NDD, shape)
