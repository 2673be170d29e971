"""Show a fitted ensemble in a terminal of 80 columns."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from raypipe.core.metrics import get_metric
from raypipe.core.own_code import object_names
from raypipe.core.text import one_line
from raypipe.ensembles.fitted import Ensemble
from raypipe.ensembles.labels import metric_label, resampled
from raypipe.ensembles.scores import BEST, DISTILLED, ENSEMBLE


def render(ensemble: Ensemble) -> Group:
    """Return verdict, score table, members and notes."""
    parts: list[RenderableType] = [
        Text(ensemble.verdict),
        "",
        _table(ensemble),
        _caption(ensemble),
        "",
        _members(ensemble),
    ]
    if ensemble.families:
        parts += ["", _families(ensemble)]
    if ensemble.notes:
        parts.append("")
    parts.extend(Text(one_line(f"- {note}")) for note in ensemble.notes)
    return Group(*parts)


def _table(ensemble: Ensemble) -> Table:
    """Show nested scores beside held-out ones, and differences to what is shipped, all at the primary level."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("", overflow="fold")
    shipped = DISTILLED if ensemble.distilled else ENSEMBLE
    to = f"difference\nto {'distilled' if ensemble.distilled else 'ensemble'}"
    for head in ("nested\nscore", f"nested {to}", "held-out\nscore", f"held-out {to}"):
        table.add_column(head, justify="right", no_wrap=True)
    short = {one.name: one.name.partition(" on ")[2] for one in ensemble.baselines}
    for name, row in ensemble.table.iterrows():
        best, without_eeg, own = name == BEST, name == ensemble.table.index[-1], name == shipped
        table.add_row(
            "best trial" if best else "no EEG" if without_eeg else short.get(str(name), str(name)),
            _number(row["nested"]),
            "" if own else _difference(row, "nested_to_shipped"),
            _number(row["held_out"]),
            "" if own else _difference(row, "to_shipped"),
        )
    return table


def _families(ensemble: Ensemble) -> Table:
    """Show what each family of models brings; differences are positive where they favour the ensemble."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("family", overflow="fold")
    for head in ("nested\nalone", "ensemble\nbetter by", "error\ncorr.", "weight", "loss\nwithout it"):
        table.add_column(head, justify="right", no_wrap=True)
    names = object_names([family.name for family in ensemble.families])
    for name, family in zip(names, ensemble.families, strict=True):
        table.add_row(
            Text(one_line(name)),
            _number(family.score),
            _signed(family.gain, family.gain_low, family.gain_high),
            "" if family.correlation is None else f"{family.correlation:z.2f}",
            f"{family.weight:.2f}",
            _signed(family.loss, family.loss_low, family.loss_high),
        )
    return table


def _signed(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return ""
    return f"{value:+z.3f}" if low is None or high is None else f"{value:+z.3f} ({low:+z.3f}, {high:+z.3f})"


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:z.3f}"


def _difference(row: Any, name: str) -> str:
    value, low, high = (row[name + end] for end in ("", "_low", "_high"))
    if math.isnan(value):
        return ""
    return f"{value:+z.3f}" if math.isnan(low) else f"{value:+z.3f} ({low:+z.3f}, {high:+z.3f})"


def _caption(ensemble: Ensemble) -> Text:
    table, metric = ensemble.table, ensemble.run.info.metric
    better = "lower" if get_metric(metric).sign > 0 else "higher"
    first = table.iloc[0]
    level = "of one mean prediction per subject" if ensemble.by_subject else "of windows"
    return Text(
        f"{metric_label(metric)} {level}, {better} is better; differences with 95 % intervals over "
        f"{resampled(int(first['subjects']), int(first['units']))}. Held out: {int(first['subjects'])} subjects, "
        f"{int(first['windows'])} windows. No EEG: {table.index[-1]}.{_baselines(ensemble)}",
        style="dim",
    )


def _baselines(ensemble: Ensemble) -> str:
    """Return a sentence that names the classical baselines in the table, whose rows have short names."""
    if not ensemble.baselines:
        return ""
    model = ensemble.baselines[0].name.partition(" on ")[0]
    names = [f"{one.name.partition(' on ')[2]}{'' if one.usable else ' (not EEG)'}" for one in ensemble.baselines]
    return f" Classical baselines: {model} on {', '.join(names)}."


def _members(ensemble: Ensemble) -> Text:
    """List the members, with their weights where they are combined by fixed weights."""
    if len(ensemble.members) == 1 and ensemble.merged is None:
        return Text(f"Members ({ensemble.method}): {ensemble.members[0]} alone")
    weighted = ensemble.merged is None and (ensemble.rule is None or ensemble.rule["kind"] == "linear")
    names = [
        f"{member} {weight:.3f}" if weighted else str(member)
        for member, weight in zip(ensemble.members, ensemble.weights, strict=True)
    ]
    more = "; distilled into one network" if ensemble.distilled else "; averaged weights" if ensemble.merged else ""
    return Text(f"Members ({ensemble.method}): {', '.join(names)}{more}")
