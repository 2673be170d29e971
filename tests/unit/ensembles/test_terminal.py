from __future__ import annotations

import io

import pytest
from rich.console import Console

from raypipe.ensembles.fit import fit_ensemble

ROWS = {
    "ensemble": "ensemble",
    "best trial": "best single trial",
    "ridge": "ridge",
    "band power": None,
    "no EEG": None,
}
"""Rows of the table by the name that the terminal shows."""


def shown(ensemble) -> list[str]:
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(ensemble.render())
    return console.export_text().splitlines()


@pytest.mark.parametrize("run", ["values", "classes"])
def test_the_table_fits_a_terminal_of_80_columns(request, run):
    made = request.getfixturevalue(run)
    ensemble = fit_ensemble(made.run, method="all", windows=made.windows)
    lines = shown(ensemble)
    assert max(map(len, lines)) <= 80
    names = ROWS | {"band power": ensemble.baselines[-1].name, "no EEG": ensemble.table.index[-1]}
    rows = {name: next(line for line in lines if line.startswith(f"{name} ")) for name in ROWS}
    for shown_as, name in names.items():
        row, table = rows[shown_as], ensemble.table.loc[name]
        for column in ("nested", "held_out"):
            assert f" {table[column]:.3f}" in row
        for column in ("nested_to_shipped", "to_shipped"):
            value, low, high = (table[column + end] for end in ("", "_low", "_high"))
            assert (f" {value:+.3f} ({low:+.3f}, {high:+.3f})" in row) == (shown_as != "ensemble")
    assert [line.split("  ")[0].strip() for line in lines if line.startswith(tuple(ROWS))] == list(ROWS)
    text = " ".join(" ".join(lines).split())
    assert text.startswith(ensemble.verdict)
    assert f"No EEG: {ensemble.table.index[-1]}." in text and (
        "NRMSE of windows, lower" in text or "AUC of windows, higher" in text
    )
    for note in ensemble.notes:
        assert note in text


def test_members_are_listed_with_fixed_weights_only(values):
    def members(**options) -> str:
        return next(line for line in shown(values.ensemble(**options)) if line.startswith("Members"))

    best, *others = (result.number for result in values.run.ranked())
    assert members(method="best") == f"Members (best): trial {best} alone"
    assert (
        members(method="equal")
        == f"Members (equal): trial {best} 0.333, trial {others[0]} 0.333, trial {others[1]} 0.333"
    )
    assert members(method="boosting") == f"Members (boosting): trial {best}, trial {others[0]}, trial {others[1]}"
