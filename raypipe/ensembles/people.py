"""What the mean prediction of a person is worth, where the target is the person's: probabilities and intervals.

Both are fitted on nested predictions, of people that neither a network nor the combination was fitted on.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from raypipe.core.levels import rows_at_level
from raypipe.core.metrics import Floats, Kind
from raypipe.core.outputs import as_columns
from raypipe.core.record import FrozenModel
from raypipe.ensembles.calibration import SCALE_LIMITS, calibrate_across
from raypipe.ensembles.oof import MemberPredictions
from raypipe.ensembles.reliability import conformal_half_width

NOMINAL = 0.9
"""Share of new people whose target the interval is to contain."""
_SMALLEST = 1e-7
"""Probability whose logarithm is taken of smaller ones."""


class People(FrozenModel):
    """How mean predictions of people are read."""

    n: Annotated[int, Field(ge=0)]
    """People that the rest was fitted on; 0 where there are no nested predictions, as of a soup."""
    scale: Annotated[float, Field(ge=SCALE_LIMITS[0], le=SCALE_LIMITS[1])] | None = None
    """Factor of the log of a person's mean class probabilities; None for values."""
    half_widths: tuple[Annotated[float, Field(ge=0.0, le=1e30)], ...] = ()
    """Half the width of the interval of each value, in its unit and in order of the outputs; empty where unknown."""
    nominal: Annotated[float, Field(gt=0.0, lt=1.0)] = NOMINAL

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> Self:
        if self.scale is not None and self.half_widths:
            raise ValueError("people: classes have a scale, values half_widths, and none has both")
        return self

    def check(self, kind: Kind, n_outputs: int) -> None:
        """Check that it fits the predictions.

        Raises
        ------
        ValueError
            It does not.
        """
        if (self.scale is not None) != (kind == "classification"):
            raise ValueError("people: a scale is of classes, and they need one")
        if self.half_widths and len(self.half_widths) != n_outputs:
            raise ValueError(f"people: {len(self.half_widths)} half_widths for {n_outputs} outputs")

    def probabilities(self, mean_PK: NDArray[Any]) -> Floats:
        """Return the calibrated class probabilities of people (P, K) by the means over their windows.

        The most probable class stays the same.
        """
        log_PK = (1.0 if self.scale is None else self.scale) * np.log(np.clip(mean_PK, _SMALLEST, None))
        p_PK = np.exp(log_PK - log_PK.max(axis=1, keepdims=True))
        return np.asarray(p_PK / p_PK.sum(axis=1, keepdims=True), dtype=np.float64)


def fit_people(like: MemberPredictions, nested_NO: NDArray[Any] | None) -> People | None:
    """Fit how mean predictions of people are read; None where targets are not people's.

    Of classes: temperature scaling (Guo et al. 2017, arXiv:1706.04599) of the mean of calibrated probabilities, since a
    mean of probabilities of windows is no calibrated probability of the person. Of values: the half width of split
    conformal prediction (Lei et al. 2018, doi:10.1080/01621459.2017.1307116), of each by its own errors.

    Parameters
    ----------
    like
        Predictions of any members for the same windows.
    nested_NO
        Values (N, 1), or (N, K) of several, or class probabilities (N, K) before they are calibrated; None where
        there are none.
    """
    if like.level != "person":
        return None
    is_class = like.kind == "classification"
    if nested_NO is None:
        return People(n=0, scale=1.0 if is_class else None)
    shown_NO = calibrate_across(like, nested_NO)[0] if is_class else nested_NO
    rows = rows_at_level(like.level, like.targets, like.subjects, like.folds, shown_NO)
    n = len(np.unique(rows.subjects))
    if is_class:
        return People(n=n, scale=_fit_scale(rows.predictions, rows.targets.astype(np.int64), n))
    if n < math.ceil((n + 1) * NOMINAL):  # no error of so few people bounds this share of new ones
        return People(n=n)
    error_RK = np.abs(rows.predictions - as_columns(rows.targets))
    repeats = len(rows.targets) // n
    return People(n=n, half_widths=tuple(conformal_half_width(error_R, NOMINAL, repeats) for error_R in error_RK.T))


def _fit_scale(p_RK: Floats, y_R: NDArray[np.int64], n_people: int) -> float:
    """Return the factor of log probabilities with the highest likelihood of people's classes.

    A normal prior of mean 1 and variance 1 has the weight of one person, as in `fit_calibration`.
    """
    from scipy.optimize import minimize_scalar

    log_RK = np.log(np.clip(p_RK, _SMALLEST, None))

    def loss(scale: float) -> float:
        scaled_RK = scale * log_RK
        top_R = scaled_RK.max(axis=1)
        norm_R = top_R + np.log(np.exp(scaled_RK - top_R[:, None]).sum(axis=1))
        return float((norm_R - scaled_RK[np.arange(len(y_R)), y_R]).mean() + 0.5 * (scale - 1.0) ** 2 / n_people)

    return float(minimize_scalar(loss, bounds=SCALE_LIMITS, method="bounded").x)
