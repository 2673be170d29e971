"""Time one training step of raypipe's Conformer and SAM, and of braindecode's networks and a plain SAM.

    python benchmarks/step.py                        # batch 64 of 129 x 200, one thread
    python benchmarks/step.py --device cuda          # the same on a GPU, with a roofline

All have the same data, sizes and optimiser. Windows are in memory, and normalised beforehand for the peers. raypipe's
step normalises its batch, draws dropout masks and clips gradients; the peers' steps do not. First the script checks
that both networks with the same weights have the same outputs. Contestants take turns; printed are medians and their
ratios.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch

from benchmarks import peers
from benchmarks.roofline import roofline
from benchmarks.timing import matmul_peak, median, take_turns, where_and_when
from benchmarks.toys import ToyWindows, fold_trainer
from raypipe.core.config import parse_config
from raypipe.models.braindecode_weights import to_braindecode
from raypipe.models.conformer import Conformer
from raypipe.models.network import normalise
from raypipe.training.loader import Batch, DropoutSampler, WindowLoader
from raypipe.training.trainer import SupervisedTrainer

METHODS: dict[str, dict[str, Any]] = {
    "AdamW": {},
    "SAM": {"sam/name": "sam"},
    "ASAM": {"sam/name": "asam", "sam/rho": 1.0},
    "SAM-ON": {"sam/name": "sam", "sam/only": "norm"},
    "LookSAM (5)": {"sam/name": "looksam"},
    "MSAM": {"sam/name": "msam", "sam/rho": 0.5},
}


def windows_of(args: argparse.Namespace) -> ToyWindows:
    """Return random windows of the requested shape, as a store in memory."""
    toy = ToyWindows(subjects=2, each=args.batch, channels=args.channels)
    toy.sfreq, toy.crop_samples, toy.window_samples = 250.0, args.samples, args.samples
    toy.x = np.random.default_rng(0).normal(size=(2 * args.batch, args.channels, args.samples)).astype(np.float32)
    return toy


def raypipe_trainer(
    args: argparse.Namespace, toy: ToyWindows, options: dict[str, Any], stem: str = "fourier"
) -> SupervisedTrainer:
    config = parse_config({"model/kernels": "paper", "batch_size": args.batch, "precision": args.precision, **options})
    index = np.arange(len(toy))
    loader = WindowLoader(toy, args.device)  # type: ignore[arg-type]
    trainer = fold_trainer(config, loader, index[: args.batch], index[args.batch :], fold=0, stem=stem)
    trainer.start_epoch()
    return trainer


def raypipe_step(args: argparse.Namespace, trainer: SupervisedTrainer) -> Callable[[], float]:
    x_BCT = trainer.data.loader.gather(np.arange(args.batch))
    y_B = torch.randn(args.batch, device=args.device)
    dropout = DropoutSampler(0, trainer.data.device)
    return lambda: trainer.step(Batch(x_BCT, y_B, dropout.draw(trainer.model.dropout_plan(args.batch))), 0)


def peer_step(args: argparse.Namespace, toy: ToyWindows, model: torch.nn.Module, sam: bool) -> Callable[[], float]:
    model = model.to(args.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    x_BCT = normalise(torch.from_numpy(toy.gather(np.arange(args.batch))).to(args.device), "channel")
    y_B1 = torch.randn(args.batch, 1, device=args.device)
    dtype = {"auto": torch.bfloat16 if args.device == "cuda" else torch.float32}.get(args.precision, torch.float32)

    def closure() -> torch.Tensor:
        with torch.autocast(args.device, dtype, enabled=dtype != torch.float32):
            raw = model(x_BCT)
        return torch.nn.functional.mse_loss(raw.float(), y_B1)

    return lambda: (peers.sam_step if sam else peers.plain_step)(closure, optimizer)


def outputs_apart(args: argparse.Namespace, toy: ToyWindows) -> float:
    """Return the largest difference between the two networks' outputs, relative to the largest output."""
    trainer = raypipe_trainer(args, toy, {"precision": "float32"})
    theirs = peers.conformer(args.channels, args.samples).to(args.device)
    theirs.load_state_dict(to_braindecode(trainer.model.state_dict()))
    x_BCT = trainer.data.loader.gather(np.arange(args.batch))
    with torch.no_grad():
        a, b = trainer.model.eval()(x_BCT), theirs.eval()(normalise(x_BCT, "channel"))
    return float((a - b).abs().max() / b.abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"batch": 64, "channels": 129, "samples": 200, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds to measure for")
    parser.add_argument("--quick", action="store_true", help="without EEGNeX, which takes seconds a step on a CPU")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    toy = windows_of(args)
    print(where_and_when(args.device))
    print(f"batch {args.batch} x {args.channels} x {args.samples}")
    print(f"outputs of both networks differ by {outputs_apart(args, toy):.1e} of the largest")
    direct = raypipe_step(args, raypipe_trainer(args, toy, METHODS["SAM"], "direct"))
    contestants = {
        f"raypipe {name}": raypipe_step(args, raypipe_trainer(args, toy, options)) for name, options in METHODS.items()
    }
    contestants["raypipe SAM, direct stem"] = direct
    for label, build in {"braindecode EEGConformer": peers.conformer, "EEGNeX": peers.eegnex}.items():
        if label == "EEGNeX" and args.quick:
            continue
        for method in ("AdamW", "SAM"):
            model = build(args.channels, args.samples)
            contestants[f"{label} {method}"] = peer_step(args, toy, model, method == "SAM")
    times = {k: median(v) for k, v in take_turns(contestants, seconds=args.seconds, device=args.device).items()}
    print(f"\n{'':36}{'ms':>10}{'of AdamW':>10}{'against raypipe':>17}")
    for name, seconds in times.items():
        method = "SAM" if "SAM" in name else "AdamW"
        shown = f"{times[name] / times['raypipe AdamW']:10.2f}" if name.startswith("raypipe") else " " * 10
        against = "" if name.startswith("raypipe") else f"{seconds / times[f'raypipe {method}']:16.1f}x"
        print(f"{name:36}{1e3 * seconds:10.2f}{shown}{against}")
    peak = matmul_peak(args.device)
    model = cast(Conformer, raypipe_trainer(args, toy, METHODS["SAM"]).model)
    print(f"\n{roofline(model, args.batch, peak, times['raypipe SAM'])}")


if __name__ == "__main__":
    main()
