"""Metrics of users: ``score(y, pred)`` with an attribute ``higher_is_better``, named with what identifies its source.

A run records ``mine.py:score@minimize:CODE``. So scores of two versions of a function are never taken for one another,
and a run can be looked at without running its code.
"""

from __future__ import annotations

import functools
import re
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raypipe.core import own_code
from raypipe.core.errors import UserError
from raypipe.core.foreign_code import describe_code_error, foreign_code

_RECORDED = re.compile(r"(.+)@(minimize|maximize):(.*)")


def is_own_metric(name: str) -> bool:
    """Return whether a metric is a user's: ``mine.py:score``, with the code or without."""
    return ":" in name


def with_code(name: str, code: str) -> str:
    """Return the name by which runs record a user's metric; its function is loaded for which scores are better.

    Raises
    ------
    UserError
        There is no such function, or it does not say which scores are better.
    """
    better = "maximize" if _function_of(own_code.short_name(name), code).higher_is_better else "minimize"
    return f"{own_code.short_name(name)}@{better}:{code}"


def split_code(metric: str) -> tuple[str, str]:
    """Return a metric's name without its code, and the code; the code is empty if there is none."""
    match = _RECORDED.fullmatch(metric)
    return (match[1], match[3]) if match else (metric, "")


def direction_of(metric: str) -> Literal["minimize", "maximize"]:
    """Return which scores of a recorded metric are better, by its name alone."""
    match = _RECORDED.fullmatch(metric)
    return "maximize" if match and match[2] == "maximize" else "minimize"


def shown_metric(metric: str) -> str:
    """Return a metric's name for texts: without its code."""
    return split_code(metric)[0]


class OwnMetric:
    """A user's metric.

    Parameters
    ----------
    metric
        As runs record it.

    Raises
    ------
    UserError
        There is no such function, it is not at hand, or it does not say which scores are better.
    """

    def __init__(self, metric: str) -> None:
        self.name, code = split_code(metric)
        source = own_code.known_source(code)
        self._file = source.name if source else ""
        self._function = _function_of(self.name, code)

    def value(self, y: ArrayLike, pred: ArrayLike) -> float:
        """Return the score of predictions (N, 1) of values, or (N, K) of classes; NaN where it is undefined.

        Raises
        ------
        UserError
            The function fails, or returns something else than a number.
        """
        y_N, pred_N = np.array(y), np.array(pred, dtype=np.float64)  # copies, which it may change
        if not np.isfinite(pred_N).all() or not len(y_N):
            return float("nan")
        try:
            with foreign_code():
                found = self._function(y_N, pred_N[:, 0] if pred_N.shape[1] == 1 else pred_N)
            score = float(found) if np.ndim(found) == 0 and found is not None else None
        except (Exception, SystemExit) as error:
            raise UserError(
                f"metric {self.name}: {describe_code_error(error, self._file)} (for {len(y_N)} targets; where a score "
                "is undefined, return nan)"
            ) from None
        if score is None:
            raise UserError(f"metric {self.name}: gave a {type(found).__name__}, and must give one number")
        return score if np.isfinite(score) else float("nan")

    def resampled(
        self, y: ArrayLike, pred: ArrayLike, subject_N: NDArray[np.int64], counts_RS: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return the scores (R,) of resamples of subjects; see `raypipe.core.metrics.Metric`."""
        y_N, pred_NO = np.asarray(y), np.asarray(pred)
        found_R = np.empty(len(counts_RS))
        for r, counts_S in enumerate(counts_RS):
            rows = np.repeat(np.arange(len(y_N)), counts_S[subject_N])
            found_R[r] = self.value(y_N[rows], pred_NO[rows])
        return found_R


def _function_of(name: str, code: str) -> Any:
    function = own_code.load_object(name, code, "metric")
    if not callable(function) or isinstance(function, type):
        raise UserError(f"metric: {name} is no function of targets and predictions")
    if not isinstance(getattr(function, "higher_is_better", None), bool):
        raise UserError(
            f"metric: {name} does not say which scores are better; write {name.rpartition(':')[2]}.higher_is_better = "
            "True (or False) below it"
        )
    return function


@functools.lru_cache(maxsize=64)
def load_own_metric(metric: str) -> OwnMetric:
    """Return a user's metric by the name that runs record; see `OwnMetric`."""
    return OwnMetric(metric)


def own_value(metric: str, y: ArrayLike, pred: ArrayLike) -> float:
    """Return a score by a user's metric, which is loaded now: looking at a run loads none."""
    return load_own_metric(metric).value(y, pred)


def own_resampled(
    metric: str, y: ArrayLike, pred: ArrayLike, subject_N: NDArray[np.int64], counts_RS: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the scores of resamples by a user's metric, which is loaded now."""
    return load_own_metric(metric).resampled(y, pred, subject_N, counts_RS)
