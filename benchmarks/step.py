"""Time one training step of raypipe's networks and SAM, and of braindecode's networks and a plain SAM.

    python benchmarks/step.py                                             # batch 64 of 129 x 200, one thread
    python benchmarks/step.py --device cuda --batch 64 512 --stack 1 2 5 10

All have the same data, sizes and optimiser. Windows are in memory, and normalised beforehand for the peers. raypipe's
step normalises its batch, draws dropout masks and clips gradients; the peers' steps do not. First the script checks
that both Conformers with the same weights have the same outputs. Contestants take turns. `benchmarks/roofline.py`
explains the floors of a step; its operators are counted in steps on the CPU, in the precision of the device.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch

from benchmarks import peers, report
from benchmarks.roofline import Peaks, count_at, floors, measure_peaks
from benchmarks.timing import median, take_turns
from benchmarks.toys import ToyWindows, fold_trainer
from raypipe.core.parameters import parse_config
from raypipe.models.braindecode_weights import weights_to_braindecode
from raypipe.models.network import normalise
from raypipe.training.device import autocast_type
from raypipe.training.dropout import DropoutSampler
from raypipe.training.loader import Batch, WindowLoader
from raypipe.training.stacked_trainer import StackedTrainer
from raypipe.training.trainer import SupervisedTrainer
from raypipe.trial.autotune import MAX_TIME_FRACTION, stem_seconds

METHODS: dict[str, dict[str, Any]] = {
    "AdamW": {},
    "SAM": {"sam/name": "sam"},
    "ASAM": {"sam/name": "asam", "sam/rho": 1.0},
    "SAM-ON": {"sam/name": "sam", "sam/only": "norm"},
    "LookSAM (5)": {"sam/name": "looksam"},
    "MSAM": {"sam/name": "msam", "sam/rho": 0.5},
}
PEERS = {
    "braindecode's EEGConformer": peers.conformer,
    "braindecode's ShallowFBCSPNet": peers.shallow,
    "braindecode's EEGNet": peers.eegnet,
    "braindecode's BDTCN": peers.bdtcn,
    "EEGNeX": peers.eegnex,
}
OURS = {
    "braindecode's ShallowFBCSPNet": "shallow ",
    "braindecode's EEGNet": "eegnet ",
    "braindecode's BDTCN": "tcn ",
}
"""raypipe's networks that are compared with others than the Conformer."""
STEMS = ("fourier", "direct")
CALLS_ON_GPU = 10
"""Steps between two waits for a GPU: in training, nothing waits for a step."""
Step = Callable[[], object]


@cache
def windows_of(channels: int, samples: int, batch: int, folds: int = 1) -> ToyWindows:
    """Return random windows, as a store in memory: a batch for each fold, and one more."""
    toy = ToyWindows(subjects=1 + folds, each=batch, channels=channels)
    toy.sfreq, toy.crop_samples, toy.window_samples = 250.0, samples, samples
    toy.x = np.random.default_rng(0).standard_normal((len(toy), channels, samples), np.float32)
    return toy


def trainers(
    args: argparse.Namespace, batch: int, options: dict[str, Any], *, stem: str, folds: int, device: str
) -> list[SupervisedTrainer]:
    """Return trainers that have begun an epoch of one step."""
    sizes: dict[str, Any] = {"model/kernels": "paper"}
    if options.get("model/name") == "tcn":
        sizes = {"model/depth": peers.BDTCN_BLOCKS}
    config = parse_config(sizes | {"batch_size": batch, "precision": precision(args), **options})
    toy = windows_of(args.channels, args.samples, batch, folds)
    loader, index = WindowLoader(toy, device), np.arange(len(toy))  # type: ignore[arg-type]
    made = []
    for fold in range(folds):
        one = index[fold * batch : (fold + 1) * batch]
        made.append(fold_trainer(config, loader, one, index[-batch:], fold=fold, stem=stem))
        made[-1].start_epoch()
    return made


def precision(args: argparse.Namespace) -> str:
    """Return the precision that is trained with, by name, so that the CPU can count in a GPU's."""
    return str(autocast_type(args.precision, torch.device(args.device))).removeprefix("torch.")


def own_step(
    args: argparse.Namespace,
    batch: int,
    options: dict[str, Any],
    *,
    stem: str = "fourier",
    folds: int = 1,
    device: str = "",
) -> Step:
    """Return raypipe's step, of one fold or of several stacked ones."""
    made = trainers(args, batch, options, stem=stem, folds=folds, device=device or args.device)
    stack = StackedTrainer(made) if folds > 1 else None
    dropout = [DropoutSampler(fold, one.data.device) for fold, one in enumerate(made)]
    data = [(one.data.loader.gather(one.data.train), torch.randn(batch, device=one.data.device)) for one in made]

    def step() -> object:
        batches = [
            Batch(x, y, sampler.draw(one.model.dropout_plan(batch)))
            for (x, y), sampler, one in zip(data, dropout, made, strict=True)
        ]
        return stack.step(batches, 0) if stack else made[0].step(batches[0], 0)

    return step


def peer_step(args: argparse.Namespace, batch: int, build: Callable[[int, int], torch.nn.Module], sam: bool) -> Step:
    """Return the step of a network in a plain loop, under torch's own settings."""
    model = build(args.channels, args.samples).to(args.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    windows = windows_of(args.channels, args.samples, batch).gather(np.arange(batch))
    x_BCT = normalise(torch.from_numpy(windows).to(args.device), "channel")
    y_B1 = torch.randn(batch, 1, device=args.device)
    dtype = autocast_type(args.precision, torch.device(args.device))

    def closure() -> torch.Tensor:
        with torch.autocast(args.device, dtype, enabled=dtype != torch.float32):
            raw = model(x_BCT)
        return torch.nn.functional.mse_loss(raw.float(), y_B1)

    def step() -> object:
        with peers.default_settings():
            return (peers.sam_step if sam else peers.plain_step)(closure, optimizer)

    return step


def outputs_apart(args: argparse.Namespace) -> float:
    """Return the largest difference between the two networks' outputs in float32, relative to the largest output."""
    options = {"precision": "float32"}
    (one,) = trainers(args, 8, options, stem="fourier", folds=1, device=args.device)
    theirs = peers.conformer(args.channels, args.samples).to(args.device)
    theirs.load_state_dict(weights_to_braindecode(one.model.state_dict()))
    x_BCT = one.data.loader.gather(np.arange(8))
    with torch.no_grad():
        a, b = one.model.eval()(x_BCT), theirs.eval()(normalise(x_BCT, "channel"))
    return float((a - b).abs().max() / b.abs().max())


def stacked(folds: int) -> str:
    """Return the name of a contestant."""
    return f"raypipe SAM, {folds} folds stacked"


def choose_stem(args: argparse.Namespace, batch: int) -> str:
    """Return the stem to compute with, as asked for or as a sweep would choose it."""
    if args.stem != "auto":
        return str(args.stem)
    (one,) = trainers(args, batch, METHODS["SAM"], stem="fourier", folds=1, device=args.device)
    seconds = stem_seconds(one.config, one.data)
    return "direct" if seconds["direct"] < MAX_TIME_FRACTION * seconds["fourier"] else "fourier"


def builders_of(args: argparse.Namespace, batch: int, stem: str, without: str) -> dict[str, Callable[[], Step]]:
    """Return functions that make the steps to compare; `without` tells why braindecode's networks are left out."""
    found: dict[str, Callable[[], Step]] = {
        f"raypipe {name}": partial(own_step, args, batch, options, stem=stem) for name, options in METHODS.items()
    }
    other = STEMS[STEMS[0] == stem]
    found[f"raypipe SAM, {other} stem"] = partial(own_step, args, batch, METHODS["SAM"], stem=other)
    for folds in (n for n in args.stack if n > 1):
        found[stacked(folds)] = partial(own_step, args, batch, METHODS["SAM"], stem=stem, folds=folds)
    for network in OURS.values():
        for method in ("AdamW", "SAM"):
            options = METHODS[method] | {"model/name": network.strip()}
            found[f"raypipe {network}{method}"] = partial(own_step, args, batch, options, stem=stem)
    for label in [] if without else [label for label in PEERS if label != "EEGNeX" or not args.quick]:
        for method in ("AdamW", "SAM"):
            found[f"{label} {method}"] = partial(peer_step, args, batch, PEERS[label], method == "SAM")
    return found


def add_ratios(found: report.Result, times: dict[str, list[float]], stem: str, mark: str) -> None:
    """Add how many times as quick raypipe's step is as others."""
    sam = times["raypipe SAM"]
    for name, seconds in times.items():
        if not name.startswith("raypipe"):
            label, method = name.rsplit(maxsplit=1)
            ours = f"raypipe {OURS.get(label, '')}{method}"
            report.add_ratio(found, f"{mark}{ours} / {name}", seconds, times[ours])
        elif name.endswith("stacked"):
            folds = int(name.split()[2])
            report.add_ratio(found, f"{mark}{name} / one by one", [folds * each for each in sam], seconds)
        elif name.endswith("stem"):
            fourier, direct = (sam, seconds) if stem == "fourier" else (seconds, sam)
            report.add_ratio(found, f"{mark}SAM, Fourier stem / direct stem", direct, fourier)


def add_rooflines(
    found: report.Result,
    args: argparse.Namespace,
    batch: int,
    times: dict[str, list[float]],
    peaks: Peaks,
    stem: str,
    mark: str,
) -> None:
    """Add the floors of SAM steps, and the share that was reached."""
    wanted = dict.fromkeys(("raypipe AdamW", "raypipe SAM"), (stem, 1))
    wanted |= {f"raypipe SAM, {other} stem": (other, 1) for other in STEMS if other != stem}
    wanted |= {stacked(n): (stem, n) for n in args.stack if n > 1}
    for name, (computed, folds) in wanted.items():
        if name not in times:
            continue
        options = METHODS["AdamW" if name.endswith("AdamW") else "SAM"]
        step_of = partial(step_on_cpu, args, options, computed, folds)
        with as_on_gpu() if args.device == "cuda" else nullcontext():
            operations = count_at(step_of, batch)
        figures = floors(operations, peaks).figures(median(times[name]))
        found["rooflines"][f"{mark}{name}"] = figures
        if args.device == "cuda" and computed == stem and "SAM" in name:
            share = figures["share of the floor by kernel"]
            report.add_goal(found, f"{mark}{name}: share of the floor by kernel", share, 0.4)


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """Let tensors pose as a GPU's: networks have passes of their own for a CPU, whose operators a GPU does not run."""
    torch.Tensor.is_cuda = property(lambda tensor: True)  # type: ignore[assignment]
    try:
        yield
    finally:
        del torch.Tensor.is_cuda  # that of its base class is found again


def step_on_cpu(args: argparse.Namespace, options: dict[str, Any], stem: str, folds: int, batch: int) -> Step:
    """Return raypipe's step on the CPU, to count its operators."""
    return own_step(args, batch, options, stem=stem, folds=folds, device="cpu")


def measure_batch(args: argparse.Namespace, found: report.Result, batch: int, peaks: Peaks, without: str) -> None:
    """Time the steps at one batch size."""
    mark = f"batch {batch}: "
    stem = choose_stem(args, batch)
    found["figures"][f"{mark}stem"] = stem
    contestants = report.build(found, builders_of(args, batch, stem, without), mark)
    calls = CALLS_ON_GPU if args.device == "cuda" else 1
    times = take_turns(contestants, seconds=args.seconds, device=args.device, calls=calls)
    report.add_times(found, times, mark)
    if {"raypipe SAM", "raypipe AdamW"} <= times.keys():
        add_ratios(found, times, stem, mark)
    add_rooflines(found, args, batch, times, peaks, stem, mark)


def measure(args: argparse.Namespace) -> report.Result:
    """Time the steps at every batch size."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    found = report.result(f"A training step of {args.channels} x {args.samples}, {precision(args)}", args.device)
    peaks = measure_peaks(args.device, autocast_type(args.precision, torch.device(args.device)))
    for kind, speed in peaks.flops.items():
        found["figures"][f"matrix product, {str(kind).removeprefix('torch.')} (TFLOP/s)"] = speed / 1e12
    found["figures"]["copy (GB/s)"] = peaks.bandwidth / 1e9
    if without := peers.missing():
        found["missing"]["braindecode's networks"] = without
    else:
        found["figures"]["outputs of both networks apart, of the largest"] = outputs_apart(args)
    for batch in args.batch:
        measure_batch(args, found, batch, peaks, without)
        args.so_far(found)
        if args.device == "cuda":
            torch.cuda.empty_cache()
    return found


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[64], help="windows of a batch, for each fold")
    parser.add_argument("--stack", type=int, nargs="+", default=[5], help="numbers of folds to stack")
    for name, value in {"channels": 129, "samples": 200, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--stem", default="auto", choices=["auto", *STEMS], help="auto: the one that a sweep would use")
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds to measure for, at each batch size")
    parser.add_argument("--quick", action="store_true", help="without EEGNeX, which takes seconds a step on a CPU")
    report.main(parser, measure, words)


if __name__ == "__main__":
    main()
