"""Time steps of pretraining: windows a second by one worker and by two, and the share of a step outside its passes.

    python benchmarks/pretraining.py

Both objectives have the default sizes of `raypipe pretrain`, on random data. "Outside" is the share of one worker's
step beyond the forward and backward pass on prepared data: reading windows, drawing masks or views, the optimiser. On a
CPU it is measured in processor time, which other programs disturb less; "quiet" is windows per second of processor
time. Two workers are two processes that share each batch by gloo on this machine, without Ray, which takes no part in a
step.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from benchmarks.timing import median, take_turns, where_and_when
from benchmarks.toys import ToyWindows
from raypipe.core.config import parse_config
from raypipe.pretraining.simclr import SimclrObjective, nt_xent
from raypipe.pretraining.trainer import Pretrainer
from raypipe.training.loader import WindowLoader

KINDS = ("mae", "simclr")


def pretrainer(args: argparse.Namespace, kind: str, rank: int = 0, world: int = 1) -> Pretrainer:
    toy = ToyWindows(subjects=8, each=args.batch, channels=args.channels)
    toy.sfreq, toy.crop_samples, toy.window_samples = 100.0, args.samples, args.samples
    toy.x = np.random.default_rng(0).normal(size=(len(toy), args.channels, args.samples)).astype(np.float32)
    config = {"model/name": "vit", "model/filters": 64, "model/heads": 4, "model/depth": 4, "model/patch": args.patch}
    config |= {"pretrain/name": kind, "batch_size": args.batch, "epochs": 100}
    loader = WindowLoader(toy, args.device)  # type: ignore[arg-type]
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


def shared(rank: int, args: argparse.Namespace, folder: str) -> None:
    """Run one of two workers; the first writes the seconds of every step."""
    torch.set_num_threads(args.threads)
    store = dist.FileStore(f"{folder}/store", 2)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", rank=rank, world_size=2, store=store, timeout=timedelta(minutes=10))
    found: dict[str, list[float]] = {}
    for kind in KINDS:
        step = stepping(pretrainer(args, kind, rank, 2))
        step()
        dist.barrier()
        for _ in range(args.steps):
            start = time.perf_counter()
            step()
            found.setdefault(kind, []).append(time.perf_counter() - start)
    if rank == 0:
        torch.save(found, f"{folder}/seconds.pt")
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"batch": 64, "channels": 19, "samples": 200, "patch": 25, "steps": 8, "threads": 1}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--seconds", type=float, default=40.0, help="seconds to measure one worker for")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    print(where_and_when(args.device))
    print(f"batch {args.batch} x {args.channels} x {args.samples}, patches of {args.patch}")
    used: dict[str, list[float]] = {}
    contestants: dict[str, Callable[[], object]] = {}
    for kind in KINDS:
        pairs = {f"{kind} step": stepping(pretrainer(args, kind)), kind: passing(pretrainer(args, kind))}
        contestants |= {name: clocked(work, used.setdefault(name, [])) for name, work in pairs.items()}
    alone = {k: median(v) for k, v in take_turns(contestants, seconds=args.seconds, device=args.device).items()}
    busy = {k: median(v[1:]) for k, v in used.items()} if args.device == "cpu" else alone
    two: dict[str, list[float]] = {}
    if args.device == "cpu":
        with tempfile.TemporaryDirectory() as folder:
            spawn(shared, (args, folder), nprocs=2)
            two = torch.load(Path(folder) / "seconds.pt", weights_only=True)
    print(f"\n{'':10}{'ms a step':>12}{'windows/s':>12}{'quiet':>8}{'outside':>10}{'two workers':>14}")
    for kind in KINDS:
        step, cpu = alone[f"{kind} step"], busy[f"{kind} step"]
        pair = f"{args.batch / median(two[kind]):14.0f}" if two else ""
        outside = 1 - busy[kind] / cpu
        print(f"{kind:10}{1e3 * step:12.0f}{args.batch / step:12.0f}{args.batch / cpu:8.0f}{outside:10.0%}{pair}")


if __name__ == "__main__":
    main()
