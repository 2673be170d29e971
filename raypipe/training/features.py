"""Features of windows for models that are fitted in closed form, which folds share where nothing in them is fitted."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from raypipe.core.errors import InterruptedEpochError
from raypipe.core.folds import Index
from raypipe.models.closed_form import ClosedForm
from raypipe.training.fold_trainer import Interrupted, never
from raypipe.training.loader import FoldData

MAX_FEATURE_VALUES = 2**26
"""Values of the feature matrix of a fold (512 MiB). Of more windows, as many as fit are drawn by seed."""
BATCH_VALUES = 2**22
"""Values of the windows, or of the features, that are computed at a time."""


def read_batches(
    data: FoldData, model: ClosedForm, index: Index, interrupted: Interrupted = never, offsets: Index | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Yield windows (B, C, T) on the CPU, and their places in `index`; see `compute_features`.

    Raises
    ------
    InterruptedEpochError
        `interrupted` returned True.
    """
    windows = data.windows
    each = max(windows.n_channels * windows.crop_samples, model.weight_OF.shape[1])
    size = max(1, min(256, BATCH_VALUES // each))
    for start in range(0, len(index), size):
        if interrupted():
            raise InterruptedEpochError
        part = slice(start, min(start + size, len(index)))
        yield part, torch.from_numpy(windows.gather(index[part], None if offsets is None else offsets[part]))


def compute_features(
    data: FoldData, model: ClosedForm, index: Index, interrupted: Interrupted = never, offsets: Index | None = None
) -> Tensor:
    """Return the features (N, F) of windows, cropped at `offsets` or where they are evaluated."""
    x_NF = torch.empty(len(index), model.weight_OF.shape[1], dtype=torch.float64)
    for part, x_BCT in read_batches(data, model, index, interrupted, offsets):
        x_NF[part] = model.front(x_BCT)
    return x_NF


class SharedFeatures:
    """Features of all windows of a search, which the folds of a trial share where nothing in them is fitted.

    They are computed in the same batches whichever folds need them: a fold that continues has the same bits.

    Parameters
    ----------
    index
        Numbers of the windows, ascending.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self._kept_NF: Tensor | None = None

    def of(self, data: FoldData, model: ClosedForm, index: Index, interrupted: Interrupted) -> Tensor | None:
        """Return a copy of the features (N, F) of some windows; None if folds differ, or the features are too many."""
        if not model.has_fixed_features or len(self.index) * model.weight_OF.shape[1] > MAX_FEATURE_VALUES:
            return None
        if self._kept_NF is None:
            self._kept_NF = compute_features(data, model, self.index, interrupted)
        return self._kept_NF[torch.from_numpy(np.searchsorted(self.index, index))]
