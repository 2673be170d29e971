"""A vision transformer for EEG: a token is a patch of one channel, placed by its time and its electrode's position.

This file needs torch (2.2 or later) and its neighbours network.py, readout.py and transformer.py: submissions contain
them unchanged.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

if __package__:
    from raypipe.models.network import Dropout, DropoutMasks, Encoder, apply_layers
    from raypipe.models.transformer import Block
else:  # in a submission, where the files are in one folder
    from network import (  # type: ignore[import-not-found,no-redef,unused-ignore]
        Dropout,
        DropoutMasks,
        Encoder,
        apply_layers,
    )
    from transformer import Block  # type: ignore[import-not-found,no-redef,unused-ignore]

WAVES = 8
"""Number of waves along each spatial axis that encode a position."""
_HEAD_RADIUS = 0.1
"""Metres."""


class ViTBlock(Block):
    """Transformer block without dropout of the attention weights.

    A mask of these has tokens x tokens values, which would take most of the memory if there are many tokens.
    """

    def attend(self, qkv_BNX: Tensor, masks: DropoutMasks | None) -> Tensor:
        """Return the weighted sums of values (B, N, F) for each query and head."""
        q, k, v = self.split_heads(qkv_BNX)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def dropout_plan(self, batch: int, n_tokens: int) -> list[tuple[int, float]]:
        """Return size and rate of each dropout mask that a pass takes, in order."""
        return super().dropout_plan(batch, n_tokens)[1:]


class ElectrodeEmbedding(nn.Module):
    """Embedding of a patch's position on the head and in time: the sum of the two.

    On the head: sines and cosines of the electrode's position (Fourier features with fixed waves, after Tancik et al.
    2020, arXiv:2006.10739), through a linear map. Weights of one montage can therefore be used with another. All
    electrodes of unknown position share one learned vector. In time: sines and cosines of the patch's number (Vaswani
    et al. 2017, sec. 3.5).
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
        """Return the embeddings (C, P, F) of all channels' patches."""
        known_C1 = self.positions.isfinite().all(1, keepdim=True)
        phase_CW = (self.positions.nan_to_num() / _HEAD_RADIUS) @ self.waves
        where_CF = torch.where(known_C1, self.where(torch.cat((phase_CW.sin(), phase_CW.cos()), 1)), self.unknown)
        return where_CF[:, None] + time_embedding(n_patches, where_CF.shape[1], where_CF.device)


def time_embedding(n_patches: int, width: int, device: torch.device) -> Tensor:
    """Return sines and cosines (P, F) of the patches' numbers (Vaswani et al. 2017, sec. 3.5)."""
    number_P1 = torch.arange(n_patches, device=device, dtype=torch.float32)[:, None]
    rate_W = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10000.0) / width))
    return torch.stack((torch.sin(number_P1 * rate_W), torch.cos(number_P1 * rate_W)), 2).flatten(1)[:, :width]


class ViT(Encoder):
    """Transformer over patches of channels and time; it normalises its windows itself.

    patches -> Linear + embeddings of place and time -> `depth` blocks -> LayerNorm (`encode`) -> mean over tokens ->
    Linear.

    Parameters
    ----------
    n_channels, n_times, n_outputs, norm
        See `Network`. Samples after the last whole patch are not used.
    patch
        Samples of a patch.
    width, depth, heads, expansion
        Of the transformer: width of a token (a multiple of `heads`), number of blocks, heads per block, and width of
        the feed-forward layer in token widths.
    dropout
        Dropout rate of blocks and head.

    Raises
    ------
    ValueError
        The window is shorter than a patch, or `width` is no multiple of `heads`.

    Notes
    -----
    Electrode positions are a buffer, ``places.positions`` (metres; NaN: unknown), so they are saved with the weights.
    """

    uses_electrodes = True
    head: nn.Linear

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
        super().__init__(n_channels, n_times, n_outputs, norm=norm)
        if n_times < patch:
            raise ValueError(f"a window of {n_times} samples is too short for a patch of {patch}")
        if width % heads:
            raise ValueError(f"width ({width}) must be a multiple of heads ({heads})")
        self.patch, self.width, self.dropout = patch, width, dropout
        self.n_patches = n_times // patch
        self.n_tokens = n_channels * self.n_patches
        self.embed = nn.Linear(patch, width)
        self.places = ElectrodeEmbedding(n_channels, width)
        self.blocks = nn.Sequential(*(ViTBlock(width, heads, expansion, dropout) for _ in range(depth)))
        self.final_norm = nn.LayerNorm(width)
        self.drop = Dropout(dropout)
        self.head = nn.Linear(width, n_outputs)

    def place_electrodes(self, positions_C3: Tensor) -> None:
        """Set the electrode positions in metres; NaN: unknown."""
        self.places.positions.copy_(positions_C3.to(self.places.positions.device))

    def dropout_plan(self, batch: int) -> list[tuple[int, float]]:
        """Return size and rate of each dropout mask that a training pass over `batch` windows takes, in order."""
        plan: list[tuple[int, float]] = []
        for block in self.blocks:
            assert isinstance(block, ViTBlock)
            plan += block.dropout_plan(batch, self.n_tokens)
        return [part for part in [*plan, (batch * self.width, self.dropout)] if part[1]]

    def cut(self, x_BCT: Tensor) -> Tensor:
        """Cut prepared windows into patches (B, C * P, patch), channel by channel."""
        return x_BCT[..., : self.n_patches * self.patch].reshape(x_BCT.shape[0], self.n_tokens, self.patch)

    def front(self, x: Tensor, *, prepared: bool = False, masks: DropoutMasks | None = None) -> Tensor:
        """Return the tokens (B, N, F) before the first block."""
        return self.tokens(self.cut(x if prepared else self.prepare(x)))

    def tokens(self, patches_BNS: Tensor, kept_BK: Tensor | None = None) -> Tensor:
        """Embed patches (B, N, patch), or the patches (B, K, patch) whose numbers are `kept_BK`."""
        places_NF = self.places(self.n_patches).flatten(0, 1)
        x_BNF: Tensor = self.embed(patches_BNS)
        out: Tensor = x_BNF + (places_NF if kept_BK is None else places_NF[kept_BK])
        return out

    def encode(self, tokens_BNF: Tensor, masks: DropoutMasks | None = None) -> Tensor:
        """Run the blocks on any number of tokens (B, N, F)."""
        out: Tensor = self.final_norm(apply_layers(self.blocks, tokens_BNF, masks))
        return out

    def features(self, x: Tensor, *, prepared: bool = False) -> Tensor:
        """Return a feature vector for each window (B, F): the mean over its tokens."""
        return self.encode(self.front(x, prepared=prepared)).mean(1)

    def back(self, y_BNF: Tensor, masks: DropoutMasks | None = None) -> Tensor:
        """Run blocks and head on the result of `front`."""
        out: Tensor = self.head(self.drop(self.encode(y_BNF, masks).mean(1), masks))
        return out
