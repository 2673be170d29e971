"""``make chaos N=200``: many seeds, and a table of what happened. Exit status 1 where anything was lost."""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.plan import FOLDS, PAUSE_SECONDS, SYNC_SECONDS, VICTIMS, Plan, draw
from tests.chaos.play import Played, differences, place, play, prepare, undisturbed
from tests.support.rays import OwnRay, SharedRay
from tests.support.waiting import WaitedInVainError

ENDS = ("lost", "different", "hung")
"""Bad ends of a run: it failed or left something behind; its numbers are others; it did not end."""


@dataclass
class Outcome:
    """How one run ended."""

    name: str
    plan: Plan
    end: str = "the same"
    played: Played = field(default_factory=Played)
    reason: str = ""

    def __str__(self) -> str:
        ends = "".join(f"; a driver ended with {line}" for line in self.played.ends)
        again = f", repeated {self.played.repeated}" if self.played.repeated else ""
        return f"{self.name}: {self.plan}: {self.end}, {self.played.seconds:.0f} s{again}{ends}"


def main() -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--place", choices=[*VICTIMS, "both"], default="both")
    parser.add_argument("--fault", default="", help="only seeds that draw it: 'pause', 'pause gcs', 'slow disk', ...")
    asked = parser.parse_args()
    kinds = list(VICTIMS) if asked.place == "both" else [asked.place]
    wanted = range(asked.seed, asked.seed + asked.runs)
    seeds = {
        kind: [s for s in wanted if s % len(kinds) == n and asked.fault in str(draw(s, kind))]
        for n, kind in enumerate(kinds)
    }
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    prepare(folder)
    reference = undisturbed(folder)
    outcomes: list[Outcome] = []
    try:
        for kind in filter(seeds.get, kinds):
            with place(kind, folder / kind) as where:
                for seed in seeds[kind]:
                    outcomes.append(run_seed(where, folder, seed, reference))
                    print(outcomes[-1], outcomes[-1].reason, sep="\n" if outcomes[-1].reason else "", flush=True)
                    if outcomes[-1].reason and isinstance(where, SharedRay):
                        where.restart()  # it may lack a node
    except KeyboardInterrupt:
        print("interrupted; so far:")
    print(table(outcomes))
    bad = [str(outcome) for outcome in outcomes if outcome.reason]
    if bad:
        print(*bad, f"kept in {folder}; one again: python -m tests.chaos --runs 1 --place PLACE --seed N", sep="\n")
    else:
        shutil.rmtree(folder)
    return bool(bad)


def run_seed(where: OwnRay | SharedRay, folder: Path, seed: int, reference: dict[int, Any]) -> Outcome:
    """Play a seed, and compare its numbers; remove a run that is the same."""
    outcome = Outcome(f"{where.name}-{seed}", draw(seed, where.name))
    try:
        outcome.played = play(where, folder, outcome.name, outcome.plan)
        if wrong := differences(folder / outcome.name, reference):
            outcome.end, outcome.reason = "different", "; ".join(wrong)
    except (WaitedInVainError, subprocess.TimeoutExpired):
        outcome.end, outcome.reason = "hung", traceback.format_exc()
    except Exception:
        outcome.end, outcome.reason = "lost", traceback.format_exc()
    if not outcome.reason:
        shutil.rmtree(folder / outcome.name)
    return outcome


def table(outcomes: list[Outcome]) -> str:
    """Return a line for each kind of fault: how often, bad ends of its runs, and epochs that were begun again."""
    header = ["kind of fault", "times", *ENDS, "repeated: median", "worst", "all folds: worst"]
    kinds = sorted({kind for outcome in outcomes for kind in outcome.plan.kinds})
    rows = [_row(kind, [outcome for outcome in outcomes if kind in outcome.plan.kinds]) for kind in kinds]
    given = sum(len(outcome.played.ends) for outcome in outcomes)
    return "\n".join(
        [
            *_markdown([header, *rows, _total(outcomes)]),
            f"pauses of {PAUSE_SECONDS:g} s, a slow disk takes {SYNC_SECONDS * 1000:g} ms a sync longer;",
            f"drivers that a closed terminal or a pause ended, and whose command was given again: {given}",
        ]
    )


def _markdown(rows: list[list[str]]) -> list[str]:
    """Return the lines of a table whose first row is its header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def _total(outcomes: list[Outcome]) -> list[str]:
    """Return the line of all runs."""
    again = [n for outcome in outcomes for n in outcome.played.repeated]
    work = [n for outcome in outcomes for n in outcome.played.work]
    return ["all (runs)", str(len(outcomes)), *_ends(outcomes), *_repeated(again, work)]


def _ends(outcomes: list[Outcome]) -> list[str]:
    """Return how many runs ended badly in each way."""
    ends = Counter(outcome.end for outcome in outcomes)
    return [str(ends[end]) for end in ENDS]


def _row(kind: str, outcomes: list[Outcome]) -> list[str]:
    """Return the line of a kind of fault. A run that fails counts for each of its kinds."""
    if kind == "slow disk":
        return [kind, str(len(outcomes)), *_ends(outcomes), *_repeated([], [])]
    times = sum((outcome.played.kinds or outcome.plan.kinds).count(kind) for outcome in outcomes)
    of_kind = [cost for outcome in outcomes for cost in outcome.played.costs() if cost[0] == kind]
    repeated = _repeated([again for _, again, _ in of_kind], [work for *_, work in of_kind])
    return [kind, str(times), *_ends(outcomes), *repeated]


def _repeated(again: list[int], work: list[int]) -> list[str]:
    """Return median and worst of the fold that lost most, and the worst over all folds."""
    if not again:
        return ["", "", ""]
    return [f"{statistics.median(again):g}", str(max(again)), f"{max(work) / FOLDS:g}"]


if __name__ == "__main__":
    sys.exit(main())
