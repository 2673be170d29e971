"""AdamW without torch's compiler."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import torch

from raypipe.training.optim import AdamW

ROOT = Path(__file__).parents[3]

EPOCH = """
import sys
import numpy as np
from raypipe.training.stacked_trainer import StackedTrainer
from raypipe.training.trainer import FoldTrainer
from tests.support.toys import ToyWindows, tiny

folds = [
    FoldTrainer(tiny(sam__name="sam", optim__ema=0.9), ToyWindows(), np.arange(40), np.arange(40, 64), fold=fold)
    for fold in range(2)
]
for fold in folds:
    fold.run_epoch()
    fold.load_state_dict(fold.state_dict())
StackedTrainer(folds).run_epoch()
print([name for name in ("torch._dynamo", "sympy", "sklearn") if name in sys.modules])
"""


def test_the_same_path_as_torchs_to_the_bit() -> None:
    torch.manual_seed(0)
    models = [torch.nn.Linear(5, 3)]
    models.append(copy.deepcopy(models[0]))
    ours = AdamW(models[0].parameters(), lr=1e-2, betas=(0.8, 0.9), weight_decay=0.1)
    theirs = torch.optim.AdamW(models[1].parameters(), lr=1e-2, betas=(0.8, 0.9), weight_decay=0.1, fused=True)
    for step in range(5):
        for model, optimizer in zip(models, (ours, theirs), strict=True):
            optimizer.zero_grad()
            model(torch.full((2, 5), float(step))).square().sum().backward()
            optimizer.step()
        ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        assert a.equal(b) and a.requires_grad


def test_gradients_that_lie_otherwise_in_memory_are_the_same_gradients() -> None:
    """torch's fused kernel takes the third number in memory for the third of the row."""
    torch.manual_seed(0)
    a, b = (torch.nn.Parameter(torch.zeros(3, 4, dtype=torch.float64)) for _ in range(2))
    gradient = torch.randn(4, 3, dtype=torch.float64).t()
    a.grad, b.grad = gradient, gradient.contiguous()
    for parameter in (a, b):
        AdamW([parameter], lr=1e-2).step()
    assert a.equal(b)
    torch.testing.assert_close(a.detach(), -1e-2 * gradient.sign(), rtol=1e-4, atol=0)


def test_training_imports_no_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", EPOCH], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
