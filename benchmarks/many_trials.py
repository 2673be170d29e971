"""Measure the cost of Tune, the queue, the broker and the store over a thousand trials, without training.

    python benchmarks/many_trials.py [--trials 1000] [--concurrent 200] [--seconds 20] [--epochs 5] [--nodes 8]
    python benchmarks/many_trials.py --controllers --trials 32 --concurrent 32

Trials are simulated (`benchmarks/simulated_sweep.py`): trial actors sleep and report. Everything else is as in any
sweep, on nodes of this machine that claim more cores than it has. Printed for each third of the trials, to show growth:

- overhead: seconds of a trial beyond its sleep, from its start to its end (median). For the first trials this includes
  the start of the actors, because no trial starts before all actors are up;
- driver: processor seconds per trial, and memory;
- operations of the driver on the run's storage, per report.

Printed at the end: the sizes of the study's journal and of Tune's files, and the time to restore: from the same command
with one more trial to that trial's start, and the part of it that opens the trial queue.

With ``--controllers``, Ray Train's controllers run too, one per trial at a time, and start no workers. When a third of
the trials has ended, it counts which node runs how many controllers and trial actors, and measures the memory (PSS) of
the processes on the head, the node of the driver. The restore is left out.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.processes import descendants, memory, title
from benchmarks.simulated_sweep import prepare_simulation, simulated
from benchmarks.timing import where_and_when
from benchmarks.toys import ToyWindows, write_store
from raypipe import sweep
from raypipe.core.config import TrialConfig
from raypipe.core.options import parse_options
from raypipe.core.search_space import load_space
from raypipe.data.window_store import WindowStore
from raypipe.search.run_setup import open_run
from raypipe.search.study import StudyQueue
from raypipe.storage.files import LocalFolder
from raypipe.storage.journal import open_journal
from raypipe.storage.records import TrialResult
from raypipe.trial.callback import SweepCallback

SPACE = '''"""Four parameters."""
def space(trial):
    trial.suggest_float("optim/lr", 1e-4, 1e-2, log=True)
    trial.suggest_float("model/dropout", 0.0, 0.6)
    if trial.suggest_categorical("sam/name", ["none", "sam"]) == "sam":
        trial.suggest_float("sam/rho", 0.01, 0.5, log=True)
    return {"epochs": EPOCHS, "patience": EPOCHS}
'''
KINDS = {
    "controller": ("ray::GroupController",),
    "trial actor": ("ray::SimulatedTrainable", "ray::ResourceTrainable"),
    "broker": ("ray::Broker",),
    "idle": ("ray::IDLE",),
}
"""How the titles of Ray's processes begin."""
CALLS = ("write", "read", "exists", "names", "remove")


class Meter(SweepCallback):
    """Counts this process's operations on local storage, and records the events of a sweep."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.started: dict[int, float] = {}
        self.durations: list[float] = []
        self.reports = 0
        self.marks: list[dict[str, Any]] = []
        self.every = 0
        self.raylets: list[int] = []
        self.processes: list[dict[str, list[int]]] = []
        for name in CALLS:
            setattr(LocalFolder, name, self._counted(name, getattr(LocalFolder, name)))

    def _counted(self, name: str, call: Any) -> Any:
        def counted(folder: LocalFolder, *given: Any) -> Any:
            self.calls[name] += 1
            return call(folder, *given)

        return counted

    def on_trial_start(self, number: int, config: TrialConfig) -> None:
        self.started[number] = time.perf_counter()

    def on_epoch(self, number: int, epoch: int, score: float, fold_scores: Sequence[float | None]) -> None:
        self.reports += 1

    def on_trial_end(self, result: TrialResult) -> None:
        self.durations.append(time.perf_counter() - self.started[result.number])
        if len(self.durations) % self.every == 0:
            self.mark()
            if len(self.durations) == self.every:
                self.processes = [kinds(raylet) for raylet in self.raylets]

    def mark(self) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        self.marks.append(
            {
                "ended": len(self.durations),
                "clock": time.perf_counter(),
                "cpu": used.ru_utime + used.ru_stime,
                "calls": sum(self.calls.values()),
                "reports": self.reports,
                "memory": used.ru_maxrss / 1024,
            }
        )


def kinds(raylet: int) -> dict[str, list[int]]:
    """Return the memory of the processes of a raylet and of itself, by kind, in bytes."""
    found: dict[str, list[int]] = {}
    for pid in (raylet, *descendants(raylet)):
        names = [name for name, titles in KINDS.items() if title(pid).startswith(titles)]
        found.setdefault(names[0] if names else "raylet and agents", []).append(memory(pid))
    return found


def slept(run: Any, numbers: range, seconds: float) -> float:
    """Return the median seconds that trials slept, `seconds` per epoch."""
    return statistics.median(seconds * len(run.history(number)) for number in numbers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"trials": 1000, "concurrent": 200, "epochs": 5, "nodes": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--seconds", type=float, default=20.0, help="seconds per epoch")
    parser.add_argument("--controllers", action="store_true", help="run Ray Train's controllers, without workers")
    args = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Hundreds of processes that start at once on two cores would all time out and be restarted.
    os.environ |= {"RAY_worker_maximum_startup_concurrency": "1", "RAY_worker_register_timeout_seconds": "600"}
    # Two hundred trial actors hold 116 MB each. On 24 GiB some are swapped out, and Ray must not kill them for that.
    os.environ |= {"RAY_memory_monitor_refresh_ms": "0"}
    import ray
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory(prefix="many-trials-") as name:
        folder = Path(name)
        store = write_store(folder / "store", ToyWindows(subjects=10, each=4))
        space = folder / "space.py"
        space.write_text(SPACE.replace("EPOCHS", str(args.epochs)))
        options: dict[str, Any] = {
            "folds": 2, "workers": 1, "concurrent": args.concurrent, "track": [], "storage": str(folder / "tune"),
        }  # fmt: skip
        windows = WindowStore(store)
        run = open_run(load_space(space), windows, str(folder / "run"), parse_options(options))
        prepare_simulation(run, windows, folder / "packed", args.seconds, actors=args.concurrent)
        cores = -(-args.concurrent // args.nodes)
        node = {"num_cpus": cores, "object_store_memory": 10**8}
        cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
        try:
            for _ in range(args.nodes - 1):
                cluster.add_node(**node)
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            options["address"] = cluster.address
            meter = Meter()
            meter.every = max(1, args.trials // 3)
            start = time.perf_counter()
            meter.raylets = [node.all_processes["raylet"][0].process.pid for node in cluster.list_all_nodes()]
            store_of_control = cluster.head_node.all_processes["gcs_server"][0].process.pid
            with simulated(controllers=args.controllers):
                meter.mark()
                sweep(space, store, folder / "run", trials=args.trials, callback=meter, **options)
                took = time.perf_counter() - start
                own = {"driver": memory(os.getpid()), "control store": memory(store_of_control)}
                processes = len(descendants(os.getpid()))
                print(f"{where_and_when()}: {args}")
                _print(args, meter, run, took)
                _print_processes(meter, own)
                print(f"processes at the end: {processes}")
                if args.controllers:
                    return
                opened = time.perf_counter()
                StudyQueue(run, windows, open_journal(run), trials=args.trials)
                opened = time.perf_counter() - opened
                prepare_simulation(run, windows, folder / "packed", args.seconds)  # for one actor
                again, first = time.perf_counter(), []
                note = SweepCallback()
                note.on_trial_start = lambda number, config: first.append(time.perf_counter())  # type: ignore[method-assign]
                sweep(space, store, folder / "run", trials=args.trials + 1, callback=note, **options)
            print(
                f"restore: {first[0] - again:.1f} s to the next trial, of which {opened:.1f} s to open the trial queue"
            )
            sizes = {
                "the study's journal": (folder / "run").glob("study*"),
                "Tune's files": (folder / "tune").rglob("*"),
            }
            for what, found in sizes.items():
                files = [path for path in found if path.is_file()]
                print(f"{what}: {sum(p.stat().st_size for p in files) / 1e6:.2f} MB in {len(files)} file(s)")
        finally:
            ray.shutdown()
            cluster.shutdown()


def _print(args: argparse.Namespace, meter: Meter, run: Any, took: float) -> None:
    ideal = sum(args.seconds * len(run.history(n)) for n in run.numbers()) / args.concurrent
    print(f"{took:.0f} s in all; {ideal:.0f} s if {args.concurrent} slept without a pause ({ideal / took:.0%})")
    print(f"{'trials':>8}{'overhead a trial':>18}{'driver a trial':>16}{'driver':>10}{'storage calls a report':>24}")
    for before, mark in zip(meter.marks, meter.marks[1:], strict=False):
        inside = range(before["ended"], mark["ended"])
        over = statistics.median(meter.durations[n] for n in inside) - slept(run, inside, args.seconds)
        cpu = (mark["cpu"] - before["cpu"]) / len(inside)
        calls = (mark["calls"] - before["calls"]) / max(1, mark["reports"] - before["reports"])
        print(f"{mark['ended']:>8}{over:>16.2f} s{cpu:>14.2f} s{mark['memory']:>7.0f} MB{calls:>24.1f}")
    print("storage calls by kind: " + ", ".join(f"{count} {name}" for name, count in meter.calls.most_common()))


def _print_processes(meter: Meter, own: dict[str, int]) -> None:
    """Print how many processes each node has, and the memory of the head's, where the driver is."""
    for kind in ("controller", "trial actor"):
        counts = [len(node.get(kind, [])) for node in meter.processes]
        sizes = [size for node in meter.processes for size in node.get(kind, [])] or [0]
        print(f"{kind}s by node, the head first: {counts}; {statistics.median(sizes) / 1e6:.0f} MB each")
    head = own | {kind: sum(sizes) for kind, sizes in meter.processes[0].items()}
    print("memory on the head: " + ", ".join(f"{kind} {size / 1e6:.0f} MB" for kind, size in head.items()))


if __name__ == "__main__":
    main()
