"""Read a run's trials as a pandas table, and write the table to a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from raypipe.core.config import TrialConfig
from raypipe.core.effects import why_unused
from raypipe.core.errors import UserError
from raypipe.core.parameters import flatten, parameter_names
from raypipe.storage.files import write_atomic
from raypipe.storage.lease import read_lease
from raypipe.storage.local_path import local_file
from raypipe.storage.records import TrialResult, best_epoch
from raypipe.storage.run_store import RunStore

FORMATS = ("csv", "json", "parquet")
_KNOWN = frozenset(parameter_names())


def trials_table(run: RunStore) -> pd.DataFrame:
    """Return a table with a row for each trial, ended or not, indexed by ``number``.

    Parameters
    ----------
    run
        The run.

    Returns
    -------
    pandas.DataFrame
        ``state`` (complete, stopped, pruned, failed, running, interrupted); ``score`` over all folds at ``best_epoch``
        (`RunStore.scored` says of what) and ``fold_0``, ``fold_1``, ... at the same epoch, NaN where there is none;
        ``trained`` epochs; ``seconds`` of one worker, training and predicting, summed over the folds; ``failure``
        (kind) and ``reason``; then every parameter under its own name, such as ``optim/lr``, missing where the space
        drew no valid configuration.

    Raises
    ------
    UserError
        A trial's records are damaged.
    """
    driver = read_lease(run.folder)
    unfinished = "running" if driver and driver.alive else "interrupted"
    recorded, ended = set(run.numbers()), set(run.numbers("result.json"))
    folds = [f"fold_{fold}" for fold in range(run.folds.n_folds)]
    rows: dict[int, dict[str, Any]] = {}
    for number in sorted(recorded | ended):
        result = run.result(number) if number in ended else None
        parameters = flatten(run.config(number)) if number in recorded else {}
        rows[number] = _progress(run, number, folds) | _outcome(result, unfinished) | parameters
    first = ["state", "score", *folds, "best_epoch", "trained", "seconds", "failure", "reason"]
    table = pd.DataFrame(
        rows.values(),
        index=pd.Index(rows, name="number", dtype="int64"),
        columns=pd.Index([*first, *_parameters_of(rows.values())]),
    )
    return table.astype(dict.fromkeys(["score", *folds, "seconds"], float))


def _parameters_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names of the parameters that trials have, in order; without trials, those of the default model."""
    found = {name for row in rows for name in row if name in _KNOWN or "/" in name} or set(flatten(TrialConfig()))
    return [*(name for name in parameter_names() if name in found), *sorted(found - _KNOWN)]


def _progress(run: RunStore, number: int, folds: list[str]) -> dict[str, Any]:
    """Return the columns that are read from a trial's epochs."""
    history = run.history(number)
    best = best_epoch(history, run.info.direction)
    scores = best.fold_scores if best else [None] * len(folds)
    return {
        "score": best.score if best else None,
        **dict(zip(folds, scores, strict=False)),
        "best_epoch": best.epoch if best else 0,
        "trained": len(history),
        "seconds": sum(epoch.seconds for epoch in history),
    }


def _outcome(result: TrialResult | None, unfinished: str) -> dict[str, Any]:
    """Return the columns that are read from a trial's result; `unfinished` is the state of a trial without one."""
    if result is None:
        return {"state": unfinished, "failure": None, "reason": ""}
    return {"state": result.state, "failure": result.failure, "reason": result.reason}


def varied_parameters(table: pd.DataFrame) -> list[str]:
    """Return the names of the parameters that differ between the table's trials."""
    names = [name for name in table if "/" in str(name) or name in parameter_names()]
    return [str(name) for name in names if len(set(map(repr, table[name].dropna()))) > 1]


def is_unused(parameters: Mapping[Any, Any], name: str) -> bool:
    """Return whether other parameters of a trial switch a parameter off, as ``sam/name=none`` does ``sam/rho``.

    A parameter that the trial's model does not have (NaN in a table) is unused too.
    """
    value = parameters.get(name, "")
    return value is None or value != value or why_unused(parameters, name) is not None


def write_table(table: pd.DataFrame, kind: str, out: str | Path) -> None:
    """Write a table to a file, whole or not at all.

    Parameters
    ----------
    table
        From `trials_table`.
    kind
        One of `FORMATS`; JSON is a list with an object for each trial.
    out
        The file.

    Raises
    ------
    UserError
        `kind` is not one of `FORMATS`, or `out` is a folder.
    """
    path = local_file(out, "a table is written", f"trials.{kind}")
    write_atomic(path, lambda file: file.write(encode_table(table, kind)))


def encode_table(table: pd.DataFrame, kind: str) -> bytes:
    """Return a table as the bytes of a file; missing values are empty (CSV) or null.

    Values of several types in one column are text in a Parquet file, which has one type for each.

    Raises
    ------
    UserError
        `kind` is not one of `FORMATS`.
    """
    rows = table.reset_index()
    if kind == "csv":
        return rows.to_csv(index=False).encode()
    if kind == "json":
        records = rows.astype(object).where(rows.notna(), None).to_dict("records")
        return (json.dumps(records, indent=1) + "\n").encode()  # pandas' own JSON cuts numbers after 15 digits
    if kind == "parquet":
        return bytes(rows.assign(**{str(name): _of_one_type(rows[name]) for name in rows}).to_parquet(index=False))
    raise UserError(f"a table is written as {', '.join(FORMATS)} (given {kind})")


def _of_one_type(column: pd.Series[Any]) -> pd.Series[Any]:
    """Return a column, as text if Parquet has no type for its values, such as numbers and text."""
    import pyarrow

    try:
        pyarrow.array(column, from_pandas=True)
    except pyarrow.ArrowException:
        return column.map(lambda value: value if isinstance(value, str) else json.dumps(value), na_action="ignore")
    return column
