"""Score linear baselines as the verdict scores the ensemble; the report shows them beside it.

They are models that a search can draw too (`models/linear.py`, `models/covariance.py`), with fixed parameters: ridge
regression, or logistic regression for classes, on log band power, on the log-covariances of spatial components in five
bands, and on the components' time courses. In each of the run's folds, and for the held-out people, everything is
fitted on the training side. Where the store has ages, the same regression is fitted on age alone, which scorers do not
give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from raypipe.core.closed_form_config import CovarianceConfig, LinearConfig
from raypipe.core.config import LossConfig, TrialConfig
from raypipe.core.folds import HELD_OUT
from raypipe.core.levels import ScoredRows, rows_at_level, within_folds
from raypipe.core.metrics import constant_out_of_fold, constant_prediction, score
from raypipe.core.record import FrozenModel
from raypipe.data.window_cache import open_windows
from raypipe.data.window_store import WindowStore
from raypipe.storage.files import write_record
from raypipe.storage.records import OwnedRecord, read_owned
from raypipe.storage.run_store import RunStore
from raypipe.training.closed_form import ClosedFormTrainer, SharedFeatures, inner_parts
from raypipe.training.linear_head import fit_head
from raypipe.training.loader import FoldData, WindowLoader

BASELINES_FILE = "ensemble/baselines.json"
MAX_TRAINING_WINDOWS = 6000
"""Maximum number of training windows; of more, evenly spaced ones are used."""
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
    """A baseline and its scores, of windows, or of people where each has one target."""

    name: str
    oof: float | None
    """The run's metric out of fold; None where it is undefined."""
    score: float | None
    """The run's metric on held-out people; None where it is undefined."""
    usable: bool
    """Its input is available at inference."""


class BaselinesRecord(OwnedRecord):
    """The baselines of a run (``ensemble/baselines.json``)."""

    format: Literal["raypipe-baselines/4"] = "raypipe-baselines/4"
    baselines: list[Baseline]


class Side(NamedTuple):
    """Training windows of a fold, and the windows that are predicted."""

    train: Index
    test: Index
    fold: int


@dataclass(frozen=True)
class BaselineData:
    """The windows of a run that baselines are fitted and scored on."""

    run: RunStore
    windows: WindowStore

    @cached_property
    def search(self) -> Index:
        """Windows of the search subjects, evenly spaced if there are very many."""
        index = self.run.folds.search_index(self.windows.subjects)
        return index[:: max(1, -(-len(index) // MAX_TRAINING_WINDOWS))]

    @cached_property
    def held_out(self) -> Index:
        """Windows of the held-out subjects."""
        return self.run.folds.held_out_index(self.windows.subjects)

    def sides(self) -> Iterator[Side]:
        """Yield the sides of each fold, and at last the search subjects against the held-out ones."""
        for repeat in range(self.run.folds.repeats):
            folds_N = self.run.folds.folds(self.windows.subjects[self.search], repeat)
            for fold in np.unique(folds_N).tolist():
                yield Side(self.search[folds_N != fold], self.search[folds_N == fold], fold)
        yield Side(self.search, self.held_out, HELD_OUT)

    def rows(self, sides: Sequence[Side], predictions: Array) -> ScoredRows:
        """Return what predictions (N, outputs) of the windows that sides predict are scored on: windows or people."""
        index = np.concatenate([side.test for side in sides])
        folds_N = np.repeat([side.fold for side in sides], [len(side.test) for side in sides])
        subjects = self.windows.subjects[index]
        return rows_at_level(self.run.info.level, self.windows.targets[index], subjects, folds_N, predictions)

    def score(self, sides: Sequence[Side], predictions: Array) -> float | None:
        """Return the score of predictions; None where it is undefined."""
        rows = self.rows(sides, predictions)
        value = float(score(within_folds(self.run.info.metric, rows.folds), rows.targets, rows.predictions))
        return value if np.isfinite(value) else None


def write_baselines(run: RunStore, windows: WindowStore | None = None) -> list[Baseline]:
    """Score the baselines of a run, and store the scores with the ensemble.

    Parameters
    ----------
    run
        The run.
    windows
        Its windows; None to open them.

    Returns
    -------
    list of Baseline
        The predictor without EEG, then the linear models.

    Raises
    ------
    UserError
        The windows cannot be opened.
    """
    data = BaselineData(run, open_windows(run.info.data) if windows is None else windows)
    rows = [_without_eeg(data)]
    ages = _ages(data.windows)
    if ages is not None and np.isfinite(ages[data.search]).any():
        rows.append(_row(data, "age alone", _age_alone(data, ages), usable=False))
    for name, model in PREDICTORS.items():
        if name != "time courses" or data.windows.crop_samples <= MAX_COURSE_SECONDS * data.windows.sfreq:
            rows.append(_row(data, name, _closed_form(data, model)))
    write_record(run.folder, BASELINES_FILE, BaselinesRecord(run=run.run_id, baselines=rows))
    return rows


def read_baselines(run: RunStore) -> list[Baseline]:
    """Return the baselines that `write_baselines` stored; an empty list if it was not called.

    Raises
    ------
    UserError
        The record is damaged, or has another format.
    """
    if not run.folder.exists(BASELINES_FILE):
        return []
    return read_owned(BaselinesRecord, run.folder, BASELINES_FILE, run.run_id).baselines


def _without_eeg(data: BaselineData) -> Baseline:
    """Return the scores of the training mean or frequencies, of windows or of people."""
    info, n_classes = data.run.info, len(data.windows.classes)
    *folds, last = data.sides()
    targets = data.windows.targets[:, None]
    search = data.rows(folds, np.concatenate([targets[side.test] for side in folds]))
    held_out = data.rows([last], targets[last.test])
    outside = constant_prediction(info.kind, search.targets, len(held_out.targets), n_classes, info.metric)
    inside = constant_out_of_fold(info.kind, search.targets, search.folds, search.subjects, n_classes, info.metric)
    values = [
        score(within_folds(info.metric, rows.folds), rows.targets, pred)
        for rows, pred in ((search, inside), (held_out, outside))
    ]
    oof, held = (float(value) if np.isfinite(value) else None for value in values)
    name = "training mean" if info.kind == "regression" else "prior baseline"
    return Baseline(name=name, oof=oof, score=held, usable=True)


def _row(data: BaselineData, name: str, predict: Predict, *, usable: bool = True) -> Baseline:
    """Return the scores of a model, out of fold and on held-out people."""
    *folds, last = data.sides()
    out_of_fold = np.concatenate([predict(side) for side in folds])
    model = "ridge" if data.run.info.kind == "regression" else "logistic regression"
    scores = data.score(folds, out_of_fold), data.score([last], predict(last))
    return Baseline(name=f"{model} on {name}", oof=scores[0], score=scores[1], usable=usable)


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
    import pandas as pd

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
        head = fit_head(x_N1[side.train].clone(), torch.as_tensor(targets_N), weight_N, part_N, n_classes)
        found_NO = x_N1[side.test] @ head.weight.T + head.bias
        return np.asarray((found_NO.softmax(1) if n_classes else found_NO).numpy())

    return predict
