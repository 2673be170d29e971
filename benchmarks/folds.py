"""Time an epoch of several folds: stacked, one by one, and in a plain PyTorch loop with braindecode's network.

    python benchmarks/folds.py                       # 5 folds of 2,000 training windows, one thread
    python benchmarks/folds.py --device cuda --folds 1 2 5 10 --batch 64 512

All train every fold with SAM and predict its validation windows at the end of the epoch, in one process, and take
turns. The plain loop is a DataLoader over tensors in memory, shuffled, with windows normalised beforehand. It is timed
over its first `--peer-folds` folds, and the time is scaled to all folds, which cost the same. `plain loop, raypipe's
network` is that loop with raypipe's Conformer: it separates the effect of the network from that of the fold loop.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import peers, report
from benchmarks.timing import take_turns
from benchmarks.toys import ToyWindows, fold_trainer, make_run
from raypipe.core.config import TrialConfig
from raypipe.core.parameters import parse_config
from raypipe.models.conformer import Conformer
from raypipe.models.network import normalise
from raypipe.storage.run_store import RunStore
from raypipe.training.device import autocast_type
from raypipe.training.loader import FoldData, WindowLoader
from raypipe.training.stacked_trainer import StackedTrainer
from raypipe.training.trainer import SupervisedTrainer
from raypipe.trial.autotune import MAX_TIME_FRACTION, stem_seconds

PLAIN = "plain loop, "
GOALS = {"one by one": 5.0, f"{PLAIN}braindecode's network": 25.0}
"""How many times as quick five stacked folds should be on a GPU."""
UNCOUNTED_EPOCHS = 4
"""Epochs on a GPU until every shape of batch has become a CUDA graph."""
Epoch = Callable[[], object]


def windows_of(n_windows: int, channels: int, samples: int, subjects: int) -> ToyWindows:
    toy = ToyWindows(subjects=subjects, each=n_windows // subjects, channels=channels)
    toy.sfreq, toy.crop_samples, toy.window_samples = 250.0, samples, samples
    toy.x = np.random.default_rng(0).standard_normal((len(toy), channels, samples), np.float32)
    return toy


def trainers(
    run: RunStore, loader: WindowLoader, config: TrialConfig, stem: str = "fourier"
) -> list[SupervisedTrainer]:
    splits = [run.folds.split(loader.windows.subjects, fold) for fold in range(run.folds.n_folds)]
    return [fold_trainer(config, loader, *split, fold=fold, stem=stem) for fold, split in enumerate(splits)]


def plain_epoch(
    build: Callable[[int, int], torch.nn.Module], toy: ToyWindows, run: RunStore, config: TrialConfig, device: str
) -> Callable[[int], None]:
    """Return a function that trains an epoch of one fold, as a careful script does."""
    x_NCT = normalise(torch.from_numpy(toy.x), "channel")
    y_N1 = torch.from_numpy(toy.targets)[:, None]
    dtype = autocast_type(config.precision, torch.device(device))
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

            with peers.default_settings():
                peers.sam_step(closure, optimizer)
        model.eval()
        with torch.no_grad():
            for start in range(0, len(validation), 256):
                model(x_NCT[validation[start : start + 256]].to(device))

    return epoch


def builders_of(
    args: argparse.Namespace, found: report.Result, n_folds: int, batch: int, folder: Path, without: str
) -> dict[str, Callable[[], Epoch]]:
    """Return functions that make epochs of `n_folds` folds, the plain loops' of the first `--peer-folds` of them."""
    cut = max(2, n_folds)  # a single fold is one of two
    toy = windows_of(args.windows * cut // (cut - 1), args.channels, args.samples, 4 * cut)
    config = parse_config({"model/kernels": "paper", "batch_size": batch, "sam/name": "sam", "epochs": 1000})
    run = make_run(folder / f"run-{n_folds}-{batch}", toy, n_folds=cut)
    loader = WindowLoader(toy, args.device)  # type: ignore[arg-type]
    stem = choose_stem(args, run, loader, config)
    found["figures"][f"batch {batch}, {n_folds} fold(s): stem"] = stem

    def alone() -> Epoch:
        made = trainers(run, loader, config, stem)[:n_folds]
        return lambda: [one.run_epoch() for one in made]

    def plain(build: Callable[[int, int], torch.nn.Module]) -> Epoch:
        epoch = plain_epoch(build, toy, run, config, args.device)
        return lambda: [epoch(fold) for fold in range(min(args.peer_folds, n_folds))]

    builders: dict[str, Callable[[], Epoch]] = {"one by one": alone}
    if n_folds > 1:
        builders["stacked"] = lambda: StackedTrainer(trainers(run, loader, config, stem)).run_epoch
    builders[f"{PLAIN}raypipe's network"] = lambda: plain(
        lambda channels, samples: Conformer(channels, samples, 1, norm="none")
    )
    if not without:
        builders[f"{PLAIN}braindecode's network"] = lambda: plain(peers.conformer)
    return builders


def choose_stem(args: argparse.Namespace, run: RunStore, loader: WindowLoader, config: TrialConfig) -> str:
    """Return the stem to compute with, as asked for or as a sweep would choose it."""
    if args.stem != "auto":
        return str(args.stem)
    data = FoldData(config, loader, *run.folds.split(loader.windows.subjects, 0), fold=0)
    seconds = stem_seconds(config, data)
    return "direct" if seconds["direct"] < MAX_TIME_FRACTION * seconds["fourier"] else "fourier"


def add_ratios(found: report.Result, times: dict[str, list[float]], mark: str, *, goals: bool) -> None:
    """Add how many times as quick raypipe's ways are as the plain loops, and stacked folds as one by one."""
    for way in ("stacked", "one by one"):
        for peer in times if way in times else ():
            if peer.startswith(PLAIN) or (way, peer) == ("stacked", "one by one"):
                ratio = report.add_ratio(found, f"{mark}{way} / {peer}", times[peer], times[way])
                if goals and way == "stacked" and peer in GOALS:
                    report.add_goal(found, f"{mark}{way} / {peer}", ratio, GOALS[peer])
    if goals:
        for peer in GOALS.keys() - times.keys():
            report.add_goal(found, f"{mark}stacked / {peer}", None, GOALS[peer])


def measure(args: argparse.Namespace) -> report.Result:
    """Time the epochs for every number of folds and batch size."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    title = f"An epoch of {args.windows} training windows of {args.channels} x {args.samples} for each fold"
    found = report.result(title, args.device)
    if without := peers.missing():
        found["missing"][f"{PLAIN}braindecode's network"] = without
    for batch in args.batch:
        for n_folds in args.folds:
            mark = f"batch {batch}, {n_folds} fold(s): "
            with tempfile.TemporaryDirectory() as folder:
                builders = builders_of(args, found, n_folds, batch, Path(folder), without)
                contestants = report.build(found, builders, mark)
                first = UNCOUNTED_EPOCHS if args.device == "cuda" else 1
                rounds = {"rounds": args.epochs, "uncounted": first}
                times = take_turns(contestants, seconds=0.0, device=args.device, **rounds)
            scale = n_folds / min(args.peer_folds, n_folds)
            times = {
                name: [scale * each for each in seconds] if name.startswith(PLAIN) else seconds
                for name, seconds in times.items()
            }
            report.add_times(found, times, mark)
            add_ratios(found, times, mark, goals=args.device == "cuda" and n_folds == 5)
            args.so_far(found)
    return found


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", type=int, nargs="+", default=[5], help="numbers of folds")
    parser.add_argument("--batch", type=int, nargs="+", default=[64], help="windows of a batch, for each fold")
    sizes = {"windows": 2000, "channels": 129, "samples": 200, "threads": 1, "epochs": 3, "peer-folds": 1}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--stem", default="auto", choices=["auto", "fourier", "direct"], help="auto: as in a sweep")
    report.main(parser, measure, words)


if __name__ == "__main__":
    main()
