"""A network of one's own: spatio-temporal filters, their log-power, a linear head."""

import torch
from torch import nn


class Net(nn.Module):
    """Map windows (B, C, T) to (B, n_outputs)."""

    def __init__(self, n_channels, n_times, n_outputs, sfreq, filters=16, dropout=0.3):
        super().__init__()
        self.filters = nn.Conv1d(n_channels, filters, kernel_size=round(0.2 * sfreq))
        self.norm = nn.BatchNorm1d(filters)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(filters, n_outputs)

    def forward(self, x):
        power = self.norm(self.filters(x)).square().mean(-1)
        return self.head(self.drop(torch.log(power + 1e-6)))
