"""Score linear baselines as the verdict scores the ensemble; the report shows them beside it.

Ridge regression, or logistic regression for classes, on log band power, on the log-covariance of spatial components
(log-Euclidean map: Arsigny et al. 2006, doi:10.1002/mrm.20965), and on the components' time courses. In each of the
run's folds, components and models are fitted on the training side. The penalty with the least loss over the folds is
chosen, and the model for the held-out people is fitted with it on all others. Where the store has ages, the same model
is fitted on age alone, which scorers do not give.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raypipe.core.folds import HELD_OUT
from raypipe.core.levels import ScoredRows, rows_at_level, within_folds
from raypipe.core.metrics import constant_out_of_fold, constant_prediction, score
from raypipe.core.record import FrozenModel
from raypipe.data.window_cache import open_windows
from raypipe.data.window_store import WindowStore
from raypipe.reporting.linear_features import Array, Index, band_power, component_features, spatial_components
from raypipe.storage.files import write_record
from raypipe.storage.records import OwnedRecord, read_owned
from raypipe.storage.run_store import RunStore

BASELINES_FILE = "ensemble/baselines.json"
MAX_TRAINING_WINDOWS = 6000
"""Maximum number of training windows; of more, evenly spaced ones are used."""
INVERSE_PENALTIES = tuple(10.0**-power for power in range(7))
"""Values from which the inverse of the penalty is chosen."""

Features = dict[str, Array]
"""Features (N, features) by name."""


class Baseline(FrozenModel):
    """A baseline and its scores, of windows, or of people where each has one target."""

    name: str
    oof: float | None
    """The run's metric out of fold, on which the penalty was chosen; None where it is undefined."""
    score: float | None
    """The run's metric on held-out people; None where it is undefined."""
    usable: bool
    """Its input is available at inference."""


class BaselinesRecord(OwnedRecord):
    """The baselines of a run (``ensemble/baselines.json``)."""

    format: Literal["raypipe-baselines/3"] = "raypipe-baselines/3"
    baselines: list[Baseline]


class Side(NamedTuple):
    """Training windows of a fold, and the windows that are predicted."""

    train: Index
    test: Index
    fold: int


@dataclass(frozen=True)
class LinearTask:
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

    def loss(self, sides: Sequence[Side], predictions: Array) -> float:
        """Return the mean squared error, or the mean log loss of classes, by which the penalty is chosen."""
        rows = self.rows(sides, predictions)
        if self.windows.classes:
            of_class = rows.predictions[np.arange(len(rows.targets)), rows.targets.astype(np.int64)]
            return float(-np.log(np.maximum(of_class, 1e-6)).mean())
        return float(((rows.predictions[:, 0] - rows.targets) ** 2).mean())

    def path(self, x_train: Array, x_test: Array, train: Index) -> list[Array]:
        """Return predictions (N, outputs) for each of `INVERSE_PENALTIES`."""
        targets, n_classes = self.windows.targets[train], len(self.windows.classes)
        if n_classes:
            return [_probabilities(x_train, targets, x_test, n_classes, c) for c in INVERSE_PENALTIES]
        return _ridge_path(x_train, targets.astype(np.float64), x_test)


def write_baselines(run: RunStore, windows: WindowStore | None = None) -> list[Baseline]:
    """Score the baselines of a run's task, and store the scores with the ensemble.

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
    task = LinearTask(run, open_windows(run.info.data) if windows is None else windows)
    model = "ridge" if run.info.kind == "regression" else "logistic regression"
    rows = [_without_eeg(task)]
    ages = _ages(task.windows)
    if ages is not None and np.isfinite(ages[task.search]).any():
        rows += _linear_rows(task, model, lambda side: _age_alone(ages, side), usable=False)
    used = np.concatenate([task.search, task.held_out])
    power, place_N = band_power(task.windows, used), np.zeros(len(task.windows), np.int64)
    place_N[used] = np.arange(len(used))
    rows += _linear_rows(task, model, lambda side: _band_power(power[place_N], side))
    rows += _linear_rows(task, model, lambda side: _of_components(task.windows, side))
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


def _without_eeg(task: LinearTask) -> Baseline:
    """Return the scores of the training mean or frequencies, of windows or of people."""
    info, n_classes = task.run.info, len(task.windows.classes)
    *folds, last = task.sides()
    targets = task.windows.targets[:, None]
    search = task.rows(folds, np.concatenate([targets[side.test] for side in folds]))
    held_out = task.rows([last], targets[last.test])
    outside = constant_prediction(info.kind, search.targets, len(held_out.targets), n_classes, info.metric)
    inside = constant_out_of_fold(info.kind, search.targets, search.folds, search.subjects, n_classes, info.metric)
    values = [
        score(within_folds(info.metric, rows.folds), rows.targets, pred)
        for rows, pred in ((search, inside), (held_out, outside))
    ]
    oof, held = (float(value) if np.isfinite(value) else None for value in values)
    name = "training mean" if info.kind == "regression" else "training frequencies"
    return Baseline(name=name, oof=oof, score=held, usable=True)


def _linear_rows(
    task: LinearTask, model: str, features_of: Callable[[Side], tuple[Features, ...]], *, usable: bool = True
) -> list[Baseline]:
    """Return a row for each kind of features.

    Parameters
    ----------
    features_of
        Returns the features of a side's training windows, and of those that it predicts.
    """
    paths: dict[str, list[list[Array]]] = {}
    *folds, last = task.sides()
    for side in (*folds, last):
        train, test = features_of(side)
        for name in train:
            paths.setdefault(name, []).append(task.path(train[name], test[name], side.train))
    rows = []
    for name, by_side in paths.items():
        out_of_fold = [np.concatenate(parts) for parts in zip(*by_side[:-1], strict=True)]
        best = int(np.argmin([task.loss(folds, each) for each in out_of_fold]))
        scores = task.score(folds, out_of_fold[best]), task.score([last], by_side[-1][best])
        rows.append(Baseline(name=f"{model} on {name}", oof=scores[0], score=scores[1], usable=usable))
    return rows


def _band_power(power_NF: Array, side: Side) -> tuple[Features, ...]:
    return tuple({"band power": power_NF[index]} for index in (side.train, side.test))


def _of_components(windows: WindowStore, side: Side) -> tuple[Features, ...]:
    axes = spatial_components(windows, side.train)
    return tuple(component_features(windows, index, axes) for index in (side.train, side.test))


def _ages(windows: WindowStore) -> Array | None:
    if "age" not in windows.table:
        return None
    import pandas as pd

    return np.asarray(pd.to_numeric(windows.table["age"], errors="coerce"), np.float64)


def _age_alone(ages_N: Array, side: Side) -> tuple[Features, ...]:
    """Return ages, where unknown ones are the mean of the training windows."""
    known = ages_N[side.train][np.isfinite(ages_N[side.train])]
    filled_N = np.where(np.isfinite(ages_N), ages_N, known.mean() if len(known) else 0.0)[:, None]
    return tuple({"age alone": filled_N[index]} for index in (side.train, side.test))


def _ridge_path(x: Array, y: Array, x_test: Array) -> list[Array]:
    """Return predictions (N, 1) of ridge regressions on standardised features, one for each penalty."""
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    penalties = np.array([1 / value for value in INVERSE_PENALTIES])
    model = make_pipeline(StandardScaler(), Ridge(alpha=penalties))  # a penalty for each of several equal targets
    predictions_NP = model.fit(x, np.tile(y[:, None], len(penalties))).predict(x_test)
    return [np.asarray(each_N, np.float64)[:, None] for each_N in predictions_NP.T]


def _probabilities(x: Array, y: NDArray[Any], x_test: Array, n_classes: int, inverse_penalty: float) -> Array:
    """Return probabilities (N, K) of a logistic regression on standardised features.

    Columns are in the order of the store's classes; a class that no training window has gets probability 0.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probabilities = np.zeros((len(x_test), n_classes))
    seen = np.unique(y)
    if len(seen) == 1:
        probabilities[:, seen] = 1.0
        return probabilities
    model = make_pipeline(StandardScaler(), LogisticRegression(C=inverse_penalty, max_iter=300))
    with warnings.catch_warnings():  # a fit that is close to its optimum is good enough here
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, y)
    probabilities[:, seen] = model.predict_proba(x_test)
    return probabilities
