"""EEG-Conformer (Song et al. 2023, doi:10.1109/TNSRE.2022.3230250), its stem computed in the frequency domain.

This file needs torch (2.2 or later) and its neighbours readout.py and stem.py: submissions carry them as they are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

if __package__:
    from raypipe.models.readout import moments, told
    from raypipe.models.stem import Stem
else:  # in a submission, where the files lie side by side
    from readout import moments, told  # type: ignore[import-not-found,no-redef,unused-ignore]
    from stem import Stem  # type: ignore[import-not-found,no-redef,unused-ignore]

FEATURES = ("mean", "log-power")
NORMS = ("channel", "window", "robust", "none")

_ROUNDING = 16  # a spread below this many units of rounding of a channel's offset is no signal
KERNELS = {"rate": (25, 75, 15), "paper": (25, 75, 15), "short": (25, 25, 15)}
_QUIET = 1e-3  # no channel is divided by less than this share of the mean scale of the window's channels
_ROBUST_LIMIT = 15.0
_LOG_FLOOR = 1e-6
_SHORT_ROW = 12


def kernel_sizes(sfreq: float, kernels: str = "rate") -> tuple[int, int, int]:
    """Lengths of the temporal kernel, the pool and the pool's stride, in samples.

    Parameters
    ----------
    sfreq
        Sampling rate in Hz.
    kernels
        `paper`: 25, 75 and 15 at any rate; `rate`: as many seconds as those are at the paper's 250 Hz
        (10, 30 and 6 at 100 Hz); `short`: 25, 25 and 15 at 250 Hz (10, 10 and 6), for answers that lie in time.
    """
    if kernels not in KERNELS:
        raise ValueError(f"kernels must be one of {', '.join(KERNELS)} (given {kernels!r})")
    scale = 1.0 if kernels == "paper" else sfreq / 250.0
    kernel, pool, stride = (max(1, math.floor(length * scale + 0.5)) for length in KERNELS[kernels])
    return kernel, pool, stride


def normalise(x_BCT: Tensor, norm: str) -> Tensor:
    """Normalise each window by itself, so that volts and microvolts give the same numbers.

    A channel that never moves becomes zeros, whatever its offset; one a thousand times quieter than the window's
    channels are on average is scaled up no further. All thresholds are relative.

    Parameters
    ----------
    x_BCT
        Windows: batch, channels, samples.
    norm
        `channel`: zero mean and unit variance per channel; `window`: zero mean per channel and one root mean square
        for all; `robust`: median and 1.4826 * median absolute deviation per channel (the standard deviation where half
        of the samples agree), clipped to +-15; `none`.
    """
    if norm == "none":
        return x_BCT
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)} (given {norm!r})")
    centre_BC1 = _median(x_BCT) if norm == "robust" else x_BCT.mean(-1, keepdim=True)
    d_BCT = x_BCT - centre_BC1
    # Whether a channel is flat is decided by comparison, not by a small divisor: an offset of a volt leaves rounding
    # errors that would else be blown up to the size of a signal, and the square root of 0 has no finite gradient.
    rounding_BC1 = centre_BC1.detach().abs() * (_ROUNDING * torch.finfo(x_BCT.dtype).eps)
    spread_BC1 = torch.linalg.vector_norm(d_BCT, dim=-1, keepdim=True) / math.sqrt(x_BCT.shape[-1])
    flat_BC1 = spread_BC1 <= rounding_BC1
    if norm == "window":
        power_B11 = spread_BC1.masked_fill(flat_BC1, 0.0).square().mean(1, keepdim=True)
        scale_BC1 = power_B11.masked_fill(power_B11 == 0.0, 1.0).sqrt()
    else:
        scale_BC1 = spread_BC1
        if norm == "robust":
            mad_BC1 = 1.4826 * _median(d_BCT.abs())
            scale_BC1 = torch.where(mad_BC1 > rounding_BC1, mad_BC1, scale_BC1)
        quiet_B11 = _QUIET * scale_BC1.masked_fill(flat_BC1, 0.0).mean(1, keepdim=True)
        scale_BC1 = torch.maximum(scale_BC1.masked_fill(flat_BC1, 1.0), quiet_B11)
    y_BCT: Tensor = d_BCT * scale_BC1.reciprocal().masked_fill(flat_BC1, 0.0)
    return y_BCT.clamp(-_ROBUST_LIMIT, _ROBUST_LIMIT) if norm == "robust" else y_BCT


def _median(x_BCT: Tensor) -> Tensor:
    """Median over time, the lower of two middle values; a third of the time of a sort, and deterministic on a GPU."""
    return x_BCT.topk(x_BCT.shape[-1] // 2 + 1, sorted=False).values.amin(-1, keepdim=True)


class Masks:
    """Dropout masks drawn beforehand, taken slice by slice in the order in which layers drop.

    Whoever trains draws them from a stream of its own (see `Conformer.dropout_plan`): SAM's two passes share them, and
    a fold draws the same ones whether it is trained alone, beside others, or stacked with them.

    Parameters
    ----------
    scale_M
        For each value that is dropped or kept, 0 or 1 / (1 - p).
    batch, first
        Of a part of a batch: the windows that the masks are for, and which of them is the part's first.
    """

    def __init__(self, scale_M: Tensor, batch: int = 0, first: int = 0) -> None:
        self._scale_M, self._taken = scale_M, 0
        self._batch, self._first = batch, first

    def take(self, x: Tensor) -> Tensor:
        """The next mask, of `x`'s shape and type."""
        size = x.numel() // len(x) * self._batch if self._batch else x.numel()
        start, self._taken = self._taken, self._taken + size
        mask = self._scale_M[start : self._taken]
        if self._batch:
            mask = mask.view(self._batch, -1)[self._first : self._first + len(x)]
        taken: Tensor = mask.view(x.shape).to(x.dtype)
        return taken


class Dropout(nn.Module):
    """Dropout with masks that are given or, where none are, made of uniform numbers.

    On a CPU that is four times quicker than `nn.Dropout`.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor, masks: Masks | None = None) -> Tensor:
        """Zero a share `p` of the values in training and scale up the others."""
        if not self.training or self.p == 0.0:
            return x
        if masks is not None:
            return x * masks.take(x)
        if x.is_cuda:
            return F.dropout(x, self.p)
        return x * (torch.rand_like(x) >= self.p).to(x.dtype).mul_(1.0 / (1.0 - self.p))

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Block(nn.Module):
    """Pre-norm transformer block: ``x + drop(attention(norm(x)))``, then ``x + drop(feed-forward(norm(x)))``.

    Scores are divided by the root of a head's width (Vaswani et al. 2017, eq. 1) as in braindecode; the authors'
    program divides by the root of the token's. `qkv` stacks the maps of queries, keys and values.
    """

    def __init__(self, width: int, heads: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.inner = heads, expansion * width
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.feed = nn.Sequential(
            nn.Linear(width, expansion * width),
            nn.GELU(),
            Dropout(dropout),
            nn.Linear(expansion * width, width),
        )
        self.drop = Dropout(dropout)

    def forward(self, x_BNF: Tensor, masks: Masks | None = None) -> Tensor:
        """Map tokens (B, N, F) to tokens."""
        q, k, v = self.qkv(self.norm1(x_BNF)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        # Written out: of a few tokens torch's own takes twice as long to train on a CPU, draws its own masks, and has
        # no rule for vmap.
        shares_BHNN = softmax(q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2))
        mixed_BHND = self.drop(shares_BHNN, masks) @ v
        x_BNF = x_BNF + self.drop(self.projection(mixed_BHND.transpose(1, 2).flatten(2)), masks)
        out: Tensor = x_BNF + self.drop(in_order(self.feed, self.norm2(x_BNF), masks), masks)
        return out

    def dropout_plan(self, batch: int, n_tokens: int) -> list[tuple[int, float]]:
        """Sizes and rates of the masks that a pass takes, in order."""
        token, inner = batch * n_tokens * self.projection.in_features, batch * n_tokens * self.inner
        return [(size, self.drop.p) for size in (batch * self.heads * n_tokens**2, token, inner, token)]


def softmax(x_BHNN: Tensor) -> Tensor:
    """Softmax over the last axis; on a CPU, over a short one, through a copy in which that axis comes first.

    Rows of seven leave vector units idle: the way round takes a third of the time (of 27, more than the straight one).
    """
    if x_BHNN.is_cuda or x_BHNN.shape[-1] > _SHORT_ROW:
        return x_BHNN.softmax(-1)
    return x_BHNN.flatten(0, -2).t().contiguous().softmax(0).t().reshape(x_BHNN.shape)


def in_order(layers: nn.Sequential, x: Tensor, masks: Masks | None) -> Tensor:
    """Apply layers one after the other, handing `masks` to those that drop."""
    for layer in layers:
        x = layer(x, masks) if isinstance(layer, (Dropout, Block)) else layer(x)
    return x


class Conformer(nn.Module):
    """EEG-Conformer (Song et al. 2023, fig. 2 and tables I-II); normalises its windows itself.

    stem -> BatchNorm -> ELU -> average pool -> dropout -> 1 x 1 convolution -> `depth` transformer blocks without
    positional encoding -> flatten -> Linear, ELU, dropout -> Linear, ELU, dropout -> Linear.

    Parameters
    ----------
    n_channels, n_times
        Shape of a window.
    n_outputs
        1 for regression, else classes (the output holds logits).
    kernel, pool, stride
        Lengths in samples; see `kernel_sizes`.
    filters
        Filters of both stem layers and width of a token; a multiple of `heads`.
    depth, heads, expansion
        Of the transformer: blocks, heads, width of the feed-forward layer in tokens.
    hidden
        Width of the head's first layer; its second is an eighth of it.
    dropout
        Of stem, blocks and the head's first layer; the head's second drops 0.6 times as much (0.5 and 0.3: the paper).
    features
        `mean` of ELU activations (the paper), or `log-power`: square, average, log (Schirrmeister et al. 2017).
    norm
        See `normalise`.
    bins
        Of a regression: 0, or the bins of a distribution over the standardised target. While training, the network
        gives their logits (B, bins), in evaluation their mean, the answer, and variance (B, 2): see
        `raypipe.models.readout`.
    variance
        Of a regression: whether the network tells the variance of its answer. While training, it gives the answer and
        the variance's logarithm (B, 2), in evaluation answer and variance (B, 2).

    Raises
    ------
    ValueError
        The window holds no single pool, or an option is unknown.

    Notes
    -----
    Keys of the state: ``stem.temporal``, ``stem.spatial``, ``batch_norm`` (an `nn.BatchNorm1d`), ``pointwise``,
    ``blocks.<i>.{norm1,qkv,projection,norm2,feed.0,feed.3}``, ``head.{1,4,7}``. Against braindecode's EEGConformer,
    ``pointwise.weight`` lacks two trailing axes of length one and ``qkv`` stacks three layers; all else is renaming.
    """

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
        super().__init__()
        if (bins or variance) and n_outputs != 1:
            raise ValueError("bins and variance are for regression")
        if n_times < kernel + pool - 1:
            raise ValueError(
                f"a window of {n_times} samples is too short for a kernel of {kernel} and a pool of {pool}: "
                f"it needs {kernel + pool - 1}"
            )
        if filters % heads:
            raise ValueError(f"filters ({filters}) must be a multiple of heads ({heads})")
        if features not in FEATURES or norm not in NORMS:
            raise ValueError(f"unknown features {features!r} or norm {norm!r}; there is {FEATURES} and {NORMS}")
        self.n_channels, self.n_times, self.n_outputs = n_channels, n_times, n_outputs
        self.n_tokens = (n_times - kernel + 1 - pool) // stride + 1
        self.summary, self.norm, self.bins, self.variance = features, norm, bins, variance
        self.filters, self.hidden, self.dropout = filters, hidden, dropout
        self.stem = Stem(n_channels, n_times, filters=filters, kernel=kernel)
        self.batch_norm = nn.BatchNorm1d(filters)
        self.pool = nn.AvgPool1d(pool, stride)
        self.drop = Dropout(dropout)
        self.pointwise = nn.Linear(filters, filters)
        self.blocks = nn.Sequential(*(Block(filters, heads, expansion, dropout) for _ in range(depth)))
        second = max(1, hidden // 8)
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(self.n_tokens * filters, hidden),
            nn.ELU(),
            Dropout(dropout),
            nn.Linear(hidden, second),
            nn.ELU(),
            Dropout(0.6 * dropout),
            nn.Linear(second, bins or n_outputs + variance),
        )

    def prepare(self, x_BCT: Tensor) -> Tensor:
        """Do what no parameter takes part in: normalise, and transform for the Fourier stem.

        ``model(model.prepare(x), prepared=True)`` equals ``model(x)``; SAM's two passes share one call. What comes
        back depends on `stem.algorithm`, which must not change in between.
        """
        if x_BCT.ndim != 3 or x_BCT.shape[1:] != (self.n_channels, self.n_times):
            raise ValueError(f"expected windows (B, {self.n_channels}, {self.n_times}), got {tuple(x_BCT.shape)}")
        return self.stem.prepare(normalise(x_BCT, self.norm))

    def dropout_plan(self, batch: int) -> list[tuple[int, float]]:
        """Sizes and rates of the masks that a training pass over `batch` windows takes, in order (see `Masks`)."""
        plan = [(batch * self.n_tokens * self.filters, self.dropout)]
        for block in self.blocks:
            assert isinstance(block, Block)
            plan += block.dropout_plan(batch, self.n_tokens)
        plan += [(batch * self.hidden, self.dropout), (batch * max(1, self.hidden // 8), 0.6 * self.dropout)]
        return [part for part in plan if part[1]]

    def forward(self, x: Tensor, *, prepared: bool = False, scale_M: Tensor | None = None) -> Tensor:
        """Map windows (B, C, T) in any unit, or what `prepare` made of them, to (B, n_outputs).

        In training, `scale_M` holds dropout masks in the order of `dropout_plan`; without it, they are drawn.
        """
        return self.back(self.front(x, prepared=prepared), None if scale_M is None else Masks(scale_M))

    def front(self, x: Tensor, *, prepared: bool = False) -> Tensor:
        """The part that sees a batch as a whole, up to BatchNorm: windows to (B, filters, T - kernel + 1)."""
        out: Tensor = self.batch_norm(self.stem(x if prepared else self.prepare(x), prepared=True))
        return out

    @property
    def width(self) -> int:
        """Width of a token."""
        return self.filters

    def features(self, x: Tensor, *, prepared: bool = False) -> Tensor:
        """A window's vector (B, filters): the mean of its tokens behind the blocks; what probes look at."""
        return self.encode(self.front(x, prepared=prepared)).mean(1)

    def back(self, y_BFT: Tensor, masks: Masks | None = None) -> Tensor:
        """The rest, in which every window goes its own way: what `front` gave to (B, n_outputs)."""
        out_BK = in_order(self.head, self.encode(y_BFT, masks), masks)
        if self.training or not (self.bins or self.variance):
            return out_BK
        return moments(out_BK) if self.bins else told(out_BK)

    def encode(self, y_BFT: Tensor, masks: Masks | None = None) -> Tensor:
        """Tokens (B, N, F) behind the blocks, of what `front` gave."""
        if self.summary == "mean":
            tokens_BFN = self.pool(F.elu(y_BFT))
        else:
            tokens_BFN = self.pool(y_BFT.square()).clamp_min(_LOG_FLOOR).log()
        tokens_BNF = self.pointwise(self.drop(tokens_BFN, masks).transpose(1, 2))
        return in_order(self.blocks, tokens_BNF, masks)
