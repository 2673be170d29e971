"""Predict with classical baselines what an ensemble predicts: rows of its score table, scored as it is.

They are models that a search can draw too (`models/linear.py`, `models/covariance.py`), with fixed parameters: ridge
regression, or logistic regression for classes, on log band power, on the log-covariances of spatial components in five
bands, and on the components' time courses. In each of the run's folds, and for the held-out people, everything is
fitted on the training side, on as many of its windows as a trial is. Where the store has ages, and they are not the
target, the same regression is fitted on age alone, which scorers do not give.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from raypipe.core.closed_form_config import CovarianceConfig, LinearConfig
from raypipe.core.config import LossConfig, TrialConfig
from raypipe.core.folds import HELD_OUT
from raypipe.core.metrics import get_metric
from raypipe.core.outputs import spread_of
from raypipe.core.progress import Progress, no_progress
from raypipe.core.record import FrozenModel
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.labels import describe_target
from raypipe.ensembles.oof import MemberPredictions
from raypipe.ensembles.scores import RowPredictions
from raypipe.storage.records import digest
from raypipe.storage.run_store import RunStore
from raypipe.training.closed_form import ClosedFormTrainer, inner_parts
from raypipe.training.features import SharedFeatures
from raypipe.training.linear_head import fit_head
from raypipe.training.loader import FoldData, WindowLoader

MAX_COURSE_SECONDS = 4.0
"""Longest window whose time courses are a baseline: longer ones are not cut at events."""
COMPONENTS = 16
PREDICTORS: dict[str, CovarianceConfig | LinearConfig] = {
    "band power": LinearConfig(),
    "log-covariance": CovarianceConfig(components=COMPONENTS, scale="band"),
    "time courses": LinearConfig(predictors="time-courses", components=COMPONENTS),
}
"""Models by what they predict from."""

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Predict = Callable[["Side"], Array]
"""Fits a model on a side's training windows; returns predictions (N, outputs) of those that it predicts."""


class Baseline(FrozenModel):
    """A classical baseline, one row of the score table."""

    name: str
    usable: bool
    """Its input is available at inference."""


class Side(NamedTuple):
    """Training windows of a fold, and the windows that are predicted."""

    train: Index
    test: Index
    fold: int


@dataclass(frozen=True)
class BaselineData:
    """The windows of a run that baselines are fitted on and predict."""

    run: RunStore
    windows: WindowStore

    @cached_property
    def search(self) -> Index:
        """Windows of the search subjects."""
        return self.run.folds.search_index(self.windows.subjects)

    @cached_property
    def held_out(self) -> Index:
        """Windows of the held-out subjects."""
        return self.run.folds.held_out_index(self.windows.subjects)

    def sides(self) -> Iterator[Side]:
        """Yield the sides of each fold, and at last the search subjects against the held-out ones."""
        for fold in range(self.run.folds.n_folds):
            train, test = self.run.folds.split(self.windows.subjects, fold)
            yield Side(train, test, fold)
        yield Side(self.search, self.held_out, HELD_OUT)


_KNOWN: OrderedDict[str, dict[Baseline, RowPredictions]] = OrderedDict()
"""Predictions that this process has made, by `_key`: ensembles of one run are fitted with several options."""
_MAX_KNOWN = 8


def baseline_rows(
    run: RunStore, windows: WindowStore, like: MemberPredictions, progress: Progress | None = None
) -> dict[Baseline, RowPredictions]:
    """Return the predictions of the baselines for the rows of the score table.

    Nothing in a baseline is chosen by the folds that score it: its out-of-fold predictions are nested ones.

    Parameters
    ----------
    run, windows
        The run, and its windows.
    like
        Out-of-fold predictions of any members, whose windows and folds the rows have.
    progress
        Called with baselines fitted, baselines in all, and a text.
    """
    key = _key(run, windows, like)
    if key not in _KNOWN:
        _KNOWN[key] = _predict_rows(BaselineData(run, windows), like, progress or no_progress)
        if len(_KNOWN) > _MAX_KNOWN:
            _KNOWN.popitem(last=False)
    return _KNOWN[key]


def _key(run: RunStore, windows: WindowStore, like: MemberPredictions) -> str:
    """Return a name of all that the predictions depend on."""
    settings = (list(PREDICTORS), windows.data_hash, run.info.metric, run.info.seed)
    return digest(f"{settings} {run.folds.model_dump_json()}".encode() + like.windows.tobytes() + like.folds.tobytes())


def _predict_rows(data: BaselineData, like: MemberPredictions, progress: Progress) -> dict[Baseline, RowPredictions]:
    windows, model = data.windows, "ridge" if data.run.info.kind == "regression" else "logistic regression"
    wanted: dict[Baseline, Predict] = {}
    ages = None if "age" in describe_target(data.run.info.target).split(" and ") else _ages(windows)
    if ages is not None and np.isfinite(ages[data.search]).any():
        wanted[Baseline(name=f"{model} on age alone", usable=False)] = _age_alone(data, ages)
    for name, config in PREDICTORS.items():
        if name != "time courses" or windows.crop_samples <= MAX_COURSE_SECONDS * windows.sfreq:
            wanted[Baseline(name=f"{model} on {name}", usable=True)] = _closed_form(data, config)
    found: dict[Baseline, RowPredictions] = {}
    for done, (baseline, predict) in enumerate(wanted.items(), start=1):
        found[baseline] = _row(data, like, predict)
        progress(done, len(wanted), "baselines fitted")
    return found


def best_baseline(baselines: Sequence[Baseline], table: pd.DataFrame, metric: str) -> str | None:
    """Return the name of the best usable baseline out of fold; None where there is none with a score.

    Held-out scores are not used: the best of several would be optimistic.
    """
    scores = {one.name: float(table["nested"][one.name]) for one in baselines if one.usable}
    known = {name: value for name, value in scores.items() if np.isfinite(value)}
    return min(known, key=lambda name: get_metric(metric).sign * known[name]) if known else None


def _row(data: BaselineData, like: MemberPredictions, predict: Predict) -> RowPredictions:
    """Return a model's predictions, out of fold in the order of `like`, and of held-out people."""
    *folds, last = data.sides()
    held_out = predict(last)
    oof = np.full((len(like.windows), held_out.shape[1]), np.nan)
    for side in folds:
        rows = np.flatnonzero(like.folds == side.fold)
        oof[rows] = predict(side)[np.searchsorted(side.test, like.windows[rows])]
    return RowPredictions(held_out, oof, oof)


def _closed_form(data: BaselineData, model: CovarianceConfig | LinearConfig) -> Predict:
    balanced = data.run.info.metric not in ("log-loss", "brier")  # which want the frequencies of the classes
    config = TrialConfig(model=model, epochs=1, loss=LossConfig(balanced=balanced))
    loader, groups_N = WindowLoader(data.windows), data.run.folds.groups(data.windows.subjects)
    features = SharedFeatures(np.sort(np.concatenate([data.search, data.held_out])))

    def predict(side: Side) -> Array:
        fold = FoldData(config, loader, side.train, side.test, fold=side.fold)
        return ClosedFormTrainer(config, fold, groups_N, features).run_epoch().predictions.astype(np.float64)

    return predict


def _ages(windows: WindowStore) -> Array | None:
    if "age" not in windows.table:
        return None
    return np.asarray(pd.to_numeric(windows.table["age"], errors="coerce"), np.float64)


def _age_alone(data: BaselineData, ages_N: Array) -> Predict:
    """Predict from ages, where unknown ones are the mean of the training windows."""
    windows, n_classes = data.windows, len(data.windows.classes)
    groups_N = data.run.folds.groups(windows.subjects)

    def predict(side: Side) -> Array:
        known = ages_N[side.train][np.isfinite(ages_N[side.train])]
        filled_N = np.where(np.isfinite(ages_N), ages_N, known.mean() if len(known) else 0.0)
        x_N1, targets_N = torch.from_numpy(filled_N)[:, None], windows.targets[side.train]
        part_N = inner_parts(groups_N[side.train], targets_N, bool(n_classes), data.run.info.seed, side.fold)
        weight_N = torch.ones(len(targets_N), dtype=torch.float64)
        units = spread_of(targets_N) if targets_N.ndim == 2 else 1.0  # in which several values count the same
        y = torch.as_tensor(targets_N if n_classes else targets_N / units)
        head = fit_head(x_N1[side.train].clone(), y, weight_N, part_N, n_classes)
        found_NO = x_N1[side.test] @ head.weight.T + head.bias
        return np.asarray((found_NO.softmax(1) if n_classes else found_NO).numpy() * units)

    return predict
