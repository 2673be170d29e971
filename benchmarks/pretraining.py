"""Time steps of pretraining: windows a second by one worker and by two, and the share of a step outside its passes.

    python benchmarks/pretraining.py

Both objectives have the default sizes of `raypipe pretrain`, on random data. The ratio of a step to its passes is the
share of one worker's step that is the forward and backward pass on prepared data; the rest is reading windows, drawing
masks or views, and the optimiser. On a CPU it is measured in processor time, which other programs disturb less. Two
workers are two processes that share each batch by gloo on this machine, without Ray, which takes no part in a
step.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import report
from benchmarks.roofline import count, floors, measure_peaks
from benchmarks.timing import median, take_turns
from benchmarks.toys import ToyWindows
from raypipe.core.parameters import parse_config
from raypipe.pretraining.simclr import SimclrObjective, nt_xent
from raypipe.pretraining.trainer import Pretrainer
from raypipe.training.loader import WindowLoader

KINDS = ("mae", "simclr")


def pretrainer(
    args: argparse.Namespace,
    batch: int,
    kind: str,
    *,
    rank: int = 0,
    world: int = 1,
    device: str = "",
) -> Pretrainer:
    """Return a worker's training, with the default sizes of `raypipe pretrain`."""
    unnamed = [""] * args.channels  # their positions are unknown without MNE, which need not be installed
    toy = ToyWindows(subjects=8, each=batch, names=unnamed)
    toy.sfreq, toy.crop_samples, toy.window_samples = 100.0, args.samples, args.samples
    toy.x = np.random.default_rng(0).normal(size=(len(toy), args.channels, args.samples)).astype(np.float32)
    config = {"model/name": "vit", "model/filters": 64, "model/heads": 4, "model/depth": 4, "model/patch": args.patch}
    config |= {"pretrain/name": kind, "batch_size": batch, "epochs": 100}
    loader = WindowLoader(toy, device or args.device)  # type: ignore[arg-type]
    one = Pretrainer(parse_config(config), loader, np.arange(len(toy)), rank=rank, world=world)
    one.module.train()
    return one


def stepping(one: Pretrainer) -> Any:
    """Return a function that takes the next step, including the drawing of its batch."""
    drawn = itertools.chain.from_iterable(one.batches() for _ in itertools.count())
    return lambda: one.step(next(drawn), 0)


def passing(one: Pretrainer) -> Any:
    """Return a function that passes one prepared batch forward and backward."""
    drawn = next(one.batches())
    n = len(drawn.windows)
    mae = one.config.pretrain.name == "mae"
    x = one.loader.gather(drawn.windows) if mae else cast(SimclrObjective, one.objective).views(one.loader, drawn)

    def both() -> None:
        one.module.zero_grad(set_to_none=True)
        if mae:
            one.module(x, *drawn.drawn).mean().backward()
        else:
            z_VP = one.module(x)
            nt_xent(z_VP, z_VP, 0, n).mean().backward()

    return both


def clocked(work: Callable[[], object], used: list[float]) -> Callable[[], None]:
    """Return the same function, which also records the processor time of each call."""

    def call() -> None:
        start = time.process_time()
        work()
        used.append(time.process_time() - start)

    return call


def shared(rank: int, args: argparse.Namespace, batch: int, folder: str) -> None:
    """Run one of two workers; the first writes the seconds of every step."""
    torch.set_num_threads(args.threads)
    store = dist.FileStore(f"{folder}/store", 2)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", rank=rank, world_size=2, store=store, timeout=timedelta(minutes=10))
    found: dict[str, list[float]] = {}
    for kind in KINDS:
        step = stepping(pretrainer(args, batch, kind, rank=rank, world=2))
        step()
        dist.barrier()
        for _ in range(args.steps):
            start = time.perf_counter()
            step()
            found.setdefault(kind, []).append(time.perf_counter() - start)
    if rank == 0:
        torch.save(found, f"{folder}/seconds.pt")
    dist.destroy_process_group()


def alone(args: argparse.Namespace, found: report.Result, batch: int) -> None:
    """Time one worker's steps and passes at a batch size, and add its roofline."""
    used: dict[str, list[float]] = {}
    contestants: dict[str, Callable[[], object]] = {}
    for kind in KINDS:
        pairs = {
            f"{kind} step": stepping(pretrainer(args, batch, kind)),
            f"{kind} passes": passing(pretrainer(args, batch, kind)),
        }
        contestants |= {name: clocked(work, used.setdefault(name, [])) for name, work in pairs.items()}
    mark = f"batch {batch}: "
    calls = 10 if args.device == "cuda" else 1
    times = take_turns(contestants, seconds=args.seconds, device=args.device, calls=calls)
    report.add_times(found, times, mark)
    busy = {name: seconds[calls:] for name, seconds in used.items()} if args.device == "cpu" else times
    peaks = measure_peaks(args.device)
    for kind in KINDS:
        seconds = median(times[f"{kind} step"])
        report.add_ratio(found, f"{mark}{kind}, a step / its passes", busy[f"{kind} passes"], busy[f"{kind} step"])
        found["figures"][f"{mark}{kind}, windows a second"] = batch / seconds
        step = stepping(pretrainer(args, batch, kind, device="cpu"))
        step()  # the first one makes the optimiser's state
        operations = count(step)  # of the whole batch: augmentation draws what it does with each window
        found["rooflines"][f"{mark}{kind}"] = floors(operations, peaks).figures(seconds)


def together(args: argparse.Namespace, found: report.Result, batch: int) -> None:
    """Time two workers on this machine, which share each batch."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(shared, (args, batch, folder), nprocs=2)
        two = torch.load(Path(folder) / "seconds.pt", weights_only=True)
    report.add_times(found, {f"{kind} step, two workers": two[kind] for kind in KINDS}, f"batch {batch}: ")


def measure(args: argparse.Namespace) -> report.Result:
    """Time the steps at every batch size."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    title = f"A step of pretraining on {args.channels} x {args.samples}, patches of {args.patch}"
    found = report.result(title, args.device)
    for batch in args.batch:
        alone(args, found, batch)
        if args.device == "cpu":
            together(args, found, batch)
        args.so_far(found)
    return found


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[64])
    for name, value in {"channels": 19, "samples": 200, "patch": 25, "steps": 8, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--seconds", type=float, default=40.0, help="seconds to measure one worker for")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    report.main(parser, measure, words)


if __name__ == "__main__":
    main()
