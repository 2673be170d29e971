"""Networks built from configurations."""

from __future__ import annotations

import pytest
import torch

from raypipe.core.errors import UserError
from raypipe.core.network_config import ConformerConfig
from raypipe.models.conformer import Conformer
from raypipe.models.from_config import build_model
from raypipe.models.network import Dropout


def test_build_model_follows_its_configuration() -> None:
    cfg = ConformerConfig(filters=8, heads=2, depth=1, hidden=16, dropout=0.25, features="log-power", norm="window")
    model = build_model(cfg, n_channels=4, n_times=100, n_outputs=2, sfreq=100)
    assert isinstance(model, Conformer)
    assert (model.n_tokens, model.summary, model.norm, len(model.blocks)) == (11, "log-power", "window", 1)
    assert model.stem.kernel == 10
    assert [m.p for m in model.head if isinstance(m, Dropout)] == pytest.approx([0.25, 0.15])
    assert model.train()(torch.randn(3, 4, 100)).shape == (3, 2)


def test_windows_too_short_for_a_network_give_one_line() -> None:
    with pytest.raises(UserError, match=r"18 samples \(0.18 s at 100 Hz\).*19 samples or more$"):
        build_model(ConformerConfig(kernels="short"), n_channels=4, n_times=18, n_outputs=1, sfreq=100)
