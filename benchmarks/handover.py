"""Measure the time of a sweep outside training: start-up, and from one trial to the next on a warm worker group.

    python benchmarks/handover.py            # toy windows, 8 trials of 2 folds, 2 workers

Prints the seconds from the call to the first epoch of all folds; the handover, from a trial's end to the next trial's
first epoch without the training of that epoch; and the seconds of the whole sweep.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

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


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_store(folder / "store", ToyWindows(subjects=8, each=40))
        (folder / "space.py").write_text(SPACE)
        start = time.perf_counter()
        clock = Clock(start)
        run = sweep(
            folder / "space.py",
            folder / "store",
            folder / "run",
            trials=8,
            folds=2,
            workers=2,
            prune=False,
            callback=clock,
        )
        whole = time.perf_counter() - start
        first = {n: run.store.history(n)[0].seconds / 2 for n in run.trials.index}  # two workers
    gaps = [started - ended - first[n] for ended, (started, n) in zip(clock.ends, clock.first_epochs[1:], strict=False)]
    print(f"call to first epoch      {clock.first_epochs[0][0]:6.2f} s (training {first[0]:.2f} s)")
    print(f"handover, median of {len(gaps)}    {statistics.median(gaps):6.3f} s, largest {max(gaps):.3f} s")
    print(f"whole sweep              {whole:6.2f} s")


if __name__ == "__main__":
    main()
