"""One row per person, where the target of a bundle is the person's."""

from __future__ import annotations

from typing import Any

import pandas as pd
from numpy.typing import NDArray

from raypipe.core.errors import UserError
from raypipe.ensembles.people import People
from raypipe.packaging.bundle import LoadedEnsemble


def require_people(ensemble: LoadedEnsemble) -> People:
    """Return how mean predictions of people are read.

    Raises
    ------
    UserError
        The bundle's target is not the person's.
    """
    if ensemble.info.people is None:
        raise UserError(
            f"level subject: target '{ensemble.info.target}' is of a window, not of a person; use window or recording"
        )
    return ensemble.info.people


def people_table(ensemble: LoadedEnsemble, windows: pd.DataFrame) -> pd.DataFrame:
    """Return one row per person of a table of windows, in order of first appearance.

    Every window of a person counts once, whatever its recording, as in the scores of the ensemble.

    Raises
    ------
    UserError
        A window names no subject, or the target is not the person's.
    """
    people = require_people(ensemble)
    if (unnamed := int((windows["subject"] == "").sum())) > 0:
        raise UserError(f"level subject: {unnamed} windows name no subject; say whose they are by subject")
    names = ensemble.columns
    by = windows.groupby("subject", sort=False)
    table = by["recording"].nunique().rename("recordings").to_frame()
    table["windows"] = by.size()
    table["role"] = by["role"].first()
    means = by[names].mean().to_numpy()
    return _read_means(ensemble, people, table.reset_index(), names, means)


def _read_means(
    ensemble: LoadedEnsemble, people: People, table: pd.DataFrame, names: list[str], means: NDArray[Any]
) -> pd.DataFrame:
    """Add calibrated probabilities and classes, or values and their intervals, to the table of people."""
    if ensemble.classes:
        table[names] = people.probabilities(means)
        table["prediction"] = ensemble.decide(means)  # by the weights that were chosen, and scored, on these means
        return table
    table[names] = means
    for name, half in zip(names if people.half_widths else (), people.half_widths, strict=True):
        suffix = name.removeprefix("prediction")  # empty, or _NAME of one of several values
        table[f"low{suffix}"], table[f"high{suffix}"] = table[name] - half, table[name] + half
    return table
