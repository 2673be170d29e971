"""Score tables of invented predictions."""

from __future__ import annotations

import numpy as np

from raypipe.ensembles.scores import EvaluationSet, RowPredictions, Scoring, score_table


def hand_made(n_subjects, *, signal, each=5, seed=0):
    """Return targets, predictions and subjects (N,): one target per subject, which predictions follow by `signal`."""
    rng = np.random.default_rng(seed)
    target = rng.normal(size=n_subjects)
    y = np.repeat(target, each)
    predicted = (signal * y + 0.3 * rng.normal(size=len(y)))[:, None]
    subjects = np.repeat([f"s{k:03d}" for k in range(n_subjects)], each)
    return y, predicted, subjects


def table_of(signal, n_out, groups=None):
    """Return the score table of predictions that follow the target by `signal`, with `n_out` subjects held out.

    The held-out subjects are `groups` groups.
    """
    y, predicted, subjects = hand_made(20 + n_out, signal=signal)
    out = subjects >= "s020"
    folds = np.repeat(np.arange(20 + n_out) % 4, 5)
    number = np.repeat(np.arange(20 + n_out), 5)
    units = np.where(out, number % (groups or 20 + n_out), 100 + number).astype(str)
    search, held = (EvaluationSet(y[m], subjects[m], folds[m], units[m]) for m in (~out, out))
    row = RowPredictions(held_out=predicted[out], oof=predicted[~out], nested=predicted[~out])
    rows = dict.fromkeys(("ensemble", "equal weights", "best single trial"), row)
    return score_table(Scoring("nrmse", "regression", 0, "person"), rows, search, held)
