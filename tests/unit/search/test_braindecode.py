"""Networks of braindecode are users' own: tried, and shipped as programs. Skipped where it is not installed."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from raypipe.core import own_code
from raypipe.core.errors import UserError
from raypipe.core.parameters import parse_config
from raypipe.models.from_config import build_model
from raypipe.packaging.programs import Unexportable, export_program, ship_networks
from raypipe.search.own_networks import check_network

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("braindecode") is None, reason="braindecode is not installed: make zoo"
    ),
    pytest.mark.filterwarnings("ignore"),
]

SHAPE = (5, 200, 2, 100.0)


def config_of(name, **args):
    name = f"braindecode.models:{name}"
    return parse_config({"model": {"name": name, "code": own_code.code_of(name, {}, "x"), "args": args}}).model


def built(config):
    torch.manual_seed(0)
    n_channels, n_times, n_outputs, sfreq = SHAPE
    made = build_model(config, n_channels=n_channels, n_times=n_times, n_outputs=n_outputs, sfreq=sfreq)
    return made.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("name", "args"),
    [("EEGNeX", {"filter_1": 4}), ("EEGNet", {}), ("ShallowFBCSPNet", {"n_filters_time": 8}), ("TSception", {})],
)
def test_a_network_is_tried_and_shipped_as_a_program(name, args):
    config = config_of(name, **args)
    check_network(config, 8, SHAPE)
    network = built(config)
    member = {"model": config.model_dump(), "weight": 1.0, "target": [0.0, 1.0]}
    spec = {"n_channels": SHAPE[0], "n_times": SHAPE[1], "n_outputs": SHAPE[2], "sfreq": SHAPE[3], "members": [member]}
    state = {f"members.0.{key}": tensor for key, tensor in network.state_dict().items()}
    spec, _, left = ship_networks(spec, state)  # compares the program with the network
    assert left == {} and spec["members"][0]["program"] == "0"


def test_a_network_that_cannot_be_traced_and_one_that_needs_torchaudio():
    with pytest.raises(Unexportable, match=r"torch.export"):
        export_program(built(config_of("ATCNet")))
    if importlib.util.find_spec("torchaudio") is None:
        with pytest.raises(UserError, match=r"EEGSimpleConv: .*it needs torchaudio.transforms.Resample"):
            check_network(config_of("EEGSimpleConv"), 8, SHAPE)
