"""EEG-Conformer (Song et al. 2023, doi:10.1109/TNSRE.2022.3230250) with its stem computed in the frequency domain.

This file needs torch (2.2 or later) and its neighbours network.py, readout.py and stem.py: submissions contain them
unchanged.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

if __package__:
    from raypipe.models.network import Dropout, DropoutMasks, Encoder, MaskedLayer, apply_layers, check_length
    from raypipe.models.stem import Stem
else:  # in a submission, where the files are in one folder
    from network import (  # type: ignore[import-not-found,no-redef,unused-ignore]
        Dropout,
        DropoutMasks,
        Encoder,
        MaskedLayer,
        apply_layers,
        check_length,
    )
    from stem import Stem  # type: ignore[import-not-found,no-redef,unused-ignore]

FEATURES = ("mean", "log-power")
KERNELS = {"rate": (25, 75, 15), "paper": (25, 75, 15), "short": (25, 25, 15)}
"""Temporal kernel, pool and stride in samples at 250 Hz."""

_LOG_FLOOR = 1e-6
"""Smallest power whose logarithm is taken."""
_MAX_COPIED_ROW = 12
"""Longest axis for which `softmax` copies on a CPU."""


def kernel_sizes(sfreq: float, kernels: str = "rate") -> tuple[int, int, int]:
    """Return the lengths of the temporal kernel, the pool and its stride in samples.

    Parameters
    ----------
    sfreq
        Sampling rate in Hz.
    kernels
        `paper`: 25, 75 and 15 samples at any rate; `rate`: the durations that those have at the paper's 250 Hz
        (10, 30 and 6 samples at 100 Hz); `short`: as `rate` with a third of the pool (10, 10 and 6), for targets that
        are a time within the window.

    Raises
    ------
    ValueError
        `kernels` is none of these.
    """
    if kernels not in KERNELS:
        raise ValueError(f"kernels must be one of {', '.join(KERNELS)} (given {kernels!r})")
    scale = 1.0 if kernels == "paper" else sfreq / 250.0
    kernel, pool, stride = (max(1, math.floor(length * scale + 0.5)) for length in KERNELS[kernels])
    return kernel, pool, stride


class Block(MaskedLayer):
    """Pre-norm transformer block: ``x + drop(attention(norm(x)))``, then ``x + drop(feed-forward(norm(x)))``.

    Scores are divided by the square root of a head's width (Vaswani et al. 2017, eq. 1), as in braindecode. The paper's
    own code divides by the square root of the token's width. `qkv` stacks the maps of queries, keys and values.
    """

    def __init__(self, width: int, heads: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.inner = heads, expansion * width
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.feed = nn.Sequential(
            nn.Linear(width, self.inner), nn.GELU(), Dropout(dropout), nn.Linear(self.inner, width)
        )
        self.drop = Dropout(dropout)

    def forward(self, x_BNF: Tensor, masks: DropoutMasks | None = None) -> Tensor:
        """Map tokens (B, N, F) to tokens (B, N, F)."""
        q, k, v = self.qkv(self.norm1(x_BNF)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed_BHND = self.attend(q, k, v, masks)
        x_BNF = x_BNF + self.drop(self.projection(mixed_BHND.transpose(1, 2).flatten(2)), masks)
        out: Tensor = x_BNF + self.drop(apply_layers(self.feed, self.norm2(x_BNF), masks), masks)
        return out

    def attend(self, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor, masks: DropoutMasks | None) -> Tensor:
        """Return the weighted sum of values for each query, with dropout of the weights."""
        # torch's own attention takes twice as long to train on few tokens on a CPU, draws its own dropout masks, and
        # has no batching rule for vmap.
        weights_BHNN = softmax(q_BHND * q_BHND.shape[-1] ** -0.5 @ k_BHND.transpose(-1, -2))
        mixed_BHND: Tensor = self.drop(weights_BHNN, masks) @ v_BHND
        return mixed_BHND

    def dropout_plan(self, batch: int, n_tokens: int) -> list[tuple[int, float]]:
        """Return size and rate of each dropout mask that a pass takes, in order."""
        token, inner = batch * n_tokens * self.projection.in_features, batch * n_tokens * self.inner
        return [(size, self.drop.p) for size in (batch * self.heads * n_tokens**2, token, inner, token)]


def softmax(x_BHNN: Tensor) -> Tensor:
    """Return the softmax over the last axis. On a CPU, a short axis is moved to the front first, by a copy.

    For rows of 7, which leave vector units idle, this takes a third of the time; for rows of 27 it is slower.
    """
    if x_BHNN.is_cuda or x_BHNN.shape[-1] > _MAX_COPIED_ROW:
        return x_BHNN.softmax(-1)
    return x_BHNN.flatten(0, -2).t().contiguous().softmax(0).t().reshape(x_BHNN.shape)


class Conformer(Encoder):
    """EEG-Conformer (Song et al. 2023, fig. 2 and tables I-II); it normalises its windows itself.

    stem -> BatchNorm -> ELU -> average pool -> dropout -> 1 x 1 convolution -> `depth` transformer blocks without
    positional encoding -> flatten -> Linear, ELU, dropout -> Linear, ELU, dropout -> Linear.

    Parameters
    ----------
    n_channels, n_times, n_outputs, norm, bins, variance
        See `Network`.
    kernel, pool, stride
        Lengths in samples; see `kernel_sizes`.
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
            tokens_BFN = self.pool(F.elu(y_BFT))
        else:
            tokens_BFN = self.pool(y_BFT.square()).clamp_min(_LOG_FLOOR).log()
        tokens_BNF = self.pointwise(self.drop(tokens_BFN, masks).transpose(1, 2))
        return apply_layers(self.blocks, tokens_BNF, masks)
