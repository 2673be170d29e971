"""Count the floating-point operations and bytes of a step, and compute the least time that a machine needs for them."""

from __future__ import annotations

import torch

from raypipe.models.conformer import Conformer


def direct_operations(model: Conformer, batch: int) -> float:
    """Return the operations of one forward pass, with the stem as one direct convolution."""
    stem, filters = model.stem, model.width
    outputs = stem.n_times - stem.kernel + 1
    total = 2.0 * batch * outputs * filters * stem.n_channels * stem.kernel
    total += 2.0 * stem.n_channels * stem.kernel * filters * filters  # composing the kernels
    tokens = batch * model.n_tokens
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    for name, layer in linear.items():
        rows = batch if name.startswith("head") else tokens
        total += 2.0 * rows * layer.in_features * layer.out_features
    return (
        total + len(model.blocks) * 4.0 * tokens * model.n_tokens * filters
    )  # attention: scores, then weighted values


def fourier_operations(model: Conformer, batch: int) -> float:
    """Return the same with the stem in the frequency domain, without the transforms of windows."""
    stem, filters = model.stem, model.width
    outputs = stem.n_times - stem.kernel + 1
    frequencies = stem.length // 2 + 1
    direct = 2.0 * batch * outputs * filters * stem.n_channels * stem.kernel
    products = 8.0 * frequencies * batch * stem.n_channels * filters
    kernels = 4.0 * frequencies * filters * filters * stem.n_channels
    inverse = 2.5 * batch * filters * stem.length * torch.log2(torch.tensor(float(stem.length))).item()
    return direct_operations(model, batch) - direct + products + kernels + inverse


def roofline(model: Conformer, batch: int, peak: float, seconds: float, passes: int = 2) -> str:
    """Compare the operations of `passes` forward and backward passes with the machine's matrix product, in words.

    A backward pass counts as two forward ones; the stem's, which needs no gradient of the windows, as one.
    """
    stem, filters = model.stem, model.width
    outputs = stem.n_times - stem.kernel + 1
    stem_direct = 2.0 * batch * outputs * filters * stem.n_channels * stem.kernel
    direct = passes * (3.0 * direct_operations(model, batch) - stem_direct)
    stem_fourier = 8.0 * (stem.length // 2 + 1) * batch * stem.n_channels * filters
    fourier = passes * (3.0 * fourier_operations(model, batch) - stem_fourier)
    weights = sum(p.numel() for p in model.parameters())
    mib = (batch * stem.n_channels * stem.n_times * 4 + weights * 4 * 12) / 2**20
    return (
        f"matrix product here: {peak / 1e9:.0f} GFLOP/s\n"
        f"a SAM step, direct form: {direct / 1e9:.2f} GFLOP, floor {1e3 * direct / peak:.2f} ms; "
        f"time over floor {seconds * peak / direct:.2f}\n"
        f"frequency domain: {fourier / 1e9:.2f} GFLOP, floor {1e3 * fourier / peak:.2f} ms; "
        f"time over floor {seconds * peak / fourier:.2f}\n"
        f"windows once, weights, gradients and moments: {mib:.1f} MiB"
    )
