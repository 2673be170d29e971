"""A loss and an augmentation of one's own."""

import torch


def quantile(outputs, target, q=0.5):
    """Return the pinball loss, whose best prediction is the q-quantile of the target."""
    error = target - outputs
    return torch.maximum(q * error, (q - 1) * error).mean()


def smear(x, sfreq, rng, seconds=0.05):
    """Average windows (B, C, T) over a random time of at most `seconds`."""
    width = 1 + 2 * int(rng.integers(1 + round(seconds * sfreq / 2)))
    return torch.nn.functional.avg_pool1d(x, width, stride=1, padding=width // 2, count_include_pad=False)
