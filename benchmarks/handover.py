"""Where the time of a sweep goes outside training: start-up, and from one trial to the next on a warm worker group.

    python benchmarks/handover.py            # toy windows, 8 trials of 2 folds, 2 workers

Prints, in one run: seconds from the call to the first epoch of all folds; from a trial's end to the next trial's first
epoch, less the time that this epoch trained (the handover); and the share of the sweep's wall time in which trials ran.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from raypipe import sweep
from tests.support.toys import SPACE, ToyWindows, write_store


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_store(folder / "store", ToyWindows(subjects=8, each=40))
        (folder / "space.py").write_text(SPACE)
        seen: list[tuple[float, str, dict]] = []
        start = time.perf_counter()
        run = sweep(
            folder / "space.py",
            folder / "store",
            folder / "run",
            trials=8,
            folds=2,
            workers=2,
            prune=False,
            watch=lambda kind, news: seen.append((time.perf_counter() - start, kind, news)),
        )
        whole = time.perf_counter() - start
        first = {n: run.store.history(n)[0].seconds / 2 for n in run.trials.index}  # two workers
    epochs = [(t, news["number"]) for t, kind, news in seen if kind == "epoch" and news["epoch"] == 1]
    ends = [t for t, kind, _ in seen if kind == "end"]
    gaps = [begun - ended - first[n] for ended, (begun, n) in zip(ends, epochs[1:], strict=False)]
    print(f"call to first epoch      {epochs[0][0]:6.2f} s (of it training {first[0]:.2f} s)")
    print(f"handover, median of {len(gaps)}    {statistics.median(gaps):6.3f} s, largest {max(gaps):.3f} s")
    print(f"whole sweep              {whole:6.2f} s")


if __name__ == "__main__":
    main()
