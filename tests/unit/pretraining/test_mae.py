from __future__ import annotations

import pytest
import torch

from raypipe.models.vit import ViT
from raypipe.pretraining.mae import MaskedAutoencoder, draw_masks, masked_loss, patch_targets, pick


def autoencoder() -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder(ViT(3, 40, 1, patch=10, width=16, depth=2, heads=2, dropout=0.0), width=8)


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(1)
    x_BCT = torch.randn(4, 3, 40, generator=generator) * 30 + 5
    return x_BCT, *draw_masks(4, 12, 0.5, generator)


def test_every_patch_is_either_visible_or_masked(drawn):
    _, visible_BK, masked_BM = drawn
    assert visible_BK.shape == masked_BM.shape == (4, 6)
    assert (torch.cat((visible_BK, masked_BM), 1).sort(1).values == torch.arange(12)).all()
    assert len({tuple(row) for row in masked_BM.tolist()}) > 1


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_something_is_always_visible_and_something_masked(share):
    visible, masked = draw_masks(2, 5, share, torch.Generator())
    assert visible.shape[1] >= 1
    assert masked.shape[1] >= 1


@pytest.mark.parametrize("stand_in", [0.0, 1e6, float("nan"), float("inf")])
def test_nothing_of_masked_patches_reaches_the_encoder(drawn, stand_in):
    x_BCT, visible_BK, masked_BM = drawn
    model = autoencoder()
    patches_BNS = model.encoder.cut(x_BCT)
    changed_BNS = patches_BNS.scatter(1, masked_BM[..., None].expand(-1, -1, 10), stand_in)
    assert torch.equal(model.latent(patches_BNS, visible_BK), model.latent(changed_BNS, visible_BK))
    before = model.rebuild(patches_BNS, visible_BK, masked_BM)
    assert torch.equal(before, model.rebuild(changed_BNS, visible_BK, masked_BM))


def test_visible_patches_do_reach_it(drawn):
    x_BCT, visible_BK, masked_BM = drawn
    model = autoencoder()
    patches_BNS = model.encoder.cut(x_BCT)
    changed_BNS = patches_BNS.clone()
    changed_BNS[0, visible_BK[0, 0]] += torch.randn(10) * 50
    before, after = (model.rebuild(p, visible_BK, masked_BM) for p in (patches_BNS, changed_BNS))
    assert not torch.allclose(before[0], after[0])
    assert torch.equal(before[1:], after[1:])


def test_the_loss_is_of_masked_patches_each_normalised_by_itself(drawn):
    x_BCT, _, masked_BM = drawn
    patches_BNS = autoencoder().encoder.cut(x_BCT)
    rebuilt_BMS = torch.randn(4, 6, 10)
    truth = []
    for b in range(4):
        errors = []
        for m in range(6):
            patch = patches_BNS[b, masked_BM[b, m]].double()
            wanted = (patch - patch.mean()) / patch.std(correction=0)
            errors.append((rebuilt_BMS[b, m].double() - wanted).square().mean())
        truth.append(torch.stack(errors).mean())
    found = masked_loss(rebuilt_BMS, pick(patches_BNS, masked_BM))
    torch.testing.assert_close(found.double(), torch.stack(truth), rtol=1e-5, atol=1e-6)


def test_targets_do_not_depend_on_the_scale_of_a_patch_and_a_flat_one_is_zeros():
    patch = torch.randn(1, 2, 10)
    torch.testing.assert_close(patch_targets(patch), patch_targets(patch * 1e-6 + 1e-6), rtol=1e-3, atol=1e-3)
    assert torch.equal(patch_targets(torch.full((1, 1, 10), 0.1)), torch.zeros(1, 1, 10))


def test_flat_channels_give_finite_gradients(drawn):
    x_BCT, visible_BK, masked_BM = drawn
    x_BCT[:, 1] = 3.3
    model = autoencoder()
    model(x_BCT, visible_BK, masked_BM).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
