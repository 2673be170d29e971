"""How methods stand: nested and held-out scores side by side, with intervals over subjects and paired differences."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from raypipe.metrics import Interval, constant_out_of_fold, get_metric, score
from raypipe.oof import Floats, Members
from raypipe.verdict import ENOUGH, Side, difference, interval, spoken

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
    constant_NO = constant_out_of_fold(members.kind, members.targets, members.folds, n_classes)
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


def alone_words(who: str, n: int, method: str, metric: str, scores: Mapping[str, float] | None) -> str:
    """Why one trial is shipped by itself, and what that says of combining.

    Parameters
    ----------
    who
        The trial.
    n
        Trials and snapshots that there were.
    method
        That was used.
    metric
        Of the run.
    scores
        Nested scores by method, where the method was chosen by them; None where it was asked for.
    """
    if n == 1:
        return f"What is shipped is {who} alone: there was no other to combine it with, so it is no ensemble."
    if scores is None:
        why = "as was asked for" if method == "best" else f"method '{method}' gave it all the weight"
        return f"What is shipped is {who} alone ({why}): nothing was combined, so it is no ensemble."
    words = f"What is shipped is {who} alone: combining did not help."
    others = [value for name, value in scores.items() if name not in ("best", "auto")]
    if others:
        top = min(others) if get_metric(metric).direction == "minimize" else max(others)
        words += (
            f" Out of fold, on subjects that it was not fitted on, the best way of combining the {n} members scores "
            f"{spoken(metric)} {top:.3f}, the best single trial {scores['best']:.3f}."
        )
    return f"{words} In short: an ensemble was not worth it here; one trial's networks do as well."


def worth_words(
    table: pd.DataFrame, metric: str, ensemble: str, against: Interval | None, method: str, scores: Mapping[str, float]
) -> str:
    """In plain words, whether an ensemble was worth it, and why it is shipped where it was not.

    Parameters
    ----------
    table
        With the columns of `nested_columns`.
    metric
        Of the run.
    ensemble
        Its row.
    against
        Held-out interval of ensemble minus best single trial.
    method
        That is shipped.
    scores
        Nested scores by method, where the method was chosen by them; empty where it was asked for.
    """
    sign = -1.0 if get_metric(metric).direction == "minimize" else 1.0
    to_best = table.loc[ensemble, ["nested_to_best_low", "nested_to_best_high"]].to_numpy(dtype=float)
    nested = _side(sign, *to_best.tolist())
    known = against is not None and int(table.loc[ensemble].to_dict()["subjects"]) >= ENOUGH
    held_out = _side(sign, against.low, against.high) if known and against is not None else 0
    why = f"The ensemble is shipped because '{method}' was asked for."
    if scores:
        why = (
            "The ensemble is shipped all the same, because the choice was made by the nested out-of-fold score "
            f"('{method}' {scores[method]:.3f}, the best single trial {scores['best']:.3f}) and never by the held-out "
            "subjects: chosen by them, their score would be no test any more."
        )
    if held_out < 0:
        return f"{why} In short: on these new people its best single trial did better, so combining was not worth it."
    if nested < 0:
        return f"{why} In short: its best single trial does better, so combining was not worth it."
    if held_out > 0:
        return "In short: the ensemble was worth it; on new people it does better than its best single trial."
    if nested > 0:
        return (
            "In short: the ensemble was worth it; on people whom it was not fitted on it does better than its best "
            "single trial, though the held-out subjects alone do not show it."
        )
    return (
        "In short: that the ensemble was worth it cannot be told; its best single trial alone may do as well, and is "
        "the simpler thing to ship."
    )


def _side(sign: float, low: float, high: float) -> int:
    """1 where an interval of a difference lies wholly on the better side, -1 on the worse, else 0."""
    low, high = sorted((sign * low, sign * high))
    return int(low > 0) - int(high < 0)
