"""``make chaos N=200``: many seeds, and a table of what happened. Exit status 1 where anything was lost."""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

from tests.chaos.plan import FOLDS, VICTIMS, draw
from tests.chaos.play import Played, differences, place, play, prepare, undisturbed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--place", choices=[*VICTIMS, "both"], default="both")
    asked = parser.parse_args()
    kinds = list(VICTIMS) if asked.place == "both" else [asked.place]
    wanted = range(asked.seed, asked.seed + asked.runs)
    seeds = {kind: [s for s in wanted if s % len(kinds) == n] for n, kind in enumerate(kinds)}
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    prepare(folder)
    reference = undisturbed(folder)
    done: list[Played] = []
    lost: list[str] = []
    for kind in filter(seeds.get, kinds):
        with place(kind, folder / kind) as where:
            for seed in seeds[kind]:
                strikes = draw(seed, kind)
                plan = ", ".join(f"{s.victim} at {s.at}" for s in strikes)
                name = f"{kind}-{seed}"
                try:
                    played = play(where, folder, name, strikes)
                    wrong = differences(folder / name, reference)
                except Exception:
                    played, wrong = Played(), [traceback.format_exc()]
                done.append(played)
                if wrong:
                    lost.append(f"{name} ({plan}): {'; '.join(wrong)}")
                else:
                    shutil.rmtree(folder / name)
                print(f"{name}: {plan}: {'LOST' if wrong else 'the same'}, {played.seconds:.0f} s", flush=True)
    print(table(done, lost))
    if lost:
        print(*lost, f"kept in {folder}; one again: python -m tests.chaos --runs 1 --place PLACE --seed N", sep="\n")
    else:
        shutil.rmtree(folder)
    return bool(lost)


def table(done: list[Played], lost: list[str]) -> str:
    """The runs in a few lines."""
    kills = Counter(victim for played in done for victim in played.kills)
    again = [n for played in done for n in played.repeated]
    work = [n / FOLDS for played in done for n in played.work]
    rows = [
        ("runs", len(done)),
        ("kills", f"{sum(kills.values())} ({', '.join(f'{v} {n}' for v, n in kills.most_common())})"),
        ("lost", len(lost)),
    ]
    if again:
        rows += [
            ("epochs begun again a kill, worst fold", f"median {statistics.median(again):g}, worst {max(again)}"),
            ("the same over all folds", f"median {statistics.median(work):g}, worst {max(work):g}"),
        ]
    return "\n".join(f"{name:40} {value}" for name, value in rows)


if __name__ == "__main__":
    sys.exit(main())
