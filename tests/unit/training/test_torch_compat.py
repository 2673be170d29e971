"""Private API of torch: it is there, and it is used in one place only."""

from __future__ import annotations

import re
from pathlib import Path

import torch

import raypipe
from raypipe.training import torch_compat

PACKAGE = Path(raypipe.__file__).parent


def test_every_symbol_is_there() -> None:
    assert issubclass(torch.nn.BatchNorm1d, torch_compat.BatchNorm)
    assert issubclass(torch.nn.InstanceNorm1d, torch_compat.InstanceNorm)
    functions = [name for name in vars(torch_compat) if name.startswith(("foreach_", "adamw_"))]
    assert len(functions) == 12 and all(callable(getattr(torch_compat, name)) for name in functions)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    assert torch_compat.GROWTH_TRACKER in scaler.state_dict()
    assert hasattr(torch.nn.Module, "_apply")  # overridden by shipped networks


def test_an_overflow_lowers_the_scale_and_resets_the_count() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=100)
    scaler.scale(torch.ones(1))
    for _ in range(3):
        scaler.load_state_dict(scaler.state_dict() | {torch_compat.GROWTH_TRACKER: 5})
        torch_compat.lower_scale(scaler)
    assert scaler.get_scale() == 1.0 and scaler.state_dict()[torch_compat.GROWTH_TRACKER] == 0


def test_no_other_module_uses_private_api_of_torch() -> None:
    private = re.compile(r"\btorch(?:\.\w+)*\._[a-z]|from torch[\w.]* import _")
    users = {path.name for path in PACKAGE.rglob("*.py") if private.search(path.read_text(encoding="utf-8"))}
    assert users == {"torch_compat.py"}
