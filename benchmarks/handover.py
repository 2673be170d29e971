"""Measure the time of a sweep outside training: start-up, and from one trial to the next on a warm worker group.

    python benchmarks/handover.py            # toy windows, 8 trials of 2 folds, one at a time on 2 workers

Measured are the seconds from the call to the first epoch of all folds; the handover, from a trial's end to the next
trial's first epoch without the training of that epoch; and the seconds of the whole sweep. The peer is Ray alone: its
start, and that of an actor that imports torch, which a script that gives every trial a new actor waits for.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import report
from benchmarks.toys import SPACE, ToyWindows, write_store
from raypipe import SweepCallback, sweep
from raypipe.storage.records import TrialResult


class Clock(SweepCallback):
    """Records when first epochs and trials end, in seconds since `start`."""

    def __init__(self, start: float) -> None:
        self.start = start
        self.first_epochs: list[tuple[float, int]] = []
        self.ends: list[float] = []

    def on_epoch(self, number: int, epoch: int, score: float, fold_scores: Sequence[float | None]) -> None:
        if epoch == 1:
            self.first_epochs.append((time.perf_counter() - self.start, number))

    def on_trial_end(self, result: TrialResult) -> None:
        self.ends.append(time.perf_counter() - self.start)


def swept(folder: Path, trials: int) -> tuple[float, list[float], float]:
    """Return the seconds of a sweep from the call to the first epoch's report, of each handover, and of all."""
    write_store(folder / "store", ToyWindows(subjects=8, each=40))
    (folder / "space.py").write_text(SPACE)
    start = time.perf_counter()
    clock = Clock(start)
    run = sweep(
        folder / "space.py",
        folder / "store",
        folder / "run",
        trials=trials,
        folds=2,
        workers=2,
        concurrent=1,  # the next first epoch after an end is that of the next trial
        prune=False,
        callback=clock,
    )
    whole = time.perf_counter() - start
    first = {n: run.store.history(n)[0].seconds / 2 for n in run.trials.index}  # two workers
    following = zip(clock.ends, clock.first_epochs[1:], strict=False)
    gaps = [started - ended - first[n] for ended, (started, n) in following]
    return clock.first_epochs[0][0], gaps, whole


def plain_ray(actors: int) -> tuple[float, list[float]]:
    """Return the seconds in which Ray starts, and in which each of several actors starts that imports torch."""
    import ray

    start = time.perf_counter()
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    started = time.perf_counter() - start

    @ray.remote
    class Plain:
        def ready(self) -> str:
            import torch

            return torch.__version__

    seconds = []
    for _ in range(actors):
        start = time.perf_counter()
        actor = Plain.remote()  # type: ignore[attr-defined]
        ray.get(actor.ready.remote())
        seconds.append(time.perf_counter() - start)
        ray.kill(actor)
    ray.shutdown()
    return started, seconds


def measure(args: argparse.Namespace) -> report.Result:
    """Time a sweep, and Ray alone."""
    found = report.result(f"Between trials: {args.trials} trials of 2 folds on toy windows, one at a time on 2 workers")
    with tempfile.TemporaryDirectory() as name:
        first, gaps, whole = swept(Path(name), args.trials)
    started, actors = plain_ray(len(gaps))
    times = {"call to first epoch": [first], "handover": gaps, "whole sweep": [whole]}
    report.add_times(found, times | {"Ray's start": [started], "start of a plain actor that imports torch": actors})
    report.add_ratio(found, "handover / start of a plain actor", actors, gaps)
    report.add_ratio(found, "call to first epoch / start of Ray and a plain actor", [started + actors[0]], [first])
    return found


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=8)
    report.main(parser, measure, words)


if __name__ == "__main__":
    main()
