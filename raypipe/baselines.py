"""What needs no deep network, scored on the held-out subjects: every report shows it beside the ensemble.

Ridge regression (RidgeClassifier's kin is left out: for regression only) on log band power and on the log-covariance of
principal components (the log-Euclidean map: Arsigny et al. 2006, doi:10.1002/mrm.20965), its penalty chosen by
subject folds of the training side; and, where the store knows ages, ridge on age alone, which no scorer gives.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypipe.cache import open_windows
from raypipe.errors import UserError
from raypipe.files import read_json, write_json
from raypipe.folds import HELD_OUT
from raypipe.metrics import score
from raypipe.store import RunStore
from raypipe.windows import WindowStore

RECORD = "ensemble/baselines.json"
BANDS = ((1.0, 4.0), (4.0, 8.0), (8.0, 13.0), (13.0, 30.0), (30.0, 45.0))
"""Hz: delta, theta, alpha, beta, gamma."""
COMPONENTS = 16
MOST = 6000
"""Training windows; more are thinned evenly."""
_BATCH = 256

Array = NDArray[np.float64]


def write_baselines(run: RunStore, windows: WindowStore | None = None) -> list[dict[str, Any]]:
    """Score the baselines of a regression on its held-out subjects, and keep them with the ensemble.

    Returns
    -------
    list
        For each: ``name``, ``score`` (the run's metric on held-out windows) and ``usable`` at inference.
    """
    if run.info.kind != "regression":
        return []
    windows = open_windows(run.info.data) if windows is None else windows
    folds_N = run.folds.folds(windows.subjects)
    train, test = np.flatnonzero(folds_N != HELD_OUT), np.flatnonzero(folds_N == HELD_OUT)
    train = train[:: max(1, -(-len(train) // MOST))]
    targets = windows.targets.astype(np.float64)
    mean = float(targets[folds_N != HELD_OUT].mean())
    rows = [_row("training mean", run, targets[test], np.full(len(test), mean), usable=True)]
    ages = _ages(windows)
    if ages is not None and np.isfinite(ages[train]).any():
        filled = np.where(np.isfinite(ages), ages, np.nanmean(ages[train]))[:, None]
        answers = _ridge(filled[train], targets[train], windows.subjects[train], filled[test])
        rows.append(_row("ridge on age alone", run, targets[test], answers, usable=False))
    axes = _components(windows, train)
    features = {part: _features(windows, index, axes) for part, index in (("train", train), ("test", test))}
    for number, name in enumerate(("ridge on band power", "ridge on log-covariance")):
        answers = _ridge(features["train"][number], targets[train], windows.subjects[train], features["test"][number])
        rows.append(_row(name, run, targets[test], answers, usable=True))
    write_json(run.folder, RECORD, rows)
    return rows


def read_baselines(run: RunStore) -> list[dict[str, Any]]:
    """What `write_baselines` kept; nothing where there is none."""
    try:
        found: list[dict[str, Any]] = read_json(run.folder, RECORD)
    except (FileNotFoundError, UserError):
        return []
    return found


def _row(name: str, run: RunStore, targets: Array, answers: Array, *, usable: bool) -> dict[str, Any]:
    return {"name": name, "score": float(score(run.info.metric, targets, answers[:, None])), "usable": usable}


def _ages(windows: WindowStore) -> Array | None:
    if "age" not in windows.table:
        return None
    import pandas as pd

    return np.asarray(pd.to_numeric(windows.table["age"], errors="coerce"), np.float64)


def _components(windows: WindowStore, train: NDArray[np.int64]) -> Array:
    """Principal axes (C, K) of channels over training windows."""
    some = train[:: max(1, len(train) // 512)]
    total = np.zeros((windows.n_channels, windows.n_channels))
    for start in range(0, len(some), _BATCH):
        x_NCT = windows.gather(some[start : start + _BATCH]).astype(np.float64)
        x_NCT -= x_NCT.mean(-1, keepdims=True)
        total += np.einsum("nct,ndt->cd", x_NCT, x_NCT, optimize=True)
    _, axes = np.linalg.eigh(total)
    return np.asarray(axes[:, ::-1][:, :COMPONENTS])


def _features(windows: WindowStore, index: NDArray[np.int64], axes: Array) -> tuple[Array, Array]:
    """Log band power (N, C * bands) and the upper triangle of the log-covariance (N, K * (K + 1) / 2)."""
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
    """Answers of a ridge regression on standardised features, its penalty chosen by subject folds."""
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV, GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = min(5, len(np.unique(subjects)))
    grid = {"ridge__alpha": np.logspace(0, 6, 7)}
    model = make_pipeline(StandardScaler(), Ridge())
    search = GridSearchCV(model, grid, cv=GroupKFold(folds), scoring="neg_mean_squared_error")
    search.fit(x, y, groups=subjects)
    return np.asarray(search.predict(x_test), np.float64)
