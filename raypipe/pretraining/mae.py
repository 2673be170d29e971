"""Masked autoencoder (He et al. 2022, arXiv:2111.06377) over patches of channels and time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raypipe.core.config import PretrainConfig
from raypipe.models.network import apply_layers
from raypipe.models.vit import ViT, ViTBlock
from raypipe.pretraining.objective import Passes, PretrainBatch
from raypipe.training.loader import WindowLoader


def draw_masks(batch: int, n_tokens: int, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw which patches of each window are visible; return numbers (B, K) of those and (B, M) of the masked ones.

    At least one patch is visible and one masked.

    Raises
    ------
    ValueError
        There is only one patch.
    """
    if n_tokens < 2:
        raise ValueError("a window of one patch has nothing to rebuild")
    masked = min(n_tokens - 1, max(1, round(fraction * n_tokens)))
    order_BN = torch.rand(batch, n_tokens, generator=generator).argsort(1)
    return order_BN[:, masked:].sort(1).values, order_BN[:, :masked].sort(1).values


def pick(x_BNF: Tensor, number_BK: Tensor) -> Tensor:
    """Return the rows (B, K, F) of `x_BNF` with the given numbers."""
    return x_BNF.gather(1, number_BK[..., None].expand(-1, -1, x_BNF.shape[2]))


def normalise_visible(patches_BNS: Tensor, visible_BK: Tensor, n_channels: int) -> Tensor:
    """Return visible patches (B, K, S), with each channel scaled by its visible samples only.

    Statistics of the whole window would leak masked samples to the encoder. A flat channel becomes zeros.
    """
    per_channel = patches_BNS.shape[1] // n_channels
    seen_BN = torch.zeros(patches_BNS.shape[:2], device=patches_BNS.device).scatter_(1, visible_BK, 1.0)
    seen_BCP1 = seen_BN.view(-1, n_channels, per_channel)[..., None]
    x_BCPS = patches_BNS.reshape(-1, n_channels, per_channel, patches_BNS.shape[2])
    count_BC11 = (seen_BCP1.sum((2, 3), keepdim=True) * x_BCPS.shape[3]).clamp_min(1.0)
    # `where` and not a product, since masked samples may be infinite or NaN.
    kept_BCPS = torch.where(seen_BCP1 > 0, x_BCPS, 0.0)
    mean_BC11 = kept_BCPS.sum((2, 3), keepdim=True) / count_BC11
    d_BCPS = torch.where(seen_BCP1 > 0, x_BCPS - mean_BC11, 0.0)
    spread_BC11 = (d_BCPS.square().sum((2, 3), keepdim=True) / count_BC11).sqrt()
    # Rounding errors of an offset are no signal (see `network.normalise`).
    flat = spread_BC11 <= mean_BC11.abs() * (16 * torch.finfo(x_BCPS.dtype).eps)
    scale_BC11 = torch.where(flat, 0.0, 1.0 / torch.where(flat, 1.0, spread_BC11))
    return pick((d_BCPS * scale_BC11).flatten(1, 2), visible_BK)


def patch_targets(patches_BMS: Tensor) -> Tensor:
    """Scale each patch to zero mean and unit variance (He et al. 2022, sec. 4.1); a flat one becomes zeros."""
    mean_BM1 = patches_BMS.mean(2, keepdim=True)
    d_BMS = patches_BMS - mean_BM1
    spread_BM1 = d_BMS.square().mean(2, keepdim=True).sqrt()
    flat = spread_BM1 <= mean_BM1.abs() * (16 * torch.finfo(patches_BMS.dtype).eps)
    return d_BMS * torch.where(flat, 0.0, 1.0 / torch.where(flat, 1.0, spread_BM1))


def masked_loss(rebuilt_BMS: Tensor, masked_BMS: Tensor) -> Tensor:
    """Return the mean squared error (B,) over each window's masked patches, each of which is normalised by itself."""
    return (rebuilt_BMS - patch_targets(masked_BMS)).square().mean((1, 2))


class MaskedAutoencoder(nn.Module):
    """An encoder of the visible patches only, and a small decoder that reconstructs the masked ones.

    Parameters
    ----------
    encoder
        The network to be pretrained; its head is not used.
    width, depth
        Width and depth of the decoder.
    """

    def __init__(self, encoder: ViT, *, width: int = 32, depth: int = 1) -> None:
        super().__init__()
        heads = max(h for h in (1, 2, 4) if width % h == 0)
        self.encoder = encoder
        self.into = nn.Linear(encoder.width, width)
        self.mask_token = nn.Parameter(torch.randn(width) * 0.02)
        self.place = nn.Linear(encoder.width, width)
        self.blocks = nn.Sequential(*(ViTBlock(width, heads, 4, 0.0) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, encoder.patch)

    def latent(self, patches_BNS: Tensor, visible_BK: Tensor) -> Tensor:
        """Encode the visible patches (B, K, F) of windows as recorded."""
        encoder = self.encoder
        seen_BKS = normalise_visible(patches_BNS, visible_BK, encoder.n_channels)
        return encoder.encode(encoder.tokens(seen_BKS, visible_BK))

    def rebuild(self, patches_BNS: Tensor, visible_BK: Tensor, masked_BM: Tensor) -> Tensor:
        """Reconstruct the masked patches (B, M, S), each up to its own mean and scale."""
        places_NF = self.place(self.encoder.places(self.encoder.n_patches).flatten(0, 1))
        seen_BKF = self.into(self.latent(patches_BNS, visible_BK)) + places_NF[visible_BK]
        hidden_BMF = self.mask_token + places_NF[masked_BM]
        both_BNF = self.norm(apply_layers(self.blocks, torch.cat((seen_BKF, hidden_BMF), 1), None))
        out: Tensor = self.out(both_BNF[:, visible_BK.shape[1] :])
        return out

    def forward(self, x_BCT: Tensor, visible_BK: Tensor, masked_BM: Tensor) -> Tensor:
        """Return each window's loss (B,)."""
        patches_BNS = self.encoder.cut(x_BCT)
        return masked_loss(self.rebuild(patches_BNS, visible_BK, masked_BM), pick(patches_BNS, masked_BM))


class MaeObjective:
    """The objective of a masked autoencoder.

    Parameters
    ----------
    encoder
        The network to be pretrained.
    config
        The fraction of patches that are masked, and the decoder's size.
    """

    def __init__(self, encoder: ViT, config: PretrainConfig) -> None:
        self.n_tokens, self.mask = encoder.n_tokens, config.mask
        self.module = MaskedAutoencoder(encoder, width=config.decoder_width, depth=config.decoder_depth)

    def draw(self, n: int, seed: int) -> tuple[Tensor, ...]:
        """Draw visible and masked patches of each window; see `draw_masks`."""
        return draw_masks(n, self.n_tokens, self.mask, torch.Generator().manual_seed(seed))

    def gradients(self, passes: Passes, loader: WindowLoader, batch: PretrainBatch) -> Tensor:
        """Add the gradients of a batch; return this worker's part of the mean loss."""
        x_BCT = loader.gather(batch.windows)
        total = torch.zeros((), device=loader.device)
        for rows, context in passes.parts(len(x_BCT)):
            with context:
                losses_B = passes.parallel(x_BCT[rows], *(numbers[rows] for numbers in batch.drawn))
                loss = losses_B.sum() / len(batch.batch)
                (loss * passes.world).backward()  # DistributedDataParallel averages over the workers
            total += loss.detach()
        return total
