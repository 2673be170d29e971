"""Predict a recording with a bundle whose networks take windows of different stores: it is prepared once for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raypipe.data.alignment_units import SubjectAlignments
from raypipe.data.kept_windows import windows_of
from raypipe.data.named_stores import common_rows, row_keys
from raypipe.data.targets import parse_target
from raypipe.data.windower import ROW_COLUMNS
from raypipe.packaging.bundle import BATCH_SIZE, LoadedEnsemble, check_windows
from raypipe.packaging.bundle_info import Recipe
from raypipe.packaging.scale_check import check_scale
from raypipe.packaging.store_modules import StoreModules, StorePredictions
from raypipe.recordings.recording import Recording


def predict_by_store(
    ensemble: LoadedEnsemble, stores: StoreModules, recording: Recording, alignments: Mapping[str, SubjectAlignments]
) -> tuple[pd.DataFrame, NDArray[np.float32], Counter[str]]:
    """Prepare a recording by each recipe, predict the windows that all of them keep, and combine.

    Parameters
    ----------
    ensemble, stores
        The bundle, and its networks by store.
    recording
        The recording.
    alignments
        How subjects are aligned, by store.

    Returns
    -------
    rows
        A row per window.
    predictions
        (N, outputs).
    left_out
        Windows left out by reason; a reason that differs between stores names the store.
    """
    tables: dict[str, pd.DataFrame] = {}
    found: dict[str, StorePredictions] = {}
    losses: dict[str, Counter[str]] = {}
    for name, recipe in ensemble.info.recipes.items():
        tables[name], found[name], losses[name] = _predict_store(stores, name, recipe, recording, alignments[name])
    rows = common_rows({name: row_keys(table) for name, table in tables.items()})
    first = next(iter(rows))
    table = tables[first].iloc[rows[first]].reset_index(drop=True)
    predictions = np.empty((0, ensemble.info.n_outputs), np.float32)
    if len(table):
        predictions = stores.combine({name: found[name].select(rows[name]) for name in rows})
    return table, predictions, _reasons(losses)


def _predict_store(
    stores: StoreModules, name: str, recipe: Recipe, recording: Recording, alignments: SubjectAlignments
) -> tuple[pd.DataFrame, StorePredictions, Counter[str]]:
    """Return the windows of a recording by one recipe, the predictions of its networks, and what is left out."""
    plan = recipe.prepare
    cut, left_out = windows_of(recording, parse_target(plan), plan, None, alignments.of(recording))
    tables = [pd.DataFrame(columns=list(ROW_COLUMNS))]
    parts: list[StorePredictions] = []
    spreads: list[float] = []
    for part in cut:
        check_windows(part.crops, recipe, name)
        tables.append(part.table)
        starts = range(0, len(part.crops), BATCH_SIZE)
        parts += [stores.predict(name, part.crops[start : start + BATCH_SIZE]) for start in starts]
        spreads += part.spreads.tolist()
    check_scale(recipe.scale, recording, spreads)
    none = np.empty((len(recipe.members), 0, stores.info.n_outputs), np.float32)
    values = np.concatenate([none, *(each.values for each in parts)], axis=1)
    variances = [each.variances for each in parts if each.variances is not None]
    table = pd.concat(tables[1:] or tables, ignore_index=True)
    return table, StorePredictions(values, np.concatenate(variances, axis=1) if variances else None), left_out


def _reasons(losses: Mapping[str, Counter[str]]) -> Counter[str]:
    """Join what the recipes left out: a reason with the same count in all once, others with the store's name."""
    out: Counter[str] = Counter()
    for name, lost in losses.items():
        for reason, count in (+lost).items():
            same = all(other[reason] == count for other in losses.values())
            out[reason if same else f"{reason} (store {name})"] = count
    return out
