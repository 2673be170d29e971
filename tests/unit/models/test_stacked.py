from __future__ import annotations

import copy

import pytest
import torch

from raypipe.core.network_config import ConformerConfig
from raypipe.models.ensemble import EnsembleModule
from raypipe.models.stacked import MAX_BATCH

SHAPE = {"n_channels": 3, "n_times": 80, "n_outputs": 2, "sfreq": 50.0}
SMALL = {"filters": 6, "heads": 3, "hidden": 8, "depth": 1, "kernels": "short"}


def module(*models, kind="classification", folds=2, rule=None) -> EnsembleModule:
    members = [
        {"trial": t, "fold": f, "weight": 1 / (len(models) * folds), "centre": 0.5, "scale": 2.0, "model": m}
        for t, m in enumerate(models)
        for f in range(folds)
    ]
    torch.manual_seed(3)
    made = EnsembleModule(SHAPE | {"kind": kind, "members": members} | ({"rule": rule} if rule else {}))
    for network in made.members:  # statistics as after training
        network.batch_norm.running_mean.normal_()
        network.batch_norm.running_var.uniform_(0.5, 2.0)
    return made.eval()


def config(**changes):
    return ConformerConfig(**(SMALL | changes)).model_dump(mode="json")


MIXED = [config(), config(depth=0), config(features="log-power"), config(norm="window"), config(heads=2), config()]


def looped(made: EnsembleModule, x_BCT):
    raws = torch.stack([network(x_BCT) for network in made.members])
    return raws.softmax(2)


@torch.no_grad()
def test_stacked_outputs_equal_those_of_each_network():
    made = module(*MIXED)
    x_BCT = torch.randn(MAX_BATCH, 3, 80) * 20
    expected = looped(made, x_BCT)
    torch.testing.assert_close(made.predict_members(x_BCT)[0], expected, rtol=1e-5, atol=1e-6)
    assert len(made.stacks._stacks) == 5  # one for each architecture
    for batch in (1, 3):
        torch.testing.assert_close(made.predict_members(x_BCT[:batch])[0], expected[:, :batch], rtol=1e-5, atol=1e-6)
    large = torch.cat([x_BCT, x_BCT])
    torch.testing.assert_close(made.predict_members(large)[0][:, :MAX_BATCH], expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_stacks_are_rebuilt_after_weights_or_dtype_change():
    made, other = module(config(), config()), module(config(), config())
    x_BCT = torch.randn(2, 3, 80)
    before = made(x_BCT)
    state = {name: tensor + 0.1 for name, tensor in other.state_dict().items()}
    made.load_state_dict(state)
    assert not torch.equal(made(x_BCT), before)
    torch.testing.assert_close(made.predict_members(x_BCT)[0], looped(made, x_BCT), rtol=1e-5, atol=1e-6)
    moved = copy.deepcopy(made).double()
    torch.testing.assert_close(moved(x_BCT.double()).float(), made(x_BCT), rtol=1e-5, atol=1e-6)


def test_networks_are_not_stacked_when_gradients_are_needed():
    made = module(config(), config())
    assert made(torch.randn(1, 3, 80)).requires_grad
    assert made.stacks._stacks is None


@torch.no_grad()
@pytest.mark.parametrize("weights", [[0.25, 0.75], [0.3, 0.3]])
def test_a_rule_is_applied_fold_by_fold(weights):
    rule = {"kind": "linear", "weights": weights, "intercept": 0.5}
    made = module(config(), config(), kind="classification", folds=3, rule=rule)
    x_BCT = torch.randn(4, 3, 80)
    outputs = looped(made, x_BCT)
    expected = weights[0] * outputs[:3].mean(0) + weights[1] * outputs[3:].mean(0) + 0.5
    torch.testing.assert_close(made(x_BCT), expected, rtol=1e-5, atol=1e-6)


def test_members_that_are_not_all_folds_of_each_trial_are_refused():
    spec = SHAPE | {"kind": "classification", "rule": {"kind": "linear", "weights": [1.0], "intercept": 0.0}}
    some = [{"trial": t, "fold": f, "weight": 0.3, "model": config()} for t, f in ((0, 0), (0, 1), (1, 0))]
    with pytest.raises(ValueError, match="3 members are not 2 folds"):
        EnsembleModule(spec | {"members": [m | {"centre": 0.0, "scale": 1.0} for m in some]})
