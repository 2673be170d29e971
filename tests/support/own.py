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
