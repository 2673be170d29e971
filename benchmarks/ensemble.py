"""Compare one stacked pass of an ensemble with a Python loop over the same networks, on one thread.

    python benchmarks/ensemble.py [MEMBERS]

Prints medians of interleaved calls at batch 1, and windows per second at batch 256.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

from raypipe.core.config import ModelConfig
from raypipe.models.ensemble import EnsembleModule

SHAPE = {"n_channels": 129, "n_times": 200, "n_outputs": 1, "sfreq": 100.0, "kind": "regression"}
REPEATS = 15


def module(n_members: int, **model: object) -> EnsembleModule:
    config = ModelConfig(**model).model_dump(mode="json")  # type: ignore[arg-type]
    member = {"trial": 0, "weight": 1.0 / n_members, "centre": 0.0, "scale": 1.0, "model": config}
    members = [member | {"fold": fold} for fold in range(n_members)]
    return EnsembleModule(SHAPE | {"members": members}).eval().requires_grad_(False)


def looped(ensemble: EnsembleModule, x_BCT: torch.Tensor) -> torch.Tensor:
    return torch.stack([network(x_BCT) for network in ensemble.members]).mean(0)


def measure(ensemble: EnsembleModule, batch: int, repeats: int) -> tuple[float, float]:
    """Return the median seconds of a call of the module, and of the loop."""
    x_BCT = torch.randn(batch, 129, 200)
    own, loop = [], []
    for call in range(repeats + 1):
        start = time.perf_counter()
        a = ensemble(x_BCT)
        middle = time.perf_counter()
        b = looped(ensemble, x_BCT)
        if call:  # the first one makes the stacks and warms up
            own.append(middle - start)
            loop.append(time.perf_counter() - middle)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    return statistics.median(own), statistics.median(loop)


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    n_members = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    for name, model in (("the paper's depth, 6", {}), ("depth 1", {"depth": 1, "hidden": 32})):
        ensemble = module(n_members, **model)
        own, loop = measure(ensemble, 1, REPEATS)
        large, large_loop = measure(ensemble, 256, 1)
        print(
            f"{name}: {n_members} members, batch 1: {1e3 * own:.1f} ms against {1e3 * loop:.1f} ms in a loop "
            f"({loop / own:.1f}x); batch 256: {256 / large:.0f} windows/s against {256 / large_loop:.0f}"
        )


if __name__ == "__main__":
    main()
