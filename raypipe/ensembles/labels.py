"""Names of metrics, targets and units for texts."""

from __future__ import annotations

import math

from raypipe.core.metrics import get_metric
from raypipe.core.own_metrics import shown_metric

_METRICS = {
    "auc": "AUC",
    "balanced-accuracy": "balanced accuracy",
    "f1": "F1",
    "log-loss": "log loss",
    "brier": "Brier score",
    "nrmse": "NRMSE",
    "rmse": "RMSE",
    "mae": "MAE",
    "r2": "R²",
    "pearson": "correlation",
}


def metric_label(metric: str) -> str:
    """Return a metric's name for texts."""
    return _METRICS.get(metric, shown_metric(metric))


_SPOKEN_WITH_A_VOWEL = {"NRMSE", "RMSE", "MAE", "R²", "F1"}
"""Names whose first letter is spoken by itself."""


def with_article(name: str) -> str:
    """Return the name of a metric after ``a`` or ``an``."""
    return f"{'an' if name in _SPOKEN_WITH_A_VOWEL or name[0].lower() in 'aeio' else 'a'} {name}"


def resampled(subjects: int, units: int) -> str:
    """Return what intervals resample: subjects, or the groups that they share."""
    return "subjects" if units == subjects else f"{units} groups of subjects"


def describe_interval(low: float, high: float, over: str = "", sign: str = "", digits: int = 3) -> str:
    """Return an interval in words, of 95 %; that there is none, for NaN.

    Parameters
    ----------
    low, high
        Its ends.
    over
        What it resamples, such as ``" over 5 groups"``; empty where that is clear.
    sign
        ``"+"`` for differences.
    digits
        Decimal places, as many as the value has.
    """
    if math.isnan(low):
        return "no interval"
    return f"95 % interval{over} {low:{sign}z.{digits}f} to {high:{sign}z.{digits}f}"


def describe_target(target: str) -> str:
    """Return what a target predicts: ``participants:age`` gives ``age``, ``events:A,B`` gives ``A against B``.

    Several columns are values: ``participants:A,B`` gives ``A and B``.
    """
    kind, _, rest = target.partition(":")
    if kind == "challenge1":
        return "the response time"
    if kind == "challenge2":
        return "the externalizing factor"
    if kind == "latency":
        return f"stimulus latency ({' or '.join(part.strip() for part in rest.split(','))})"
    if kind == "epochs":
        kind, _, rest = rest.partition(":")
    if kind == "table":
        kind, rest = "participants", rest.removesuffix(":regression").removesuffix(":classification").rpartition(":")[2]
    if kind in ("participants", "events-column", "metadata") or (kind == "event" and "," not in rest):
        names = rest.removesuffix(":regression").removesuffix(":classification").split(",")
        return " and ".join(name.strip() for name in names)
    return " against ".join(part.strip() for part in rest.split(",")) or kind


def target_unit(target: str) -> str:
    """Return the unit of a target; ``target units`` where it is unknown."""
    kind, _, rest = target.partition(":")
    if kind in ("challenge1", "latency"):
        return "seconds"
    return "years" if kind == "participants" and rest.partition(":")[0] == "age" else "target units"


def calibration_note(metric: str, kind: str) -> list[str]:
    """Return a note on which scores of class probabilities are after their calibration; none for a regression."""
    if kind != "classification":
        return []
    if get_metric(metric).reads == "order":
        return [
            "Held-out scores are of calibrated probabilities, nested and naive ones of those before calibration. "
            "It is another one for each group of people, and would shift these against each other."
        ]
    return ["All scores are of calibrated probabilities; nested ones were calibrated by those of other subjects."]


def class_frequency_note(metric: str, constant: float) -> list[str]:
    """Return a note if the prior baseline scores below chance out of fold, which it explains.

    Parameters
    ----------
    metric
        Of the run.
    constant
        Out-of-fold score of the prior baseline, which predicts the frequencies of the classes.
    """
    if metric != "auc" or not constant < 0.4995:
        return []
    return [
        "Out of fold, the prior baseline scores below 0.5: each fold's constant comes from the other folds, so it is "
        "lowest where the class is most frequent."
    ]
