from __future__ import annotations

import io

import pytest
from rich.console import Console

from raypipe.ensembles.fit import fit_ensemble


def shown(ensemble) -> list[str]:
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(ensemble.render())
    return console.export_text().splitlines()


@pytest.mark.parametrize("run", ["values", "classes"])
def test_the_table_fits_a_terminal_of_80_columns(request, run):
    made = request.getfixturevalue(run)
    ensemble = fit_ensemble(made.run, method="all", windows=made.windows)
    lines = shown(ensemble)
    row, table = next(line for line in lines if line.startswith("ensemble ")), ensemble.table.loc["ensemble"]
    for column in ("nested", "held_out"):
        assert f" {table[column]:.3f}" in row
    for name in ("nested_to_best", "difference"):
        value, low, high = (table[name + end] for end in ("", "_low", "_high"))
        assert f" {value:+.3f} ({low:+.3f}, {high:+.3f})" in row
    assert [line.split("  ")[0].strip() for line in lines if line.startswith(("best trial", "no EEG", "ridge"))] == [
        "best trial",
        "ridge",
        "no EEG",
    ]
    text = " ".join(" ".join(lines).split())
    assert text.startswith(ensemble.verdict)
    assert f"No EEG: {ensemble.table.index[-1]}." in text and ("NRMSE, lower" in text or "AUC, higher" in text)
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
