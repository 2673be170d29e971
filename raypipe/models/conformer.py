"""EEG-Conformer (Song et al. 2023, doi:10.1109/TNSRE.2022.3230250) with its stem computed in the frequency domain.

This file needs torch (2.2 or later) and its neighbours network.py, readout.py, stem.py and transformer.py: submissions
contain them unchanged.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

if __package__:
    from raypipe.models.network import Dropout, DropoutMasks, Encoder, apply_layers, check_length
    from raypipe.models.stem import Stem
    from raypipe.models.transformer import Block
else:  # in a submission, where the files are in one folder
    from network import (  # type: ignore[import-not-found,no-redef,unused-ignore]
        Dropout,
        DropoutMasks,
        Encoder,
        apply_layers,
        check_length,
    )
    from stem import Stem  # type: ignore[import-not-found,no-redef,unused-ignore]
    from transformer import Block  # type: ignore[import-not-found,no-redef,unused-ignore]

FEATURES = ("mean", "log-power")

_LOG_FLOOR = 1e-6
"""Smallest power whose logarithm is taken."""


class EluMean(torch.autograd.Function):
    """ELU, then means over time, by a product with a matrix; on a CPU it takes two thirds of the layers' time."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y_BFT: Tensor, means_NT: Tensor) -> tuple[Tensor, Tensor]:
        """Return the means (B, F, N), and the derivative of the ELU."""
        slope_BFT = y_BFT.clamp_max(0.0).exp_()
        elu_BFT = y_BFT.clamp_min(0.0).add_(slope_BFT).sub_(1.0)
        means_NX = means_NT @ elu_BFT.flatten(0, 1).T  # the product of few rows, not that of few columns, is quick
        return means_NX.T.reshape(*y_BFT.shape[:2], -1), slope_BFT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Save what the backward pass needs."""
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[1], output[1])

    @staticmethod
    def backward(ctx: Any, g_BFN: Tensor | None, _: Any) -> tuple[Tensor | None, None]:
        """Return the gradient of the input (B, F, T)."""
        if g_BFN is None:
            return None, None
        means_NT, slope_BFT = ctx.saved_tensors
        return (g_BFN.flatten(0, 1) @ means_NT).view(slope_BFT.shape) * slope_BFT, None


def elu_means(y_BFT: Tensor, means_NT: Tensor) -> Tensor:
    """Return the means (B, F, N) that the rows of a matrix take of the ELU, in the precision of `y_BFT`."""
    with torch.autocast(y_BFT.device.type, enabled=False):
        means_BFN: Tensor = EluMean.apply(y_BFT, means_NT.to(y_BFT))[0]  # type: ignore[no-untyped-call]
    return means_BFN


class Conformer(Encoder):
    """EEG-Conformer (Song et al. 2023, fig. 2 and tables I-II); it normalises its windows itself.

    stem -> BatchNorm -> ELU -> average pool -> dropout -> 1 x 1 convolution -> `depth` transformer blocks without
    positional encoding -> flatten -> Linear, ELU, dropout -> Linear, ELU, dropout -> Linear.

    Parameters
    ----------
    n_channels, n_times, n_outputs, norm, bins, variance
        See `Network`.
    kernel, pool, stride
        Lengths in samples; see `sizes.kernel_sizes`.
    filters
        Filters of both stem layers and width of a token; a multiple of `heads`.
    depth, heads, expansion
        Of the transformer: number of blocks, heads per block, and width of the feed-forward layer in token widths.
    hidden
        Width of the head's first layer; the second has an eighth of it.
    dropout
        Dropout rate after the stem, in the blocks and after the head's first layer; after its second, 0.6 times as
        much (0.5 and 0.3 in the paper).
    features
        `mean` of ELU activations (the paper), or `log-power`: square, average, log (Schirrmeister et al. 2017).

    Raises
    ------
    ValueError
        The window is shorter than kernel and pool need, `filters` is no multiple of `heads`, or an option is unknown.

    Notes
    -----
    Keys of the state: ``stem.temporal``, ``stem.spatial``, ``batch_norm`` (an `nn.BatchNorm1d`), ``pointwise``,
    ``blocks.<i>.{norm1,qkv,projection,norm2,feed.0,feed.3}``, ``head.{1,4,7}``. Compared with braindecode's
    EEGConformer, ``pointwise.weight`` lacks two trailing axes of length one and ``qkv`` stacks three layers. All else
    differs by name only. The stem's biases are not trained: BatchNorm follows.
    """

    stackable = True
    head: nn.Sequential

    def __init__(
        self,
        n_channels: int,
        n_times: int,
        n_outputs: int,
        *,
        kernel: int = 25,
        pool: int = 75,
        stride: int = 15,
        filters: int = 40,
        depth: int = 6,
        heads: int = 10,
        expansion: int = 4,
        hidden: int = 256,
        dropout: float = 0.5,
        features: str = "mean",
        norm: str = "channel",
        bins: int = 0,
        variance: bool = False,
    ) -> None:
        super().__init__(n_channels, n_times, n_outputs, norm=norm, bins=bins, variance=variance)
        check_length(n_times, kernel, pool)
        if filters % heads:
            raise ValueError(f"filters ({filters}) must be a multiple of heads ({heads})")
        if features not in FEATURES:
            raise ValueError(f"features must be one of {', '.join(FEATURES)} (given {features!r})")
        self.n_tokens = (n_times - kernel + 1 - pool) // stride + 1
        self.width, self.summary, self.dropout = filters, features, dropout
        self.hidden = (hidden, max(1, hidden // 8))
        self.stem = Stem(n_channels, n_times, filters=filters, kernel=kernel)
        self.batch_norm = nn.BatchNorm1d(filters)
        # BatchNorm subtracts them again. Their gradients are rounding errors, which AdamW would turn into full steps.
        for layer in (self.stem.temporal, self.stem.spatial):
            assert layer.bias is not None
            layer.bias.requires_grad_(False)
        self.pool = nn.AvgPool1d(pool, stride)
        self._means_NT = self.pool(torch.eye(n_times - kernel + 1, dtype=torch.float64)).T.contiguous()
        self.drop = Dropout(dropout)
        self.pointwise = nn.Linear(filters, filters)
        self.blocks = nn.Sequential(*(Block(filters, heads, expansion, dropout) for _ in range(depth)))
        self.head = self._make_head(bins or n_outputs + variance)

    def _make_head(self, n_outputs: int) -> nn.Sequential:
        first, second = self.hidden
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(self.n_tokens * self.width, first),
            nn.ELU(),
            Dropout(self.dropout),
            nn.Linear(first, second),
            nn.ELU(),
            Dropout(0.6 * self.dropout),
            nn.Linear(second, n_outputs),
        )

    def prepare(self, x_BCT: Tensor) -> Tensor:
        """Normalise windows, and transform them for the Fourier stem; raises as `Network.prepare`.

        The result depends on `stem.algorithm`, which must not change before the result is used.
        """
        return self.stem.prepare(super().prepare(x_BCT))

    def use_stem(self, algorithm: str) -> None:
        """Choose how the stem is computed; see `Stem`."""
        self.stem.algorithm = algorithm

    def batch_statistics(self) -> nn.BatchNorm1d:
        """Return the BatchNorm layer after the stem."""
        return self.batch_norm

    def dropout_plan(self, batch: int) -> list[tuple[int, float]]:
        """Return size and rate of each dropout mask that a training pass over `batch` windows takes, in order."""
        plan = [(batch * self.n_tokens * self.width, self.dropout)]
        for block in self.blocks:
            assert isinstance(block, Block)
            plan += block.dropout_plan(batch, self.n_tokens)
        first, second = self.hidden
        plan += [(batch * first, self.dropout), (batch * second, 0.6 * self.dropout)]
        return [part for part in plan if part[1]]

    def front(self, x: Tensor, *, prepared: bool = False, masks: DropoutMasks | None = None) -> Tensor:
        """Run stem and BatchNorm: windows to (B, filters, T - kernel + 1)."""
        out: Tensor = self.batch_norm(self.stem(x if prepared else self.prepare(x), prepared=True))
        return out

    def back(self, y_BFT: Tensor, masks: DropoutMasks | None = None) -> Tensor:
        """Run pool, blocks and head on the result of `front`."""
        return self.decode(apply_layers(self.head, self.encode(y_BFT, masks), masks))

    def features(self, x: Tensor, *, prepared: bool = False) -> Tensor:
        """Return a feature vector for each window (B, width): the mean over its tokens after the blocks."""
        return self.encode(self.front(x, prepared=prepared)).mean(1)

    def encode(self, y_BFT: Tensor, masks: DropoutMasks | None = None) -> Tensor:
        """Return the tokens (B, N, F) after the blocks, from the result of `front`."""
        if self.summary == "mean":
            quick = self.training and torch.is_grad_enabled() and not y_BFT.is_cuda
            tokens_BFN = elu_means(y_BFT, self._means_NT) if quick else self.pool(F.elu(y_BFT))
        else:
            tokens_BFN = self.pool(y_BFT.square()).clamp_min(_LOG_FLOOR).log()
        tokens_BNF = self.pointwise(self.drop(tokens_BFN, masks).transpose(1, 2))
        return apply_layers(self.blocks, tokens_BNF, masks)
