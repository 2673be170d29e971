"""Score linear baselines on the held-out subjects; the report shows them beside the ensemble.

Ridge regression, or logistic regression for classes, on log band power and on the log-covariance of principal
components (log-Euclidean map: Arsigny et al. 2006, doi:10.1002/mrm.20965). The penalty is chosen by cross-validation
over the training subjects. Where the store has ages, the same model is fitted on age alone, which scorers do not give.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raypipe.core.folds import HELD_OUT
from raypipe.core.metrics import constant_prediction, score
from raypipe.core.record import FrozenModel, Record
from raypipe.data.window_cache import open_windows
from raypipe.data.window_store import WindowStore
from raypipe.storage.files import read_record, write_record
from raypipe.storage.run_store import RunStore

BASELINES_FILE = "ensemble/baselines.json"
BANDS = ((1.0, 4.0), (4.0, 8.0), (8.0, 13.0), (13.0, 30.0), (30.0, 45.0))
"""Hz: delta, theta, alpha, beta, gamma."""
MAX_COMPONENTS = 16
MAX_TRAINING_WINDOWS = 6000
"""Maximum number of training windows; of more, evenly spaced ones are used."""
INVERSE_PENALTIES = tuple(10.0**-power for power in range(7))
"""Values from which the inverse of the penalty is chosen."""
_COMPONENT_WINDOWS = 512
"""Approximate number of training windows from which principal components are estimated."""
_BATCH = 256

Array = NDArray[np.float64]


class Baseline(FrozenModel):
    """A baseline and its score."""

    name: str
    score: float | None
    """The run's metric on held-out windows; None where it is undefined."""
    usable: bool
    """Its input is available at inference."""


class BaselinesRecord(Record):
    """The baselines of a run (``ensemble/baselines.json``)."""

    format: Literal["raypipe-baselines/1"] = "raypipe-baselines/1"
    baselines: list[Baseline]


def write_baselines(run: RunStore, windows: WindowStore | None = None) -> list[Baseline]:
    """Score the baselines of a run's task on its held-out subjects, and store the scores with the ensemble.

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
    windows = open_windows(run.info.data) if windows is None else windows
    folds_N = run.folds.folds(windows.subjects)
    train, test = np.flatnonzero(folds_N != HELD_OUT), np.flatnonzero(folds_N == HELD_OUT)
    constant = constant_prediction(
        run.info.kind, windows.targets[train], len(test), len(windows.classes), run.info.metric
    )
    train = train[:: max(1, -(-len(train) // MAX_TRAINING_WINDOWS))]
    targets, subjects = windows.targets, windows.subjects[train]
    regression = run.info.kind == "regression"
    mean = "training median" if run.info.metric == "mae" else "training mean"
    model, no_eeg = ("ridge", mean) if regression else ("logistic regression", "training frequencies")

    def fit_predict(x_train: Array, x_test: Array) -> Array:
        if regression:
            return _ridge(x_train, targets[train].astype(np.float64), subjects, x_test)
        return _logistic(x_train, targets[train].astype(np.int64), subjects, x_test, len(windows.classes))

    rows = [_row(no_eeg, run, targets[test], constant, usable=True)]
    ages = _ages(windows)
    if ages is not None and np.isfinite(ages[train]).any():
        filled = np.where(np.isfinite(ages), ages, np.nanmean(ages[train]))[:, None]
        rows.append(
            _row(f"{model} on age alone", run, targets[test], fit_predict(filled[train], filled[test]), usable=False)
        )
    axes = _components(windows, train)
    features = zip(_features(windows, train, axes), _features(windows, test, axes), strict=True)
    for name, (x_train, x_test) in zip(("band power", "log-covariance"), features, strict=True):
        rows.append(_row(f"{model} on {name}", run, targets[test], fit_predict(x_train, x_test), usable=True))
    write_record(run.folder, BASELINES_FILE, BaselinesRecord(baselines=rows))
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
    return read_record(BaselinesRecord, run.folder, BASELINES_FILE).baselines


def _row(name: str, run: RunStore, targets: NDArray[Any], predictions: Array, *, usable: bool) -> Baseline:
    value = float(score(run.info.metric, targets, predictions))
    return Baseline(name=name, score=value if np.isfinite(value) else None, usable=usable)


def _ages(windows: WindowStore) -> Array | None:
    if "age" not in windows.table:
        return None
    import pandas as pd

    return np.asarray(pd.to_numeric(windows.table["age"], errors="coerce"), np.float64)


def _components(windows: WindowStore, train: NDArray[np.int64]) -> Array:
    """Return the principal axes (C, K) of the channels over training windows."""
    some = train[:: max(1, len(train) // _COMPONENT_WINDOWS)]
    total = np.zeros((windows.n_channels, windows.n_channels))
    for start in range(0, len(some), _BATCH):
        x_NCT = windows.gather(some[start : start + _BATCH]).astype(np.float64)
        x_NCT -= x_NCT.mean(-1, keepdims=True)
        total += np.einsum("nct,ndt->cd", x_NCT, x_NCT, optimize=True)
    _, axes = np.linalg.eigh(total)
    return np.asarray(axes[:, ::-1][:, :MAX_COMPONENTS])


def _features(windows: WindowStore, index: NDArray[np.int64], axes: Array) -> tuple[Array, Array]:
    """Return log band power (N, C * bands) and the upper triangle of the log-covariance (N, K * (K + 1) / 2)."""
    power, covariance = [], []
    upper = np.triu_indices(axes.shape[1])
    frequency = np.fft.rfftfreq(windows.crop_samples, 1 / windows.sfreq)
    inside = [np.flatnonzero((frequency >= low) & (frequency < high)) for low, high in BANDS]
    for start in range(0, len(index), _BATCH):
        x_NCT = windows.gather(index[start : start + _BATCH]).astype(np.float64)
        x_NCT -= x_NCT.mean(-1, keepdims=True)
        spectrum = np.abs(np.fft.rfft(x_NCT, axis=-1)) ** 2
        bands = [np.log(spectrum[..., band].mean(-1) + 1e-6) for band in inside if len(band)]
        power.append(np.concatenate(bands, axis=1))
        y_NKT = np.einsum("ck,nct->nkt", axes, x_NCT, optimize=True)
        c_NKK = np.einsum("nkt,nlt->nkl", y_NKT, y_NKT, optimize=True) / y_NKT.shape[-1]
        values, vectors = np.linalg.eigh(c_NKK + 1e-3 * np.eye(axes.shape[1]))
        log_NKK = np.einsum("nka,na,nla->nkl", vectors, np.log(np.maximum(values, 1e-6)), vectors, optimize=True)
        covariance.append(log_NKK[:, upper[0], upper[1]])
    return np.concatenate(power), np.concatenate(covariance)


def _ridge(x: Array, y: Array, subjects: NDArray[Any], x_test: Array) -> Array:
    """Return predictions of a ridge regression on standardised features; subject folds choose its penalty."""
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV, GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = min(5, len(np.unique(subjects)))
    grid = {"ridge__alpha": [1 / value for value in INVERSE_PENALTIES]}
    model = make_pipeline(StandardScaler(), Ridge())
    search = GridSearchCV(model, grid, cv=GroupKFold(folds), scoring="neg_mean_squared_error")
    search.fit(x, y, groups=subjects)
    return np.asarray(search.predict(x_test), np.float64)[:, None]


def _logistic(x: Array, y: NDArray[np.int64], subjects: NDArray[Any], x_test: Array, n_classes: int) -> Array:
    """Return probabilities (N, K) of a logistic regression with the penalty of least log loss over subject folds.

    Columns are in the order of the store's classes; a class that no training window has gets probability 0.
    """
    from sklearn.model_selection import GroupKFold

    splits = list(GroupKFold(min(5, len(np.unique(subjects)))).split(x, y, groups=subjects))
    losses = []
    for inverse_penalty in INVERSE_PENALTIES:
        held = np.empty((len(y), n_classes))
        for train, test in splits:
            held[test] = _probabilities(x[train], y[train], x[test], n_classes, inverse_penalty)
        losses.append(-np.log(np.maximum(held[np.arange(len(y)), y], 1e-6)).mean())
    return _probabilities(x, y, x_test, n_classes, INVERSE_PENALTIES[int(np.argmin(losses))])


def _probabilities(x: Array, y: NDArray[np.int64], x_test: Array, n_classes: int, inverse_penalty: float) -> Array:
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
