"""ShallowFBCSPNet: equal to its layers one after the other, and to braindecode's."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from benchmarks import peers
from raypipe.core.errors import UserError
from raypipe.core.network_config import ShallowConfig
from raypipe.models.from_config import build_model, check_sizes
from raypipe.models.network import normalise
from raypipe.models.shallow import Shallow
from tests.unit.models.plain_networks import PlainShallow, copy_in_order

SIZES = {"filters": 6, "kernel": 7, "pool": 20, "stride": 5}
UNUSED = ("stem.spatial.bias",)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("algorithm", ["fourier", "direct", "reference"])
@pytest.mark.parametrize("training", [False, True])
def test_outputs_are_those_of_the_layers_one_by_one(algorithm, training):
    ours = Shallow(5, 90, 3, dropout=0.0, **SIZES).double().train(training)
    plain = PlainShallow(5, 90, 3, p=0.0, **SIZES).double().train(training)
    copy_in_order(ours, plain, without=UNUSED)
    ours.use_stem(algorithm)
    x_BCT = torch.randn(6, 5, 90, dtype=torch.float64)
    mine, theirs = ours(x_BCT), plain(normalise(x_BCT, "channel"))
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    mine.square().sum().backward()
    theirs.square().sum().backward()
    found = [p for p in ours.parameters() if p.requires_grad]
    for one, other in zip(found, (p for n, p in plain.named_parameters() if n != "time.bias"), strict=True):
        torch.testing.assert_close(one.grad, other.grad.view_as(one), rtol=1e-7, atol=1e-9)


@pytest.mark.skipif(not find_spec("braindecode"), reason="braindecode is not installed: make zoo")
@pytest.mark.parametrize("training", [False, True])
def test_outputs_are_those_of_braindecode(training):
    theirs = peers.braindecode_models().ShallowFBCSPNet(n_chans=7, n_outputs=3, n_times=200, drop_prob=0.0)
    ours = Shallow(7, 200, 3, dropout=0.0)
    state, own = theirs.state_dict(), ours.state_dict()
    first = "conv_time_spat."
    state[f"{first}conv_time.weight"] = own["stem.temporal.weight"].transpose(2, 3)
    state[f"{first}conv_time.bias"] = own["stem.temporal.bias"]
    state[f"{first}conv_spat.weight"] = own["stem.spatial.weight"].transpose(2, 3)
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        state[f"bnorm.{name}"] = own[f"batch_norm.{name}"]
    for name in ("weight", "bias"):
        key = f"final_layer.conv_classifier.{name}"
        state[key] = own[f"head.{name}"].view(state[key].shape)
    theirs.load_state_dict(state)
    ours, theirs = ours.double().train(training), theirs.double().train(training)
    x_BCT = torch.randn(5, 7, 200, dtype=torch.float64)
    torch.testing.assert_close(ours(x_BCT), theirs(normalise(x_BCT, "channel")), rtol=1e-9, atol=1e-9)


def test_masks_are_those_of_the_plan():
    model = Shallow(5, 90, 1, dropout=0.5, **SIZES).double()
    x_BCT = torch.randn(4, 5, 90, dtype=torch.float64)
    ((size, rate),) = model.dropout_plan(4)
    assert (size, rate) == (4 * 6 * 13, 0.5) and not Shallow(5, 90, 1, dropout=0.0, **SIZES).dropout_plan(4)
    with torch.no_grad():
        model.head.bias.fill_(0.7)
    out = model(x_BCT, dropout_M=torch.zeros(size, dtype=torch.float64))
    torch.testing.assert_close(out, torch.full((4, 1), 0.7, dtype=torch.float64))


@pytest.mark.parametrize("options", [{"bins": 8}, {"variance": True}, {}])
def test_shapes_in_training_and_evaluation(options):
    model = Shallow(5, 90, 1, **SIZES, **options)
    assert model.train()(torch.randn(4, 5, 90)).shape == (4, options.get("bins") or 1 + bool(options))
    assert model.eval()(torch.randn(4, 5, 90)).shape == (4, 1 + bool(options))


def test_windows_too_short_are_one_line():
    with pytest.raises(
        UserError, match=r"too short for the shallow's kernel of 10 and pool of 10 .* 19 samples or more"
    ):
        build_model(ShallowConfig(), n_channels=4, n_times=18, n_outputs=2, sfreq=100)
    with pytest.raises(ValueError, match="it needs 26"):
        Shallow(3, 25, 1, **SIZES)
    assert check_sizes(ShallowConfig(), n_channels=4, n_times=200, n_outputs=2, sfreq=100) == 4 * 202 * 10
