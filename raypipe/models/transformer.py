"""Transformer blocks, and an attention that is quick to train on a CPU where tokens are few.

This file needs torch (2.2 or later) and its neighbour network.py: submissions contain both unchanged.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

if __package__:
    from raypipe.models.network import Dropout, DropoutMasks, MaskedLayer, apply_layers
else:  # in a submission, where the files are in one folder
    from network import (  # type: ignore[import-not-found,no-redef,unused-ignore]
        Dropout,
        DropoutMasks,
        MaskedLayer,
        apply_layers,
    )

MAX_SHORT = 12
"""Most tokens for which a CPU computes attention by `ShortAttention`, and `softmax` by a copy."""


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
        x_BNF = x_BNF + self.drop(self.projection(self.attend(self.qkv(self.norm1(x_BNF)), masks)), masks)
        out: Tensor = x_BNF + self.drop(apply_layers(self.feed, self.norm2(x_BNF), masks), masks)
        return out

    def attend(self, qkv_BNX: Tensor, masks: DropoutMasks | None) -> Tensor:
        """Return the weighted sums of values (B, N, F) for each query and head, with dropout of the weights."""
        # torch's own attention takes twice as long to train on few tokens on a CPU, draws its own dropout masks, and
        # has no batching rule for vmap.
        b, n = qkv_BNX.shape[:2]
        full = qkv_BNX.dtype in (torch.float32, torch.float64)
        if self.training and torch.is_grad_enabled() and full and not qkv_BNX.is_cuda and n <= MAX_SHORT:
            mask_BHNN = self.drop.mask(qkv_BNX.new_empty(b, self.heads, n, n), masks)
            short_BNF: Tensor = ShortAttention.apply(qkv_BNX, mask_BHNN, self.heads)[0]  # type: ignore[no-untyped-call]
            return short_BNF
        q, k, v = self.split_heads(qkv_BNX)
        weights_BHNN = softmax(q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2))
        mixed_BHND: Tensor = self.drop(weights_BHNN, masks) @ v
        return mixed_BHND.transpose(1, 2).flatten(2)

    def split_heads(self, qkv_BNX: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each (B, H, N, D)."""
        b, n = qkv_BNX.shape[:2]
        q, k, v = qkv_BNX.view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def dropout_plan(self, batch: int, n_tokens: int) -> list[tuple[int, float]]:
        """Return size and rate of each dropout mask that a pass takes, in order."""
        token, inner = batch * n_tokens * self.projection.in_features, batch * n_tokens * self.inner
        return [(size, self.drop.p) for size in (batch * self.heads * n_tokens**2, token, inner, token)]


def softmax(x_BHNN: Tensor) -> Tensor:
    """Return the softmax over the last axis. On a CPU, a short axis is moved to the front first, by a copy.

    For rows of 7, which leave vector units idle, this takes a third of the time; for rows of 27 it is slower.
    """
    if x_BHNN.is_cuda or x_BHNN.shape[-1] > MAX_SHORT:
        return x_BHNN.softmax(-1)
    return x_BHNN.flatten(0, -2).t().contiguous().softmax(0).t().reshape(x_BHNN.shape)


class ShortAttention(torch.autograd.Function):
    """Scaled dot-product attention of all heads (Vaswani et al. 2017, eq. 1) in products along the batch.

    With few tokens and features of a head, to start a product of matrices takes longer than its arithmetic. Here the
    batch is the last axis, and sums are over whole tensors. With 7 tokens of 10 heads of 4 features, both passes take a
    third of the time.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(qkv_BNX: Tensor, mask_BHNN: Tensor | None, heads: int) -> tuple[Tensor, ...]:
        """Return the weighted sums of values (B, N, F), and what the backward pass needs.

        Parameters
        ----------
        qkv_BNX
            (B, N, 3 F) queries, keys and values, each by head.
        mask_BHNN
            Dropout mask of the weights.
        heads
            Number of heads H; F = H D.
        """
        b, n, x = qkv_BNX.shape
        qkv_NSHDB = _transposed(qkv_BNX.reshape(b, -1)).view(n, 3, heads, x // (3 * heads), b)
        q_NHDB, k_NHDB, v_NHDB = qkv_NSHDB.unbind(1)
        q_NHDB.mul_(q_NHDB.shape[2] ** -0.5)
        weights_MHNB = _products(k_NHDB, q_NHDB).softmax(0)
        if mask_BHNN is None:
            kept_MHNB = weights_MHNB
        else:
            mask_HNMB = _transposed(mask_BHNN.reshape(b, -1)).view(heads, n, n, b)
            kept_MHNB = weights_MHNB * mask_HNMB.permute(2, 0, 1, 3)
        mixed_NHDB = _weighted_sums(kept_MHNB, v_NHDB)
        return _transposed(mixed_NHDB.reshape(-1, b)).view(b, n, x // 3), qkv_NSHDB, weights_MHNB, kept_MHNB

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Save what the backward pass needs."""
        _, *kept = output
        ctx.mark_non_differentiable(*kept)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*kept)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None, None]:
        """Return the gradient of queries, keys and values (B, N, 3 F)."""
        g_BNF = gradients[0]
        if g_BNF is None:
            return None, None, None
        qkv_NSHDB, weights_MHNB, kept_MHNB = ctx.saved_tensors
        n, _, h, d, b = qkv_NSHDB.shape
        q_NHDB, k_NHDB, v_NHDB = qkv_NSHDB.unbind(1)  # queries are divided by the root of D
        g_NHDB = _transposed(g_BNF.reshape(b, -1)).view(n, h, d, b)
        along_MHNB = _products(v_NHDB, g_NHDB) * kept_MHNB
        g_scores_MHNB = torch.addcmul(along_MHNB, weights_MHNB, along_MHNB.sum(0, keepdim=True), value=-1.0)
        g_q = _weighted_sums(g_scores_MHNB, k_NHDB) * d**-0.5
        g_k = _weighted_sums(g_scores_MHNB.transpose(0, 2), q_NHDB)
        g_v = _weighted_sums(kept_MHNB.transpose(0, 2), g_NHDB)
        g_qkv_XB = torch.stack((g_q, g_k, g_v), 1).view(-1, b)
        return _transposed(g_qkv_XB).view(b, n, -1), None, None


def _transposed(x_MN: Tensor) -> Tensor:
    """Return the transpose (N, M) as a copy, also where there is one row."""
    return x_MN.t().clone(memory_format=torch.contiguous_format)


def _products(a_MHDB: Tensor, b_NHDB: Tensor) -> Tensor:
    """Return the products of the rows of two token sequences (M, H, N, B), summed over D."""
    firsts, seconds = a_MHDB.unsqueeze(2).unbind(-2), b_NHDB.transpose(0, 1).unsqueeze(0).unbind(-2)
    out_MHNB = firsts[0] * seconds[0]
    for first_MH1B, second_1HNB in zip(firsts[1:], seconds[1:]):  # noqa: B905 - runs on 3.9 too
        out_MHNB = torch.addcmul(out_MHNB, first_MH1B, second_1HNB)
    return out_MHNB


def _weighted_sums(weights_MHNB: Tensor, x_MHDB: Tensor) -> Tensor:
    """Return the weighted sums over M of the rows of a token sequence (N, H, D, B)."""
    return (weights_MHNB.transpose(1, 2).unsqueeze(3) * x_MHDB.unsqueeze(1)).sum(0)
