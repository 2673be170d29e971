"""Metrics of users: found by the name that a sweep is given, and tried on random predictions before it starts."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypipe.core import own_code
from raypipe.core.errors import UserError
from raypipe.core.metrics import Metric, get_metric, metric_for
from raypipe.core.options import SweepOptions
from raypipe.core.own_metrics import is_own_metric, shown_metric, split_code, with_code
from raypipe.core.search_space import SearchSpace
from raypipe.data.window_store import WindowStore

WINDOWS = 40
"""Random predictions that are tried."""


def find_own_metric(options: SweepOptions) -> SweepOptions:
    """Return options whose metric, if it is a user's, is named as runs record it; its file is read.

    A path is relative to the working folder.

    Raises
    ------
    UserError
        There is no such file, or it is no Python.
    """
    asked = options.metric
    if asked is None or not is_own_metric(asked) or split_code(asked)[1]:
        return options
    path = own_code.file_of(asked)
    files = {} if path is None else {path: own_code.read_source(path, Path.cwd(), f"--metric {asked}")}
    return options.model_copy(update={"metric": with_code(asked, own_code.code_of(asked, files, "--metric"))})


def check_metric_file(options: SweepOptions, space: SearchSpace) -> None:
    """Check that the file of a user's metric has the name of no other file that a space names.

    Raises
    ------
    UserError
        It has.
    """
    name, code = split_code(options.metric or "")
    if (source := own_code.known_source(code)) is not None:
        own_code.check_file_names({**space.files, f"that of --metric {name}": source}, space.name)


def metric_of(options: SweepOptions, windows: WindowStore) -> str:
    """Return the metric of a new run: the one that is asked for, else that of the windows; a user's is tried.

    Raises
    ------
    UserError
        There is no such metric, it is one of the other kind, or a user's cannot be used.
    """
    asked = options.metric or windows.metric
    if not is_own_metric(asked):
        return metric_for(windows.kind, asked, windows.manifest.target)
    check_own_metric(asked, len(windows.classes))
    return asked


@functools.lru_cache(maxsize=64)
def check_own_metric(name: str, n_classes: int) -> None:
    """Try a user's metric on random predictions.

    Raises
    ------
    UserError
        It fails, gives something else than a number, is not finite for usual predictions or differs from call to call,
        or random predictions score better than the targets themselves.
    """
    metric, shown, rng = get_metric(name), shown_metric(name), np.random.default_rng(0)
    y_N: NDArray[Any] = np.arange(WINDOWS) % n_classes if n_classes else rng.normal(2.0, 3.0, WINDOWS)
    random_NK: NDArray[Any] = rng.normal(2.0, 3.0, (WINDOWS, 1))
    right_NK = y_N[:, None]
    if n_classes:
        random_NK = rng.dirichlet(np.ones(n_classes), WINDOWS)
        right_NK = 0.98 * np.eye(n_classes)[y_N] + 0.02 / n_classes
    usual = [metric.value(y_N, pred_NK) for pred_NK in (random_NK, random_NK, right_NK)]
    for score, what in zip(usual, ("are random", "are random", "are right"), strict=True):
        if not np.isfinite(score):
            raise UserError(f"metric {shown}: gave no finite number for {WINDOWS} targets and predictions that {what}")
    if usual[0] != usual[1]:
        raise UserError(f"metric {shown}: the same targets and predictions give {usual[0]:.6g} and {usual[1]:.6g}")
    if metric.better(usual[0], usual[2]):
        raise UserError(
            f"metric {shown}: random predictions score {usual[0]:.4g}, better than the targets themselves, "
            f"{usual[2]:.4g}: is higher_is_better right?"
        )
    _try_where_undefined(metric, y_N, random_NK)


def _try_where_undefined(metric: Metric, y_N: NDArray[Any], pred_NK: NDArray[Any]) -> None:
    """Score what resamples of people and single folds may have: one window, one class, equal targets or predictions."""
    same_N = np.full_like(y_N, y_N[0])
    for y, pred in ((y_N[:1], pred_NK[:1]), (same_N, pred_NK), (y_N, np.tile(pred_NK[:1], (len(y_N), 1)))):
        metric.value(y, pred)
