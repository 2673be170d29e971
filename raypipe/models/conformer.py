"""EEG-Conformer (Song et al. 2023, doi:10.1109/TNSRE.2022.3230250), its stem computed in the frequency domain.

This file needs torch (2.2 or later) and nothing else: submissions carry it as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

ALGORITHMS = ("fourier", "direct", "reference")
FEATURES = ("mean", "log-power")
NORMS = ("channel", "window", "robust", "none")

_ROUNDING = 16  # a spread below this many units of rounding of a channel's offset is no signal
KERNELS = {"rate": (25, 75, 15), "paper": (25, 75, 15), "short": (25, 25, 15)}
_QUIET = 1e-3  # no channel is divided by less than this share of the mean scale of the window's channels
_ROBUST_LIMIT = 15.0
_LOG_FLOOR = 1e-6


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
    # Whether a channel is flat is decided by `where`, not by a small divisor: an offset of a volt leaves rounding
    # errors that would else be blown up to the size of a signal, and the square root of 0 has no finite gradient.
    rounding_BC1 = centre_BC1.detach().abs() * (_ROUNDING * torch.finfo(x_BCT.dtype).eps)
    power_BC1 = d_BCT.square().mean(-1, keepdim=True)
    flat_BC1 = power_BC1 <= rounding_BC1.square()
    d_BCT = d_BCT.masked_fill(flat_BC1, 0.0)
    if norm == "window":
        power_B11 = power_BC1.masked_fill(flat_BC1, 0.0).mean(1, keepdim=True)
        return d_BCT / power_B11.masked_fill(power_B11 == 0.0, 1.0).sqrt()
    scale_BC1 = power_BC1.masked_fill(flat_BC1, 1.0).sqrt()
    if norm == "robust":
        mad_BC1 = 1.4826 * _median(d_BCT.abs())
        scale_BC1 = torch.where(mad_BC1 > rounding_BC1, mad_BC1, scale_BC1)
    quiet_B11 = _QUIET * scale_BC1.masked_fill(flat_BC1, 0.0).mean(1, keepdim=True)
    d_BCT = d_BCT / torch.maximum(scale_BC1, quiet_B11)
    return d_BCT.clamp(-_ROBUST_LIMIT, _ROBUST_LIMIT) if norm == "robust" else d_BCT


def _median(x_BCT: Tensor) -> Tensor:
    """Median over time, the lower of two middle values; a third of the time of a sort, and deterministic on a GPU."""
    return x_BCT.topk(x_BCT.shape[-1] // 2 + 1, sorted=False).values.amin(-1, keepdim=True)


def fast_length(n: int) -> int:
    """The smallest even number from `n` on whose prime factors are 2, 3, 5 and 7."""
    n += n % 2
    while True:
        rest = n
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 2


class Stem(nn.Module):
    """The Conformer's two convolutions: temporal (1 -> F, 1 x K), then spatial (F -> F, C x 1), with biases.

    Nothing stands between them, so they are one linear map of the window,
    ``y[b,g,t] = sum_ck W[g,c,k] x[b,c,t+k] + b[g] + sum_fc v[g,f,c] a[f]`` with ``W[g,c,k] = sum_f v[g,f,c] w[f,k]``.
    Parameters keep the two layers' names and shapes; `algorithm`, which may be changed at any time, says how the
    map is computed, and the results differ by rounding only:

    - ``fourier``: W is made at each frequency from the transformed temporal kernels, and one complex product a
      frequency replaces the correlation. No output wraps around, since no sum reaches beyond sample T - 1.
    - ``direct``: W, then one 1-D convolution.
    - ``reference``: the two layers, one after the other (an intermediate of B x F x C x T).

    Parameters
    ----------
    n_channels, n_times
        C and T, the shape of a window.
    filters
        F, of both layers.
    kernel
        K, in samples.
    algorithm
        One of the above.
    """

    def __init__(
        self, n_channels: int, n_times: int, *, filters: int = 40, kernel: int = 25, algorithm: str = "fourier"
    ) -> None:
        super().__init__()
        if kernel > n_times:
            raise ValueError(f"a window of {n_times} samples is shorter than the kernel of {kernel}")
        self.n_channels, self.n_times, self.kernel = n_channels, n_times, kernel
        self.algorithm = algorithm
        self.length = fast_length(n_times)
        self.temporal = nn.Conv2d(1, filters, (1, kernel))
        self.spatial = nn.Conv2d(filters, filters, (n_channels, 1))
        self.cos_NK: Tensor
        self.sin_NK: Tensor
        self._make_basis()

    def _make_basis(self) -> None:
        """Make the DFT of K taps at the N = length // 2 + 1 frequencies, conjugated (a correlation, not a convolution).

        Neither parameter nor buffer: it is not state. Made in float64 and rounded once, so it is made anew when the
        module changes its dtype, and left alone when `torch.func` moves a skeleton to the meta device.
        """
        weight = self.temporal.weight
        if weight.is_meta:
            return
        frequency_N1 = torch.arange(self.length // 2 + 1)[:, None]
        part_NK = (frequency_N1 * torch.arange(self.kernel)) % self.length
        angle_NK = part_NK.double() * (2 * math.pi / self.length)
        self.cos_NK = torch.cos(angle_NK).to(weight)
        self.sin_NK = torch.sin(angle_NK).to(weight)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Stem:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._make_basis()
        return self

    def prepare(self, x_BCT: Tensor) -> Tensor:
        """Compute what needs no parameter: the spectrum (frequencies, B, C) for `fourier`, else nothing."""
        if self.algorithm != "fourier":
            return x_BCT
        z_BCN: Tensor = torch.fft.rfft(x_BCT.to(self.temporal.weight.dtype), n=self.length)
        return z_BCN.permute(2, 0, 1).contiguous()

    def forward(self, x_BCT: Tensor, *, prepared: bool = False) -> Tensor:
        """Filter windows (B, C, T), or what `prepare` made of them, to (B, F, T - K + 1)."""
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)} (given {self.algorithm!r})")
        if self.algorithm == "reference":
            two_BGT: Tensor = self.spatial(self.temporal(x_BCT.unsqueeze(1))).squeeze(2)
            return two_BGT
        z = x_BCT if prepared else self.prepare(x_BCT)
        assert self.temporal.bias is not None and self.spatial.bias is not None
        w_FK = self.temporal.weight[:, 0, 0]
        v_GFC = self.spatial.weight[..., 0]
        bias_G = self.spatial.bias + v_GFC.sum(2) @ self.temporal.bias
        if self.algorithm == "direct":
            return F.conv1d(z, torch.einsum("gfc,fk->gck", v_GFC, w_FK), bias_G)
        with torch.autocast(z.device.type, enabled=False):  # there is no complex bfloat16
            v_FX = v_GFC.permute(1, 2, 0).flatten(1)
            w_NX = torch.complex((self.cos_NK @ w_FK.T) @ v_FX, (self.sin_NK @ w_FK.T) @ v_FX)
            y_NBG = torch.bmm(z, w_NX.view(len(w_NX), self.n_channels, -1))
            y_BGT: Tensor = torch.fft.irfft(y_NBG.permute(1, 2, 0), n=self.length)
        return y_BGT[..., : self.n_times - self.kernel + 1] + bias_G[:, None]


class Dropout(nn.Module):
    """Dropout with masks made of uniform numbers, four times quicker than `nn.Dropout` on a CPU; on a GPU, that one."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Zero a share `p` of the values in training and scale up the others."""
        if not self.training or self.p == 0.0:
            return x
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
        self.heads = heads
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

    def forward(self, x_BNF: Tensor) -> Tensor:
        """Map tokens (B, N, F) to tokens."""
        q, k, v = self.qkv(self.norm1(x_BNF)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if x_BNF.is_cuda:
            mixed_BHND = F.scaled_dot_product_attention(q, k, v, dropout_p=self.drop.p if self.training else 0.0)
        else:  # on a CPU the built-in one takes twice as long to train, and has no rule for vmap
            mixed_BHND = self.drop((q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1)) @ v
        x_BNF = x_BNF + self.drop(self.projection(mixed_BHND.transpose(1, 2).flatten(2)))
        out: Tensor = x_BNF + self.drop(self.feed(self.norm2(x_BNF)))
        return out


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
    ) -> None:
        super().__init__()
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
        self.features, self.norm = features, norm
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
            nn.Linear(second, n_outputs),
        )

    def prepare(self, x_BCT: Tensor) -> Tensor:
        """Do what no parameter takes part in: normalise, and transform for the Fourier stem.

        ``model(model.prepare(x), prepared=True)`` equals ``model(x)``; SAM's two passes share one call. What comes
        back depends on `stem.algorithm`, which must not change in between.
        """
        if x_BCT.ndim != 3 or x_BCT.shape[1:] != (self.n_channels, self.n_times):
            raise ValueError(f"expected windows (B, {self.n_channels}, {self.n_times}), got {tuple(x_BCT.shape)}")
        return self.stem.prepare(normalise(x_BCT, self.norm))

    def forward(self, x: Tensor, *, prepared: bool = False) -> Tensor:
        """Map windows (B, C, T) in any unit, or what `prepare` made of them, to (B, n_outputs)."""
        y_BFT = self.batch_norm(self.stem(x if prepared else self.prepare(x), prepared=True))
        if self.features == "mean":
            tokens_BFN = self.pool(F.elu(y_BFT))
        else:
            tokens_BFN = self.pool(y_BFT.square()).clamp_min(_LOG_FLOOR).log()
        tokens_BNF = self.pointwise(self.drop(tokens_BFN).transpose(1, 2))
        out: Tensor = self.head(self.blocks(tokens_BNF))
        return out
