"""Normalisation of windows and dropout."""

from __future__ import annotations

import pytest
import torch

from raypipe.models.network import NORMS, Dropout, normalise
from tests.unit.models.test_conformer import small


@pytest.mark.parametrize("norm", ["channel", "window", "robust"])
@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_outputs_do_not_depend_on_the_unit(norm: str, unit: float) -> None:
    model = small(norm=norm).eval()
    x_BCT = torch.randn(4, 6, 50) * torch.logspace(-1, 1, 6)[:, None] + 3.0
    torch.testing.assert_close(model(x_BCT * unit), model(x_BCT), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_flat_channels_and_flat_windows_give_finite_outputs_and_gradients(norm: str, offset: float) -> None:
    x_BCT = 1e-5 * torch.randn(4, 6, 50)
    x_BCT[:, 2] = offset
    x_BCT[1] = offset
    x_BCT[2] = 0.0
    x_BCT.requires_grad_()
    z_BCT = normalise(x_BCT, norm)
    if norm != "none":
        assert (z_BCT[:, 2] == 0).all() and (z_BCT[1:3] == 0).all() and z_BCT[0, 0].abs().max() > 0
    model = small(norm=norm)
    model(x_BCT).sum().backward()
    assert x_BCT.grad is not None and x_BCT.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_each_norm_removes_its_mean_and_scale() -> None:
    torch.manual_seed(0)
    x_BCT = torch.randn(2, 4, 999, dtype=torch.float64) * torch.tensor([1.0, 2.0, 3.0, 1e-9])[:, None] + 5.0
    channel = normalise(x_BCT, "channel")
    assert channel[:, :3].mean(-1).abs().max() < 1e-12
    assert (channel[:, :3].std(-1, correction=0) - 1).abs().max() < 1e-12
    assert channel[:, 3].abs().max() < 1e-4  # quiet, but not flat: not scaled up to the size of the others
    window = normalise(x_BCT, "window")
    assert (window.square().mean((1, 2)) - 1).abs().max() < 1e-12
    ratio = window.std(-1)[:, 2] / window.std(-1)[:, 0]
    torch.testing.assert_close(ratio, x_BCT.std(-1)[:, 2] / x_BCT.std(-1)[:, 0])
    x_BCT[:, 0, 7] = 1e9
    robust = normalise(x_BCT, "robust")
    assert robust[:, 0, 7].eq(15.0).all()
    assert (robust[:, :3].abs().median(-1).values * 1.4826 - 1).abs().max() < 1e-3
    assert normalise(x_BCT, "none") is x_BCT
    with pytest.raises(ValueError, match="norm"):
        normalise(x_BCT, "layer")


def test_robust_uses_the_standard_deviation_if_most_samples_are_equal() -> None:
    x_BCT = torch.zeros(1, 1, 21)
    x_BCT[..., :5] = 1.0
    z_BCT = normalise(x_BCT, "robust")
    assert z_BCT.isfinite().all() and 0 < z_BCT.max() < 15


def test_dropout_zeroes_its_rate_and_scales_up_the_rest() -> None:
    torch.manual_seed(0)
    drop, x = Dropout(0.3), torch.ones(200_000, requires_grad=True)
    out = drop(x)
    out.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, out.detach())
    assert out.detach().unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert abs((out == 0).float().mean() - 0.3) < 0.01
    assert drop.eval()(x) is x
