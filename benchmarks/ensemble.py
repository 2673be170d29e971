"""Compare one stacked pass of an ensemble with a Python loop over the same networks, on one thread.

    python benchmarks/ensemble.py [--members 20]

Calls of a batch of one window and of a large batch take turns.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks import report
from benchmarks.timing import take_turns
from raypipe.core.network_config import ConformerConfig
from raypipe.models.ensemble import EnsembleModule

SHAPE = {"n_channels": 129, "n_times": 200, "n_outputs": 1, "sfreq": 100.0, "kind": "regression"}
DEPTHS: dict[str, dict[str, object]] = {"the paper's depth, 6": {}, "depth 1": {"depth": 1, "hidden": 32}}


def module(n_members: int, **model: object) -> EnsembleModule:
    config = ConformerConfig(**model).model_dump(mode="json")  # type: ignore[arg-type]
    member = {"trial": 0, "weight": 1.0 / n_members, "centre": 0.0, "scale": 1.0, "model": config}
    members = [member | {"fold": fold} for fold in range(n_members)]
    return EnsembleModule(SHAPE | {"members": members}).eval().requires_grad_(False)


def looped(ensemble: EnsembleModule, x_BCT: torch.Tensor) -> torch.Tensor:
    return torch.stack([network(x_BCT) for network in ensemble.members]).mean(0)


@torch.no_grad()
def measure(args: argparse.Namespace) -> report.Result:
    """Time the stacked pass and the loop."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = report.result(f"An ensemble of {args.members} networks on windows of 129 x 200")
    for name, model in DEPTHS.items():
        ensemble = module(args.members, **model)
        for batch, rounds in ((1, args.rounds), (args.batch, 3)):
            x_BCT = torch.randn(batch, 129, 200)
            torch.testing.assert_close(ensemble(x_BCT), looped(ensemble, x_BCT), rtol=1e-4, atol=1e-5)
            contestants: dict[str, Callable[[], object]] = {
                "stacked": lambda ensemble=ensemble, x=x_BCT: ensemble(x),  # type: ignore[misc]
                "loop": lambda ensemble=ensemble, x=x_BCT: looped(ensemble, x),  # type: ignore[misc]
            }
            times = take_turns(contestants, seconds=0.0, rounds=rounds)
            mark = f"{name}, batch {batch}: "
            report.add_times(found, times, mark)
            report.add_ratio(found, f"{mark}stacked / loop", times["loop"], times["stacked"])
    return found


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"members": 20, "batch": 256, "rounds": 15}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    report.main(parser, measure, words)


if __name__ == "__main__":
    main()
