"""Print status, trials and comparisons of runs as tables in a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from raypipe.core.own_metrics import shown_metric
from raypipe.core.text import format_duration, format_value, one_line
from raypipe.ensembles.labels import describe_interval
from raypipe.storage.remote import shell_quoted

if TYPE_CHECKING:
    import pandas as pd

    from raypipe.reporting.compare import Comparison
    from raypipe.reporting.pairing import PairedDifference
    from raypipe.reporting.status import Status, TrialRow

COST_HEADS = {"worker_seconds": "compute", "driven_seconds": "wall-clock", "best_trial": "best trial"}
"""Heads of columns of costs whose names are others, as in reports."""
LEFT_ALIGNED = {"state", "model", "reason", "failure"}
"""Columns of text."""


def print_line(console: Console, text: str, style: str | None = None) -> None:
    """Print one line as it is, unwrapped and without markup, so that it can be copied and searched."""
    console.print(one_line(text), style=style, highlight=False, markup=False, soft_wrap=True)


def _text(cell: str) -> Text:
    """Return a cell of a table as text of one line."""
    return Text(one_line(cell))


def _table(columns: list[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(_text(name), justify="left" if name in LEFT_ALIGNED else "right")
    return table


def show_status(console: Console, status: Status) -> None:
    """Print the state of a run: its trials, their counts, reruns and the newest failures."""
    rows = status.top_rows()
    print_line(console, f"{status.where}: {status.target}, {status.driver}")
    console.print(_status_table(status))
    if hidden := len(status.rows) - len(rows):
        print_line(console, f"{hidden} more trials; all of them: raypipe trials {shell_quoted(status.where)}", "dim")
    print_line(console, _counts(status))
    print_line(console, f"{shown_metric(status.metric)}: of {status.scored}", "dim")
    for spread in status.spreads:
        print_line(console, spread.describe(shown_metric(status.metric)))
    if status.resources:
        print_line(console, ", ".join(status.resources), "dim")
    for request, answer in status.requests:
        print_line(console, f"asked to {request.describe()}: {answer.text if answer else 'no answer yet'}")
    for failed in status.failures:
        logs = f"raypipe logs {shell_quoted(status.where)} {failed.number}"
        print_line(console, f"trial {failed.number} failed ({failed.kind}); more in: {logs}")
        for text in failed.lines:
            print_line(console, f"  {text}", "dim")


def _status_table(status: Status) -> Table:
    metric = shown_metric(status.metric)
    models = ["model"] if status.has_families else []
    table = _table(["trial", "state", *models, metric, "best epoch", "epochs", "compute", "reason"])
    for row in status.top_rows():
        table.add_row(
            str(row.number),
            row.state,
            *[_text(row.model) for _ in models],
            _score(row),
            str(row.best_epoch or ""),
            f"{row.epochs}/{row.total}" if row.total else "",
            format_duration(row.seconds) if row.epochs else "",
            "" if row.state == "complete" else _text(row.reason),
        )
    return table


def _score(row: TrialRow) -> str:
    if row.score is None:
        return "undefined" if row.epochs else ""
    return f"{row.score:z.4f}"


def _counts(status: Status) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in status.failure_kinds.most_common())
    states = [
        f"{count} {state}" + (f" ({kinds})" if state == "failed" else "")
        for state, count in sorted(status.states.items())
    ]
    left = f"; {status.time_left} left" if status.time_left else ""
    return f"{len(status.rows)} of {status.planned} trials: {', '.join(states) or 'no trial yet'}{left}"


def show_trials(console: Console, trials: pd.DataFrame) -> None:
    """Print the trials of a run with the parameters in which they differ, wider than the terminal if needed."""
    from raypipe.reporting.trial_table import varied_parameters

    shown = ["state", "score", "trained", "seconds", *varied_parameters(trials), "failure"]
    table = _table(["number", *shown])
    for column in table.columns:
        column.no_wrap = True
    for number, row in trials[shown].astype(object).iterrows():
        cells = ["" if value is None or value != value else format_value(value) for value in row]
        cells[1] = f"{row['score']:z.4f}" if cells[1] else ""
        table.add_row(str(number), *map(_text, cells))
    needed = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    console.print(table, width=max(console.width, needed), crop=False)  # else rich would cut numbers short


def show_comparison(console: Console, comparison: Comparison) -> None:
    """Print the comparison of runs with the first: conditions, paired differences, parameters, cost."""
    first, *others = comparison.runs
    for name, conditions, differences in zip(others, comparison.conditions, comparison.differences, strict=True):
        print_line(console, f"{name} against {first}", "bold")
        for condition in conditions:
            print_line(console, f"  {condition.text}", None if condition.same else "bold yellow")
        for text, style in _difference_lines(differences, comparison.metric):
            print_line(console, text, style)
    for note in comparison.notes:
        print_line(console, note, "dim")
    for title, frame in (
        ("parameters of the best trials that differ", comparison.parameters),
        ("cost", _shown_cost(comparison.cost)),
    ):
        print_line(console, title, "bold")
        if len(frame):
            console.print(_frame_table(frame))
        else:
            print_line(console, "  none")


def _difference_lines(differences: list[PairedDifference], metric: str) -> Iterator[tuple[str, str | None]]:
    """Yield lines about the differences of two runs, each with its style."""
    for each in differences:
        subjects, windows = _part(each.subjects, each.subjects_of), _part(each.windows, each.windows_of)
        unit = f"{windows} windows" if each.windows else "one mean prediction per subject"
        unit = unit if each.units == each.subjects else f"in {each.units} groups, {unit}"
        interval = describe_interval(each.low, each.high, sign="+", digits=4)
        yield (
            f"  {each.predictor}: {shown_metric(metric)} {each.scores[0]:z.4f} and {each.scores[1]:z.4f}, difference "
            f"{each.difference:+z.4f} ({interval}; {subjects} subjects, "
            f"{unit}): {each.describe(metric)}",
            None,
        )
        if each.mismatched:
            yield f"    {each.mismatched} in both runs have different targets: left out", "bold yellow"
    if not differences:
        yield "  NOTHING IN COMMON: no window and no subject that both predict", "bold yellow"


def _part(n: int, of: tuple[int, int]) -> str:
    """Return a number that two runs have in common, and how many each has if it has more."""
    return str(n) if of == (n, n) else f"{n} of the {of[0]} and {of[1]}"


def _frame_table(frame: pd.DataFrame) -> Table:
    """Return a data frame as a table, in which what is too long for the terminal is wrapped and not cut."""
    table = Table(box=None, header_style="bold")
    table.add_column("", overflow="fold")
    for column in frame.columns:
        table.add_column(_text(str(column)), justify="right", overflow="fold")
    for label, row in frame.astype(object).iterrows():
        table.add_row(_text(str(label)), *(_text(format_value(value)) for value in row))
    return table


def _shown_cost(cost: pd.DataFrame) -> pd.DataFrame:
    """Return costs of runs with durations in words, under the heads that reports have."""
    shown = cost.astype(object)
    for name in shown.columns[shown.columns.str.endswith("_seconds")]:
        shown[name] = [format_duration(seconds) for seconds in cost[name]]
    return shown.rename(columns=COST_HEADS)
