"""What a notebook shows of an ensemble."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raypipe.ensembles.fitted import Ensemble


def ensemble_html(ensemble: Ensemble) -> str:
    """Return verdict, score table, members and notes of an ensemble."""
    shown = ensemble.table[["oof", "held_out", "low", "high"]].rename(
        columns={"oof": "out of fold", "held_out": "held out"}
    )
    members = ", ".join(
        f"{member} ({weight:.0%})" for member, weight in zip(ensemble.members, ensemble.weights, strict=True)
    )
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in ensemble.notes)
    return (
        f"<p><b>{html.escape(ensemble.verdict)}</b></p>"
        + shown.to_html(float_format=lambda value: f"{value:z.4f}", na_rep="")
        + rows_html({"method": ensemble.method, "members": members})
        + (f"<ul>{notes}</ul>" if notes else "")
    )


def rows_html(rows: Mapping[str, str]) -> str:
    """Return names and texts as a table of two columns."""
    cells = "".join(
        f'<tr style="text-align:left"><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>'
        for name, text in rows.items()
    )
    return f"<table>{cells}</table>"
