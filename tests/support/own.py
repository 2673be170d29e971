"""A user's network, loss and metric in a file, and a search space that names them."""

from __future__ import annotations

from pathlib import Path

NET = '''"""A network of one's own: one convolution, BatchNorm, log-power, dropout."""
from torch import nn


class Net(nn.Module):
    def __init__(self, n_channels, n_times, n_outputs, sfreq, width=4, dropout=0.25):
        super().__init__()
        self.conv = nn.Conv1d(n_channels, width, max(2, round(0.1 * sfreq)))
        self.norm = nn.BatchNorm1d(width)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(2 * width, n_outputs)

    def forward(self, x):
        y = self.norm(self.conv(x))
        parts = y.relu().mean(-1), y.square().mean(-1).clamp_min(1e-6).log()
        return self.head(self.drop(nn.functional.elu(torch.cat(parts, 1))))
'''.replace("from torch import nn\n", "import torch\nfrom torch import nn\n")

SPACE = '''"""A network of one's own."""
START = [{"optim/lr": 0.003, "model/args/width": 4, "sam/name": "sam"}]
def space(trial):
    trial.suggest_float("optim/lr", 1e-3, 1e-2, log=True)
    trial.suggest_categorical("model/args/width", [4, 8])
    trial.suggest_categorical("sam/name", ["none", "sam"])
    return {"model/name": "my_nets.py:Net", "epochs": 4, "batch_size": 8, "patience": 4}
'''


def write_space(folder: Path, net: str = NET, space: str = SPACE) -> Path:
    """Write a network and a search space that names it; return the space's file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "my_nets.py").write_text(net)
    (folder / "space.py").write_text(space)
    return folder / "space.py"


FUNCTIONS = '''"""A loss and an augmentation of one's own."""
import torch


def quantile(outputs, target, q=0.5):
    error = target - outputs
    return torch.maximum(q * error, (q - 1) * error).mean()


def weighted(outputs, target, class_weights):
    return torch.nn.functional.cross_entropy(outputs, target, weight=class_weights)


def reverse(x, rng, share=0.5):
    reversed_B = torch.from_numpy(rng.random(len(x)) < share)
    return torch.where(reversed_B[:, None, None], x.flip(2), x)
'''
"""A file with a loss of values, one of classes, and an augmentation."""

FUNCTIONS_SPACE = '''"""A loss and an augmentation of one's own."""
START = [{"loss/args/q": 0.3}]
def space(trial):
    trial.suggest_float("loss/args/q", 0.2, 0.8)
    return {"loss/name": "mine.py:quantile", "augment/name": "mine.py:reverse", "augment/args/share": 0.25,
            "augment/prob": 0.9, "model/name": "tcn", "model/filters": 4, "model/depth": 1, "epochs": 3,
            "batch_size": 8, "patience": 3}
'''


def write_functions(folder: Path, functions: str = FUNCTIONS, space: str = FUNCTIONS_SPACE) -> Path:
    """Write a loss and an augmentation, and a search space that names them; return the space's file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.py").write_text(functions)
    (folder / "space.py").write_text(space)
    return folder / "space.py"


METRIC = '''"""A metric of one's own: the root mean squared error, or of classes the Brier score."""
import numpy as np


def score(y, pred):
    if pred.ndim == 2:
        return ((pred - np.eye(pred.shape[1])[y]) ** 2).sum(1).mean()
    return np.sqrt(np.mean((y - pred) ** 2))


score.higher_is_better = False
'''
