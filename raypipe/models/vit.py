"""A vision transformer for EEG: a token is a patch of one channel, placed by its time and its electrode's position.

This file needs torch (2.2 or later) and its neighbours conformer.py and stem.py: submissions carry them as they are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

if __package__:
    from raypipe.models.conformer import Dropout, Masks, in_order, normalise
else:  # in a submission, where the files lie side by side
    from conformer import (  # type: ignore[import-not-found,no-redef,unused-ignore]
        Dropout,
        Masks,
        in_order,
        normalise,
    )

WAVES = 8
"""Waves along each axis of space that a position is described by."""
_HEAD_RADIUS = 0.1  # metres


class Layer(nn.Module):
    """Pre-norm transformer block (Vaswani et al. 2017) that drops in its feed-forward layer and residuals only.

    Attention itself drops nothing: masks of tokens x tokens would be most of the memory where tokens are many.
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

    def forward(self, x_BNF: Tensor, masks: Masks | None = None) -> Tensor:
        """Map tokens (B, N, F) to tokens."""
        q, k, v = self.qkv(self.norm1(x_BNF)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed_BHND = F.scaled_dot_product_attention(q, k, v)
        x_BNF = x_BNF + self.drop(self.projection(mixed_BHND.transpose(1, 2).flatten(2)), masks)
        out: Tensor = x_BNF + self.drop(in_order(self.feed, self.norm2(x_BNF), masks), masks)
        return out

    def dropout_plan(self, batch: int, n_tokens: int) -> list[tuple[int, float]]:
        """Sizes and rates of the masks that a pass takes, in order."""
        token, inner = batch * n_tokens * self.projection.in_features, batch * n_tokens * self.inner
        return [(size, self.drop.p) for size in (token, inner, token)]


class Places(nn.Module):
    """Embeddings of where and when a patch was taken.

    Where: sines and cosines of the electrode's position (random Fourier features with fixed waves, after Tancik et
    al. 2020, arXiv:2006.10739), through a linear map; so weights of one montage serve another. An electrode of unknown
    position gets one learned vector. When: sines and cosines of the patch's number (Vaswani et al. 2017, sec. 3.5).
    """

    positions: Tensor
    waves: Tensor

    def __init__(self, n_channels: int, width: int) -> None:
        super().__init__()
        self.register_buffer("positions", torch.full((n_channels, 3), math.nan))
        axes = torch.eye(3).repeat_interleave(WAVES, 1)
        scales = torch.logspace(-1, 1, WAVES, base=2.0).repeat(3) * math.pi
        self.register_buffer("waves", axes * scales, persistent=False)
        self.where = nn.Linear(6 * WAVES, width)
        self.unknown = nn.Parameter(torch.randn(width) * 0.02)

    def forward(self, n_patches: int) -> Tensor:
        """Embeddings (C, P, F) of all channels' patches."""
        known_C1 = self.positions.isfinite().all(1, keepdim=True)
        phase_CW = (self.positions.nan_to_num() / _HEAD_RADIUS) @ self.waves
        where_CF = torch.where(known_C1, self.where(torch.cat((phase_CW.sin(), phase_CW.cos()), 1)), self.unknown)
        return where_CF[:, None] + when(n_patches, where_CF.shape[1], where_CF.device)


def when(n_patches: int, width: int, device: torch.device) -> Tensor:
    """Sines and cosines (P, F) of the numbers of patches (Vaswani et al. 2017, sec. 3.5)."""
    number_P1 = torch.arange(n_patches, device=device, dtype=torch.float32)[:, None]
    rate_W = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10000.0) / width))
    return torch.stack((torch.sin(number_P1 * rate_W), torch.cos(number_P1 * rate_W)), 2).flatten(1)[:, :width]


class ViT(nn.Module):
    """Transformer over patches of channels and time; normalises its windows itself.

    patches -> Linear + where + when -> `depth` blocks -> LayerNorm (`encode`) -> mean over tokens -> Linear.

    Parameters
    ----------
    n_channels, n_times
        Shape of a window. Samples beyond the last whole patch are not looked at.
    n_outputs
        1 for regression, else classes (the output holds logits).
    patch
        Samples of a patch.
    width, depth, heads, expansion
        Of the transformer; `width` is a multiple of `heads`.
    dropout
        Of blocks and head.
    norm
        See `conformer.normalise`.

    Raises
    ------
    ValueError
        The window holds no single patch, or `width` is no multiple of `heads`.

    Notes
    -----
    Electrode positions are a buffer, ``places.positions`` (metres; NaN: unknown): weights bring theirs along.
    """

    def __init__(
        self,
        n_channels: int,
        n_times: int,
        n_outputs: int,
        *,
        patch: int = 25,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        expansion: int = 4,
        dropout: float = 0.1,
        norm: str = "channel",
    ) -> None:
        super().__init__()
        if n_times < patch:
            raise ValueError(f"a window of {n_times} samples is too short for a patch of {patch}")
        if width % heads:
            raise ValueError(f"width ({width}) must be a multiple of heads ({heads})")
        self.n_channels, self.n_times, self.n_outputs = n_channels, n_times, n_outputs
        self.patch, self.width, self.norm, self.dropout = patch, width, norm, dropout
        self.n_patches = n_times // patch
        self.n_tokens = n_channels * self.n_patches
        self.embed = nn.Linear(patch, width)
        self.places = Places(n_channels, width)
        self.blocks = nn.Sequential(*(Layer(width, heads, expansion, dropout) for _ in range(depth)))
        self.final_norm = nn.LayerNorm(width)
        self.drop = Dropout(dropout)
        self.head = nn.Linear(width, n_outputs)

    def prepare(self, x_BCT: Tensor) -> Tensor:
        """Normalise windows: what no parameter takes part in."""
        if x_BCT.ndim != 3 or x_BCT.shape[1:] != (self.n_channels, self.n_times):
            raise ValueError(f"expected windows (B, {self.n_channels}, {self.n_times}), got {tuple(x_BCT.shape)}")
        return normalise(x_BCT, self.norm)

    def dropout_plan(self, batch: int) -> list[tuple[int, float]]:
        """Sizes and rates of the masks that a training pass over `batch` windows takes, in order (see `Masks`)."""
        plan: list[tuple[int, float]] = []
        for block in self.blocks:
            assert isinstance(block, Layer)
            plan += block.dropout_plan(batch, self.n_tokens)
        return [part for part in [*plan, (batch * self.width, self.dropout)] if part[1]]

    def cut(self, x_BCT: Tensor) -> Tensor:
        """Cut prepared windows into patches (B, C * P, patch), channel by channel."""
        return x_BCT[..., : self.n_patches * self.patch].reshape(len(x_BCT), self.n_tokens, self.patch)

    def forward(self, x: Tensor, *, prepared: bool = False, scale_M: Tensor | None = None) -> Tensor:
        """Map windows (B, C, T) in any unit, or what `prepare` made of them, to (B, n_outputs)."""
        return self.back(self.front(x, prepared=prepared), None if scale_M is None else Masks(scale_M))

    def front(self, x: Tensor, *, prepared: bool = False) -> Tensor:
        """Tokens (B, N, F) before the first block."""
        return self.tokens(self.cut(x if prepared else self.prepare(x)))

    def tokens(self, patches_BNS: Tensor, kept_BK: Tensor | None = None) -> Tensor:
        """Embed patches in their places; with `kept_BK`, `patches_BNS` are (B, K, patch), those of these numbers."""
        places_NF = self.places(self.n_patches).flatten(0, 1)
        x_BNF: Tensor = self.embed(patches_BNS)
        out: Tensor = x_BNF + (places_NF if kept_BK is None else places_NF[kept_BK])
        return out

    def encode(self, tokens_BNF: Tensor, masks: Masks | None = None) -> Tensor:
        """What the encoder makes of tokens (B, N, F), as many as are given."""
        out: Tensor = self.final_norm(in_blocks(self.blocks, tokens_BNF, masks))
        return out

    def features(self, x_BCT: Tensor, *, prepared: bool = False) -> Tensor:
        """A window's vector (B, F): the mean of its tokens, which the head and probes look at."""
        return self.encode(self.front(x_BCT, prepared=prepared)).mean(1)

    def back(self, y_BNF: Tensor, masks: Masks | None = None) -> Tensor:
        """Blocks and head: what `front` gave to (B, n_outputs)."""
        out: Tensor = self.head(self.drop(self.encode(y_BNF, masks).mean(1), masks))
        return out


def in_blocks(layers: nn.Sequential, x_BNF: Tensor, masks: Masks | None) -> Tensor:
    """Apply blocks one after the other, handing `masks` to each."""
    for layer in layers:
        x_BNF = layer(x_BNF, masks)
    return x_BNF
