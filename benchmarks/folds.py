"""Time an epoch of five folds: stacked, one by one, and in a plain PyTorch loop with braindecode's network.

    python benchmarks/folds.py                       # 5 folds of 2,000 training windows, one thread
    python benchmarks/folds.py --device cuda         # the same on a GPU

All train every fold with SAM and predict its validation windows at the end of the epoch, in one process. The plain loop
is a DataLoader over tensors in memory, shuffled, with windows normalised beforehand. It is timed over its first
`--peer-folds` folds, and the time is scaled to all folds, which cost the same. `the same, raypipe's network` is that
loop with raypipe's Conformer: it separates the effect of the network from that of the fold loop.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import peers
from benchmarks.timing import where_and_when
from benchmarks.toys import ToyWindows, fold_trainer, make_run
from raypipe.core.config import TrialConfig, parse_config
from raypipe.models.conformer import Conformer
from raypipe.models.network import normalise
from raypipe.storage.run_store import RunStore
from raypipe.training.loader import WindowLoader
from raypipe.training.stacked_trainer import StackedTrainer
from raypipe.training.trainer import SupervisedTrainer


def windows_of(n_windows: int, channels: int, samples: int, subjects: int) -> ToyWindows:
    toy = ToyWindows(subjects=subjects, each=n_windows // subjects, channels=channels)
    toy.sfreq, toy.crop_samples, toy.window_samples = 250.0, samples, samples
    toy.x = np.random.default_rng(0).normal(size=(len(toy), channels, samples)).astype(np.float32)
    return toy


def trainers(run: RunStore, loader: WindowLoader, config: TrialConfig) -> list[SupervisedTrainer]:
    splits = [run.folds.split(loader.windows.subjects, fold) for fold in range(run.folds.n_folds)]
    return [fold_trainer(config, loader, *split, fold=fold) for fold, split in enumerate(splits)]


def plain_epoch(
    build: Callable[[int, int], torch.nn.Module], toy: ToyWindows, run: RunStore, config: TrialConfig, device: str
) -> Callable[[int], None]:
    """Return a function that trains an epoch of one fold, as a careful script does."""
    x_NCT = normalise(torch.from_numpy(toy.x), "channel")
    y_N1 = torch.from_numpy(toy.targets)[:, None]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    models = {}

    def epoch(fold: int) -> None:
        train, validation = run.folds.split(toy.subjects, fold)
        if fold not in models:
            model = build(toy.n_channels, toy.crop_samples).to(device)
            models[fold] = model, torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
        model, optimizer = models[fold]
        fit = DataLoader(
            TensorDataset(x_NCT[train], y_N1[train]),
            batch_size=config.batch_size,
            shuffle=True,
            drop_last=True,
            pin_memory=device == "cuda",
        )
        model.train()
        for x_BCT, y_B1 in fit:
            x_BCT, y_B1 = x_BCT.to(device, non_blocking=True), y_B1.to(device, non_blocking=True)

            def closure(x_BCT: torch.Tensor = x_BCT, y_B1: torch.Tensor = y_B1) -> torch.Tensor:
                with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                    raw = model(x_BCT)
                return torch.nn.functional.mse_loss(raw.float(), y_B1)

            peers.sam_step(closure, optimizer)
        model.eval()
        with torch.no_grad():
            for start in range(0, len(validation), 256):
                model(x_NCT[validation[start : start + 256]].to(device))
        if device == "cuda":
            torch.cuda.synchronize()

    return epoch


def timed(work: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"folds": 5, "windows": 2000, "channels": 129, "samples": 200, "batch": 64, "threads": 1, "epochs": 3}
    for name, value in (sizes | {"peer-folds": 1}).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    n = args.windows * args.folds // (args.folds - 1)
    toy = windows_of(n, args.channels, args.samples, 4 * args.folds)
    options = {"model/kernels": "paper", "batch_size": args.batch, "sam/name": "sam", "epochs": 100}
    config = parse_config(options)
    print(where_and_when(args.device))
    print(f"{args.folds} folds of {args.windows} training windows {args.channels} x {args.samples}, batch {args.batch}")
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder) / "run", toy, n_folds=args.folds)
        loader = WindowLoader(toy, args.device)  # type: ignore[arg-type]
        alone, stack = trainers(run, loader, config), StackedTrainer(trainers(run, loader, config))
        plain = {
            "plain loop, braindecode's network": plain_epoch(peers.conformer, toy, run, config, args.device),
            "the same, raypipe's network": plain_epoch(
                lambda channels, samples: Conformer(channels, samples, 1, norm="none"), toy, run, config, args.device
            ),
        }
        if args.device == "cuda":  # warm-up
            stack.run_epoch()
            for trainer in alone:
                trainer.run_epoch()
            for epoch in plain.values():
                epoch(0)
        found: dict[str, list[float]] = {"raypipe, stacked": [], "raypipe, one by one": []}
        for _ in range(args.epochs):
            found["raypipe, stacked"].append(timed(stack.run_epoch, args.device))
            found["raypipe, one by one"].append(timed(lambda: [t.run_epoch() for t in alone], args.device))
        for name, epoch in plain.items():
            part = timed(lambda epoch=epoch: [epoch(fold) for fold in range(args.peer_folds)], args.device)  # type: ignore[misc]
            found[name] = [part * args.folds / args.peer_folds]
    seconds = {name: sorted(times)[len(times) // 2] for name, times in found.items()}
    best = min(seconds["raypipe, stacked"], seconds["raypipe, one by one"])
    print(f"\n{'an epoch of all folds':36}{'s':>10}{'over raypipe best':>20}")
    for name, taken in seconds.items():
        print(f"{name:36}{taken:10.2f}{taken / best:19.2f}x")


if __name__ == "__main__":
    main()
