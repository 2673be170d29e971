"""How far predictions of a graph are from those of its ensemble, output by output."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raypipe.packaging.network_spec import NetworkMember

TOLERANCE = 1e-4
"""Largest difference between the graph and the ensemble, relative to `output_units`."""
ROUNDING = 2 * float(np.finfo(np.float32).eps)
"""Difference that numbers in single precision may have by rounding, relative to their size."""


def output_scales(members: Sequence[NetworkMember], n_outputs: int) -> list[float]:
    """Return the spread of each output's targets (`NetworkMember.scale`, the mean over networks), or 1."""
    scales_MO = [np.broadcast_to(np.asarray(member.scale, np.float64), n_outputs) for member in members]
    return [float(value) for value in np.mean(scales_MO, axis=0)]


def output_units(scales: Sequence[float], wanted_NO: ArrayLike) -> NDArray[np.float64]:
    """Return what a difference of each output (O,) is relative to.

    It is the spread of its targets, or of its predictions if that is larger, so that neither another output nor an
    offset, as of years of birth, hides a difference. Rounding of a large offset is within the tolerance.

    Parameters
    ----------
    scales
        `output_scales`.
    wanted_NO
        Predictions of the ensemble (N, O).
    """
    y_NO = np.asarray(wanted_NO, np.float64)
    spread_O = np.abs(y_NO - y_NO.mean(axis=0)).max(axis=0)
    rounding_O = ROUNDING / TOLERANCE * np.abs(y_NO).max(axis=0)
    units_O: NDArray[np.float64] = np.maximum(np.maximum(np.asarray(scales), spread_O), rounding_O)
    return units_O


def relative_difference(found_NO: ArrayLike, wanted_NO: ArrayLike, units_O: ArrayLike) -> float:
    """Return the largest difference of predictions (N, O), relative to the unit of its output (O,)."""
    return float(np.max(np.abs(np.asarray(found_NO, np.float64) - np.asarray(wanted_NO, np.float64)) / units_O))


def difference_text(difference: float, kind: str) -> str:
    """Return a relative difference in words."""
    return f"{difference:.1g}" + (" of the targets' spread" if kind == "regression" else "")
