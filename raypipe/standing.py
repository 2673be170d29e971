"""How methods stand: nested and held-out scores side by side, with intervals over subjects and paired differences."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from raypipe.metrics import constant_prediction, score
from raypipe.oof import Floats, Members
from raypipe.verdict import Side, difference, interval

NESTED = ("nested", "nested_low", "nested_high")


def nested_columns(
    table: pd.DataFrame,
    members: Members,
    nested: Mapping[str, Floats],
    held_out: Mapping[str, Floats],
    side: Side,
    best: str,
    n_classes: int,
) -> pd.DataFrame:
    """Add to a table of `verdict.score_table` what nested cross-validation says.

    Parameters
    ----------
    table
        Its last row is the predictor without EEG.
    members
        Out-of-fold answers of all members.
    nested, held_out
        By row, (N, outputs) nested predictions of the search subjects' windows, and of the held-out windows.
    side
        The held-out windows.
    best
        Row of the best single trial.
    n_classes
        Classes of the task, or 0.

    Returns
    -------
    pandas.DataFrame
        With the columns ``nested``, ``nested_low``, ``nested_high`` (95 % bootstrap over subjects); ``optimism``
        (nested minus ``oof``: what was gained by choosing on the scored subjects alone); ``nested_difference`` to the
        predictor without EEG, ``nested_to_best`` and, held out, ``to_best``, to the best single trial: each with
        ``_low`` and ``_high``, on the same resamples.
    """
    metric = members.metric
    search = Side(members.targets, members.subjects, members.folds)
    constant_NO = np.empty_like(members.goals)
    for fold in np.unique(members.folds):
        inside = members.folds == fold
        constant_NO[inside] = constant_prediction(members.kind, members.targets[~inside], int(inside.sum()), n_classes)
    rows = []
    naive = table["oof"].to_numpy(dtype=float).tolist()
    for name, before in zip(table.index, naive, strict=True):
        if str(name) in held_out and str(name) not in nested:  # a network that has learned from all these subjects
            rows.append(_apart("to_best", metric, side, held_out[str(name)], held_out[best]))
            continue
        predictions = nested.get(str(name), constant_NO)
        inner = interval(metric, search, predictions)
        value = score(metric, search.targets, predictions)
        row = {"nested": value, "nested_low": inner.low, "nested_high": inner.high}
        row["optimism"] = value - before
        row |= _apart("nested_difference", metric, search, predictions, constant_NO)
        row |= _apart("nested_to_best", metric, search, predictions, nested[best])
        if str(name) in held_out:
            row |= _apart("to_best", metric, side, held_out[str(name)], held_out[best])
        rows.append(row)
    return table.join(pd.DataFrame(rows, index=table.index))


def _apart(name: str, metric: str, side: Side, a: Floats, b: Floats) -> dict[str, float]:
    found = difference(metric, side, a, b)
    apart = score(metric, side.targets, a) - score(metric, side.targets, b)
    return {name: apart, f"{name}_low": found.low, f"{name}_high": found.high}


def nested_words(table: pd.DataFrame, ensemble: str, best: str, *, minimize: bool) -> str:
    """What the nested scores say of the ensemble against the best single trial, in words."""
    to_best = table[["nested_to_best", "nested_to_best_low", "nested_to_best_high"]]
    apart, low, high = (float(each) for each in to_best.loc[ensemble].to_numpy(dtype=float))
    scores = dict(zip(table.index, table["nested"].to_numpy(dtype=float).tolist(), strict=True))
    if np.isnan(low):
        return ""
    words = (
        f"Out of fold, on subjects that neither weights nor the choice of method were fitted on, it scores "
        f"{scores[ensemble]:.3f}, the best single trial {scores[best]:.3f} (difference {apart:+.3f}, "
        f"{low:+.3f} to {high:+.3f})"
    )
    gain_low = -high if minimize else low
    gain_high = -low if minimize else high
    if gain_low > 0:
        return words + ": the ensemble is better."
    return words + (": the ensemble is worse." if gain_high < 0 else ": that they differ cannot be told.")
