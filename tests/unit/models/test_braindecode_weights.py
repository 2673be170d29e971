"""Conversion of weights to and from braindecode's names."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from benchmarks import peers
from raypipe.models.braindecode_weights import weights_from_braindecode, weights_to_braindecode
from raypipe.models.conformer import Conformer
from raypipe.models.network import normalise


def test_weights_converted_there_and_back_are_equal() -> None:
    state = Conformer(5, 120, 2, filters=8, heads=2, depth=2).state_dict()
    back = weights_from_braindecode(weights_to_braindecode(state))
    assert back.keys() == state.keys()
    assert all(back[name].equal(state[name]) for name in state)


def test_a_tensor_of_another_network_is_named() -> None:
    with pytest.raises(ValueError, match=r"'clshead\.0\.weight' is no tensor"):
        weights_from_braindecode({"clshead.0.weight": torch.zeros(1)})


@pytest.mark.skipif(not find_spec("braindecode"), reason="braindecode is not installed: make zoo")
def test_both_networks_give_equal_outputs() -> None:
    theirs = peers.conformer(7, 200).double().eval()
    ours = Conformer(7, 200, 1).double().eval()
    theirs.load_state_dict(weights_to_braindecode(ours.state_dict()))
    x_BCT = torch.randn(3, 7, 200, dtype=torch.float64)
    torch.testing.assert_close(theirs(normalise(x_BCT, "channel")), ours(x_BCT), rtol=1e-10, atol=1e-10)
