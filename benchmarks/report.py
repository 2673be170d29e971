"""Results of a benchmark: how they are put together, printed, saved, and compared with earlier ones.

A result has times of contestants that took turns, ratios of them within the same rounds, other figures, goals, and
what could not be measured. A ratio is a peer's time divided by raypipe's: the larger, the better. Machines differ in
seconds, and the same machine differs from day to day, so results are compared by ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.timing import where

Result = dict[str, Any]
FAILED = "it failed"
LARGEST = "largest parts of the floor by kernel (ms)"
"""A figure of a roofline that has a line of its own."""
GOAL_COLUMNS = ("goal", "at least", "measured", "")
LEAST_SPREAD = 0.02
"""A ratio counts as worse by more than this fraction of it at least."""


def result(title: str, device: str = "cpu") -> Result:
    """Return a result with nothing in it yet."""
    parts = ("seconds", "ratios", "figures", "rooflines", "tables", "missing")
    return {"title": title, "where": where(device), **{part: {} for part in parts}, "goals": []}


def add_times(to: Result, times: Mapping[str, Sequence[float]], prefix: str = "") -> None:
    """Add the seconds of every contestant: median, quartiles, number of turns."""
    for name, seconds in times.items():
        to["seconds"][prefix + name] = {**_quartiles(seconds), "turns": len(seconds)}


def build(
    to: Result, builders: Mapping[str, Callable[[], Callable[[], object]]], prefix: str = ""
) -> dict[str, Callable[[], object]]:
    """Build contestants and call each once; those that raise an error are left out, and the result says why."""
    found = {}
    for name, builder in builders.items():
        try:
            work = builder()
            work()
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            to["missing"][prefix + name] = f"{FAILED} with {type(error).__name__}: {first}"
        else:
            found[name] = work
    return found


def has_failed(found: Result) -> bool:
    """Return whether the benchmark or something that it times has failed."""
    return "failed" in found or any(reason.startswith(FAILED) for reason in found.get("missing", {}).values())


def add_ratio(to: Result, name: str, peer: Sequence[float], ours: Sequence[float]) -> float:
    """Add the ratio of two contestants' times, by round; return its median."""
    by_round = [a / b for a, b in zip(peer, ours, strict=True)]
    to["ratios"][name] = {**_quartiles(by_round), "rounds": len(by_round)}
    return statistics.median(by_round)


def add_table(to: Result, name: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Add a table of what was not timed, such as the results of simulations."""
    to["tables"][name] = {"head": list(head), "rows": [list(row) for row in rows]}


def add_goal(to: Result, name: str, measured: float | None, least: float) -> None:
    """Add a goal that a figure is at least a number; `measured` is None if it could not be measured."""
    met = None if measured is None else measured >= least
    to["goals"].append({"goal": name, "least": least, "measured": measured, "met": met})


def _quartiles(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * [values[0]]
    return {"median": middle, "low": low, "high": high}


def text(found: Result, head: str = "") -> str:
    """Return a result as Markdown, which can be read on a console too."""
    lines = [f"{head}{found['title']}", "", ", ".join(f"{name} {value}" for name, value in found["where"].items()), ""]
    for rows_of in (_times, _ratios, _figures, _rooflines, _goals):
        columns, rows = rows_of(found)
        lines += table(columns, rows) if rows else []
    for name, each in found["tables"].items():
        lines += [name, "", *table(each["head"], each["rows"])]
    for name, each in found["rooflines"].items():
        lines += [f"- {name}, {LARGEST}: {_figure(each[LARGEST])}"] if LARGEST in each else []
    lines += [f"- {name}: not measured, {reason}" for name, reason in found["missing"].items()]
    return "\n".join(lines).rstrip() + "\n"


Rows = tuple[Sequence[str], Sequence[Sequence[str]]]


def _times(found: Result) -> Rows:
    rows = [
        (name, f"{1e3 * v['median']:.3f}", f"{1e3 * v['low']:.3f} to {1e3 * v['high']:.3f}", str(v["turns"]))
        for name, v in found["seconds"].items()
    ]
    return ("", "ms", "quartiles", "turns"), rows


def _ratios(found: Result) -> Rows:
    rows = [
        (name, f"{v['median']:.2f}", f"{v['low']:.2f} to {v['high']:.2f}", str(v["rounds"]))
        for name, v in found["ratios"].items()
    ]
    return ("times as quick", "ratio", "quartiles", "rounds"), rows


def _figures(found: Result) -> Rows:
    return ("figure", ""), [(name, _figure(value)) for name, value in found["figures"].items()]


def _rooflines(found: Result) -> Rows:
    every = found["rooflines"]
    figures = [name for name in next(iter(every.values()), {}) if name != LARGEST]
    return ("roofline", *every), [(name, *(_figure(each[name]) for each in every.values())) for name in figures]


def _goals(found: Result) -> Rows:
    return GOAL_COLUMNS, [goal_row(goal) for goal in found["goals"]]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table with columns of even width, and an empty line after it."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(w) if k == 0 else cell.rjust(w) for k, (cell, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = "|".join(["-" * (w + 2) if k == 0 else "-" * (w + 1) + ":" for k, w in enumerate(widths)])
    return [line(head), f"|{rule}|", *map(line, rows), ""]


def _figure(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_figure(each)}" for name, each in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def goal_row(goal: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Return the row of a goal in a table."""
    measured = "not measured" if goal["measured"] is None else f"{goal['measured']:.2f}"
    return goal["goal"], f"{goal['least']:g}", measured, {None: "", True: "met", False: "not met"}[goal["met"]]


def has_spread(ratio: Mapping[str, float]) -> bool:
    """Return whether a ratio is of several rounds; one of a single round is not compared."""
    return ratio["rounds"] > 1


def worse(before: Mapping[str, float], now: Mapping[str, float]) -> str | None:
    """Return what to say of a ratio that got worse by more than its spread; None for any other.

    The spread is the distance between the quartiles of the rounds, the larger of both results.
    """
    spread = max(each["high"] - each["low"] for each in (now, before))
    spread = max(spread, LEAST_SPREAD * before["median"])
    if before["median"] - now["median"] <= spread:
        return None
    return f"{now['median']:.2f}, was {before['median']:.2f} (spread {spread:.2f})"


def main(
    parser: argparse.ArgumentParser,
    measure: Callable[[argparse.Namespace], Result],
    words: Sequence[str] | None = None,
) -> None:
    """Measure what the command line asks for; print the result and save it where `--json` says.

    A benchmark of several parts calls ``args.so_far(result)`` after each, so that a run that is cut off leaves them.
    """
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the result there too")
    args = parser.parse_args(words)
    settings = {name: value for name, value in vars(args).items() if name != "json"}

    args.so_far = partial(_save_result, args.json, settings)
    found = measure(args)
    args.so_far(found)
    print(text(found))


def _save_result(path: Path | None, settings: dict[str, Any], found: Result) -> None:
    if path:
        save(path, found | {"settings": settings})


def save(path: Path, found: Mapping[str, Any]) -> None:
    """Write a result; a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(found, indent=1, default=str) + "\n")
    partial.replace(path)
