"""EEGNet: equal to its layers one after the other, and to braindecode's; its constraints."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

from benchmarks import peers
from raypipe.core.errors import UserError
from raypipe.core.network_config import EegnetConfig
from raypipe.ensembles.soup import update_batchnorm
from raypipe.models.eegnet import EEGNet, MomentNorm, lag_moments
from raypipe.models.from_config import build_model, check_sizes
from raypipe.models.network import DropoutMasks, normalise
from raypipe.models.sizes import eegnet_sizes, shortest_window
from raypipe.training.step import frozen_statistics
from tests.unit.models.plain_networks import PlainEEGNet, copy_in_order


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def both(channels=5, times=90, outputs=3, *, kernel=16, pool=4, p=0.0, **options):
    """Return our network and its layers one by one, with equal weights, in float64."""
    ours = EEGNet(channels, times, outputs, kernel=kernel, pool=pool, filters=4, dropout=p, **options).double()
    with torch.no_grad():
        for name, tensor in ours.state_dict().items():
            if "norm" in name and tensor.is_floating_point():
                tensor.add_(0.3 * torch.rand_like(tensor))
    plain = PlainEEGNet(channels, times, outputs, f=4, d=2, kernel=kernel, pool=pool, p=p).double()
    copy_in_order(ours, plain)
    return ours, plain


@given(st.integers(1, 12), st.integers(12, 20), st.integers(1, 3), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_moments_are_those_of_the_padded_windows(kernel, n_times, channels, seed):
    x_BCT = torch.randn(2, channels, n_times, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 1.0
    windows_XK = F.pad(x_BCT, (kernel // 2, kernel // 2)).unfold(2, kernel, 1).flatten(0, 2)
    found = lag_moments(x_BCT, kernel)
    assert found.n == len(windows_XK)
    torch.testing.assert_close(found.mean, windows_XK.mean(0))
    torch.testing.assert_close(found.second, windows_XK.T @ windows_XK / len(windows_XK))


@pytest.mark.parametrize("kernel", [15, 16])
@pytest.mark.parametrize("norm", ["channel", "none"])
def test_outputs_gradients_and_statistics_are_those_of_the_layers_one_by_one(kernel, norm):
    ours, plain = both(kernel=kernel, norm=norm)
    for _ in range(2):
        x_BCT = torch.randn(6, 5, 90, dtype=torch.float64) + 0.5
        mine, theirs = ours(x_BCT), plain(normalise(x_BCT, norm))
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
        mine.square().sum().backward()
        theirs.square().sum().backward()
    for (name, one), other in zip(ours.named_parameters(), plain.parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(one.grad, other.grad.view_as(one), rtol=1e-7, atol=1e-9, msg=name)
        else:
            assert name == "temporal_norm.bias" and other.grad.abs().max() < 1e-12
    for (name, one), other in zip(ours.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9, msg=name)
    torch.testing.assert_close(ours.eval()(x_BCT), plain.eval()(normalise(x_BCT, norm)), rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(not find_spec("braindecode"), reason="braindecode is not installed: make zoo")
@pytest.mark.parametrize("training", [False, True])
def test_outputs_are_those_of_braindecode(training):
    theirs = peers.braindecode_models().EEGNet(
        n_chans=7, n_outputs=3, n_times=200, drop_prob=0.0, final_layer_with_constraint=True
    )
    ours = EEGNet(7, 200, 3, dropout=0.0)
    with torch.no_grad():
        ours.spatial.weight.mul_(3.0)  # the constraint decides
        ours.head.weight.mul_(3.0)
    ours.constrain()
    names = theirs.state_dict()
    values = iter([tensor.clone() for tensor in ours.state_dict().values()])
    order = ("conv_temporal", "bnorm_temporal", "conv_spatial", "bnorm_1", "conv_separable_depth")
    order += ("conv_separable_point", "bnorm_2", "final_layer")
    state = {}
    for part in order:
        mine = [name for name in names if name.startswith(part)]
        # A parametrized weight comes after the bias.
        mine.sort(key=lambda name: ("weight" not in name, list(names).index(name)))
        state |= {name: next(values).view(names[name].shape) for name in mine}
    theirs.load_state_dict(state)
    ours, theirs = ours.double().train(training), theirs.double().train(training)
    x_BCT = torch.randn(5, 7, 200, dtype=torch.float64)
    torch.testing.assert_close(ours(x_BCT), theirs(normalise(x_BCT, "channel")), rtol=1e-6, atol=1e-6)


def test_weights_stay_within_their_norms_and_inside_they_are_left_alone():
    model = EEGNet(5, 90, 2)
    assert model.spatial.weight.flatten(1).norm(dim=1).max() <= 1.0 + 1e-6
    with torch.no_grad():
        model.spatial.weight.copy_(
            torch.randn_like(model.spatial.weight) * torch.linspace(0.01, 3, 16)[:, None, None, None]
        )
        model.head.weight.copy_(torch.randn_like(model.head.weight))
    before = model.spatial.weight.clone()
    model.constrain()
    norm_G, old_G = model.spatial.weight.flatten(1).norm(dim=1), before.flatten(1).norm(dim=1)
    torch.testing.assert_close(norm_G, old_G.clamp_max(1.0), rtol=1e-6, atol=0)
    assert model.spatial.weight[old_G < 1.0].equal(before[old_G < 1.0]) and (old_G < 1.0).any()
    torch.testing.assert_close(model.head.weight.norm(dim=1), torch.full((2,), 0.25), rtol=1e-6, atol=0)
    free = EEGNet(5, 90, 2, spatial_max_norm=0.0, head_max_norm=0.0)
    with torch.no_grad():
        free.head.weight.fill_(1.0)
    free.constrain()
    assert (free.head.weight == 1.0).all()


def test_masks_are_taken_in_the_order_of_the_plan():
    ours, plain = both(p=0.5)
    plan = ours.dropout_plan(6)
    masks_M = torch.cat([(torch.rand(n) >= p).double() / (1 - p) for n, p in plan])
    masks = iter(masks_M.split([n for n, _ in plan]))
    for part in (plain.first, plain.second):
        place = next(i for i, layer in enumerate(part) if isinstance(layer, torch.nn.Dropout))
        part[place] = Multiply(next(masks))
    x_BCT = torch.randn(6, 5, 90, dtype=torch.float64)
    whole = ours(x_BCT, dropout_M=masks_M)
    torch.testing.assert_close(whole, plain(normalise(x_BCT, "channel")), rtol=1e-9, atol=1e-9)
    taken = DropoutMasks(masks_M)
    cut = ours.front(x_BCT, masks=taken)
    parts = [ours.back(cut[i : i + 4], taken.of_part(6, i)) for i in (0, 4)]
    torch.testing.assert_close(torch.cat(parts), whole)


class Multiply(torch.nn.Module):
    def __init__(self, mask_M):
        super().__init__()
        self.mask_M = mask_M

    def forward(self, x):
        return x * self.mask_M.view_as(x)


def test_a_second_pass_changes_no_statistics_and_a_soup_computes_them_anew():
    ours, plain = both()
    x_BCT = torch.randn(6, 5, 90, dtype=torch.float64)
    before = {name: tensor.clone() for name, tensor in ours.named_buffers()}
    with frozen_statistics([ours]):
        ours(x_BCT)
    assert all(tensor.equal(before[name]) for name, tensor in ours.named_buffers())
    batches = [torch.randn(8, 5, 90, dtype=torch.float64) for _ in range(3)]
    assert update_batchnorm(ours.eval(), batches)
    assert update_batchnorm(plain.eval(), [normalise(batch, "channel") for batch in batches])
    for one, other in zip(ours.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert isinstance(ours.temporal_norm, MomentNorm) and ours.temporal_norm.num_batches_tracked == 3


@pytest.mark.parametrize("options", [{"bins": 8}, {"variance": True}, {}])
def test_shapes_in_training_and_evaluation(options):
    model = EEGNet(5, 90, 1, **options)
    assert model.train()(torch.randn(4, 5, 90)).shape == (4, options.get("bins") or 1 + bool(options))
    out = model.eval()(torch.randn(4, 5, 90))
    assert out.shape == (4, 1 + bool(options)) and (not options or (out[:, 1] > 0).all())


def test_sizes_follow_the_sampling_rate():
    assert eegnet_sizes(128, "rate") == eegnet_sizes(500, "paper") == (64, 4)
    assert eegnet_sizes(100, "rate") == (50, 3) and eegnet_sizes(1, "rate") == (1, 1)
    model = build_model(EegnetConfig(), n_channels=4, n_times=200, n_outputs=2, sfreq=100)
    assert (model.kernel, model.pool.kernel_size) == (50, (3,))


@pytest.mark.parametrize(("kernel", "pool"), [(3, 4), (64, 4), (50, 3), (1, 1)])
def test_the_shortest_window_works_and_a_shorter_one_is_refused(kernel, pool):
    shortest = shortest_window(kernel, pool)
    assert EEGNet(3, shortest, 2, kernel=kernel, pool=pool)(torch.randn(2, 3, shortest)).shape == (2, 2)
    with pytest.raises(ValueError, match=f"it needs {shortest}"):
        EEGNet(3, shortest - 1, 2, kernel=kernel, pool=pool)


def test_windows_and_sizes_that_do_not_fit_are_one_line():
    with pytest.raises(UserError, match=r"20 samples \(0.2 s at 100 Hz\) are too short for the eegnet's pools: .* 21"):
        build_model(EegnetConfig(), n_channels=4, n_times=20, n_outputs=2, sfreq=100)
    cut = build_model(EegnetConfig(), n_channels=4, n_times=40, n_outputs=2, sfreq=100)
    assert cut.kernel == 40 and cut(torch.randn(3, 4, 40)).shape == (3, 2)
    with pytest.raises(ValueError, match="model/spatial 1000: at most"):
        check_sizes(EegnetConfig(filters=10_000, spatial=1_000), n_channels=4, n_times=200, n_outputs=2, sfreq=100)
    assert check_sizes(EegnetConfig(), n_channels=4, n_times=200, n_outputs=2, sfreq=100) == 0
