"""A run's trials as a table: in memory for pandas, in a file for whatever else. Ray need not run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from raypipe.core.config import flat, parameter_names
from raypipe.core.errors import UserError
from raypipe.storage.files import write_atomic
from raypipe.storage.lease import read_lease
from raypipe.storage.records import best_epoch
from raypipe.storage.run_store import RunStore

FORMATS = ("csv", "json", "parquet")


def trials_table(run: RunStore) -> pd.DataFrame:
    """One row a trial, ended or not, by ``number``.

    Parameters
    ----------
    run
        The run.

    Returns
    -------
    pandas.DataFrame
        ``state`` (complete, stopped, pruned, failed, running, interrupted); ``score`` over all folds at ``best_epoch``
        and ``fold_0``, ``fold_1``, ... at the same epoch, NaN where there is none; ``trained`` epochs; ``seconds`` of
        one worker, training and predicting, summed over the folds; ``failure`` (kind) and ``reason``; then every
        parameter under its own name, such as ``optim/lr``. A draw that was no valid configuration has none.

    Raises
    ------
    UserError
        A trial's records are damaged.
    """
    driver = read_lease(run.folder)
    under_way = "running" if driver and driver.alive else "interrupted"
    recorded, over = set(run.numbers()), set(run.numbers("result.json"))
    folds = [f"fold_{fold}" for fold in range(run.folds.n_folds)]
    rows: dict[int, dict[str, Any]] = {}
    for number in sorted(recorded | over):
        history, ended = run.history(number), run.result(number) if number in over else None
        best = best_epoch(history, run.info.direction)
        rows[number] = {
            "state": ended.state if ended else under_way,
            "score": best.score if best else None,
            **dict(zip(folds, best.fold_scores if best else [None] * len(folds), strict=False)),
            "best_epoch": best.epoch if best else 0,
            "trained": len(history),
            "seconds": sum(epoch.seconds for epoch in history),
            "failure": ended.failure if ended else None,
            "reason": ended.reason if ended else "",
            **(flat(run.config(number)) if number in recorded else {}),
        }
    first = ["state", "score", *folds, "best_epoch", "trained", "seconds", "failure", "reason"]
    table = pd.DataFrame(
        rows.values(),
        index=pd.Index(rows, name="number", dtype="int64"),
        columns=pd.Index([*first, *parameter_names()]),
    )
    return table.astype(dict.fromkeys(["score", *folds, "seconds"], float))


def searched(table: pd.DataFrame) -> list[str]:
    """Names of the parameters in which a table's trials differ."""
    drawn = table[[name for name in parameter_names() if name in table]].dropna(how="all")
    return [str(name) for name in drawn if len(set(map(repr, drawn[name]))) > 1]


def write_table(table: pd.DataFrame, kind: str, out: str | Path) -> None:
    """Write `table` whole or not at all.

    Parameters
    ----------
    table
        From `trials_table`.
    kind
        One of `FORMATS`; JSON is a list with an object a trial.
    out
        The file.

    Raises
    ------
    UserError
        `kind` is none of them, or `out` is a folder.
    """
    path = Path(out)
    if path.is_dir():
        raise UserError(f"{out}: a folder; name a file")
    write_atomic(path, lambda file: file.write(packed(table, kind)))


def packed(table: pd.DataFrame, kind: str) -> bytes:
    """`table` as the bytes of a file; missing values are empty (CSV) or null."""
    rows = table.reset_index()
    if kind == "csv":
        return rows.to_csv(index=False).encode()
    if kind == "json":
        records = rows.astype(object).where(rows.notna(), None).to_dict("records")
        return (json.dumps(records, indent=1) + "\n").encode()  # pandas' own cuts numbers after 15 digits
    if kind == "parquet":
        return bytes(rows.to_parquet(index=False))
    raise UserError(f"a table is written as {', '.join(FORMATS)} (given {kind})")
