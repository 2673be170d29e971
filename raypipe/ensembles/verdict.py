"""Scores beside the answer of one who has seen no EEG, and what they say in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd

from raypipe.core.metrics import (
    Interval,
    get_metric,
)

ENSEMBLE, EQUAL, BEST, DISTILLED = "ensemble", "equal weights", "best single trial", "distilled"

FEW = 20
"""Below this many subjects, a verdict says that the interval itself is rough."""

ENOUGH = 6
"""Fewer subjects prove nothing at 95 %, even if all agree: signs that agree in all of n have a chance of 2^(1 - n)."""

NAMES = {"auc": "AUC", "nrmse": "NRMSE", "balanced_accuracy": "balanced accuracy"}


def spoken(metric: str) -> str:
    """A metric's name as people write it."""
    return NAMES.get(metric, metric)


def predicted(task: str) -> str:
    """What a task predicts, in words: ``participants:age`` to ``age``, ``events:A,B`` to ``A against B``."""
    kind, _, rest = task.partition("@")[0].partition(":")
    if kind == "challenge1":
        return "the response time"
    if kind == "challenge2":
        return "the externalizing factor"
    if kind == "latency":
        return f"the latency of {rest}"
    if kind == "participants":
        return rest.removesuffix(":regression").removesuffix(":classification")
    return " against ".join(part.strip() for part in rest.split(",")) or kind


def unit(task: str) -> str:
    """The unit of a task's target, where raypipe knows it."""
    kind, _, rest = task.partition("@")[0].partition(":")
    if kind in ("challenge1", "latency"):
        return "seconds"
    return "years" if kind == "participants" and rest.partition(":")[0] == "age" else "target units"


def oof_note(metric: str, constant: float) -> list[str]:
    """Why class frequencies, `constant` out of fold, look worse than chance; nothing where they do not."""
    if metric != "auc" or not constant < 0.4995:
        return []
    return [
        "Out of fold, class frequencies score below 0.5: each fold's constant comes from the other folds, so it is "
        "lowest where the class is most frequent."
    ]


Finding = Literal["carries", "sign", "none", "worse", "undefined"]
"""What held-out scores show: something that carries over to new people; a good sign, of too few people; no evidence;
worse than no EEG; or nothing, since there is no score or no interval."""


def finding(table: pd.DataFrame, metric: str) -> Finding:
    """What the ensemble's row of a `score_table` shows."""
    own = "subject_" if "subject_held_out" in table else ""
    row = dict(zip(table.columns, table.loc[ENSEMBLE].to_numpy(dtype=float).tolist(), strict=True))
    if np.isnan(row[own + "held_out"]) or np.isnan(row[own + "low"]):
        return "undefined"
    better = -get_metric(metric).sign
    low, high = sorted(better * row[own + "difference" + end] for end in ("_low", "_high"))
    if low > 0:
        return "carries" if row["subjects"] >= ENOUGH else "sign"
    return "worse" if high < 0 else "none"


def write_verdict(
    table: pd.DataFrame, metric: str, task: str, against_best: Interval | None, who: str = "the ensemble"
) -> str:
    """Say in words what the held-out scores show, and what they do not.

    Parameters
    ----------
    table
        From `score_table`.
    metric, task
        Of the run.
    against_best
        Interval of ensemble minus best single trial; None where they are the same.
    who
        What is shipped.

    Notes
    -----
    "Better than the baseline" means that the 95 % interval of the paired difference lies wholly on the better side.
    """
    own = "subject_" if "subject_held_out" in table else ""
    base = table.index[-1]
    row = dict(zip(table.columns, table.loc[ENSEMBLE].to_numpy(dtype=float).tolist(), strict=True))
    chance = float(table[own + "held_out"].iloc[-1])
    n = int(row["subjects"])
    better = -get_metric(metric).sign
    value, low, high = (row[own + name] for name in ("held_out", "low", "high"))
    apart, apart_low, apart_high = (row[own + "difference" + end] for end in ("", "_low", "_high"))
    people = "subject" if n == 1 else "subjects"
    unit_of = "one mean prediction a subject" if own else f"{int(row['windows'])} windows"
    what, article = predicted(task), "an" if spoken(metric)[0] in "AN" else "a"
    if np.isnan(value):
        return (
            f"On the {n} held-out {people} the score is undefined (their targets are all the same): "
            f"nothing can be said about {what}. Hold out more subjects in a new run."
        )
    out = [f"On {n} {people} that no choice has seen ({unit_of}) {who} reaches {article} {spoken(metric)} of "]
    if np.isnan(low):
        out[0] += f"{value:.3f}; {_ground(metric, base, chance)}."
        out.append("With one subject no interval can be given, so this says nothing about new people.")
        return " ".join(out)
    out[0] += f"{value:.3f} (95 % interval over subjects {low:.3f} to {high:.3f}); "
    out[0] += _ground(metric, base, chance)
    if metric == "nrmse":
        out[0] += f", and the difference to it is {apart:+.3f} ({apart_low:+.3f} to {apart_high:+.3f})"
        words = "the interval of the difference"
    else:
        words = "the interval"
    shows = finding(table, metric)
    if shows == "carries":
        out[0] += ": it has learned something that carries over to new people."
    elif shows == "sign":
        out[0] += (
            f". A good sign, but no evidence yet: that all of {n} {people} agree happens by luck alone in "
            f"{100 * 2.0 ** (1 - n):.0f} % of cases."
        )
    elif shows == "worse":
        out[0] += f": it is worse than no EEG at all; what it learned about {what} does not carry over to new people."
    else:
        nothing = "0" if metric == "nrmse" else f"chance ({chance:.3g})"
        out[0] += f": {words} contains {nothing}, so there is no evidence that it predicts {what}."
    if own:
        out.append(
            f"The target belongs to the person, so these {n} {people} are {n} data points, whatever the windows."
        )
    if ENOUGH <= n < FEW:
        out.append(f"{n} {people} are few: the interval itself is rough, and rather too narrow than too wide.")
    if against_best is not None and n >= ENOUGH and against_best.low < against_best.high:
        edges = sorted((better * against_best.low, better * against_best.high))
        span = f"(difference {against_best.low:+.3f} to {against_best.high:+.3f})"
        if edges[0] > 0:
            out.append(f"It is better than its best single trial {span}.")
        elif edges[1] < 0:
            out.append(f"It is worse than its best single trial {span}.")
        else:
            out.append(f"Whether it is better than its best single trial cannot be told from these subjects {span}.")
    return " ".join(out)


def _ground(metric: str, name: str, value: float) -> str:
    if metric == "auc":
        return "chance is 0.5"
    return f"the {name}, without any EEG, {'give' if name.endswith('s') else 'gives'} {value:.3f}"


def student_words(table: pd.DataFrame, ensemble: str, student: str, metric: str) -> str:
    """What is shipped where an ensemble was distilled, and what that costs."""
    column = "subject_held_out" if "subject_held_out" in table else "held_out"
    own, theirs = (float(table[column].to_dict()[row]) for row in (student, ensemble))
    return (
        f"What is shipped is one network, trained on all search subjects to answer as the ensemble does: its held-out "
        f"{spoken(metric)} is {own:.3f}, the ensemble's {theirs:.3f}. It has no out-of-fold score."
    )


def _side(sign: float, low: float, high: float) -> int:
    """1 where an interval of a difference lies wholly on the better side, -1 on the worse, else 0."""
    low, high = sorted((sign * low, sign * high))
    return int(low > 0) - int(high < 0)


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
    sign = -get_metric(metric).sign
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
