"""A trial whose training is pretraining: judged, fold by fold, by a linear probe."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raypipe.core.config import TrialConfig
from raypipe.core.errors import UserError
from raypipe.core.folds import Index
from raypipe.models.vit import ViT
from raypipe.pretraining.linear_probe import fit_probe
from raypipe.pretraining.trainer import Pretrainer, features
from raypipe.training.checkpoint import clone_tensors
from raypipe.training.loader import WindowLoader
from raypipe.training.result import FoldEpoch


class PretrainTrainer:
    """A fold whose training is pretraining, on its training subjects alone; a linear probe predicts the others.

    It stands where a `FoldTrainer` does, so a sweep over pretraining is judged by the probe's score over all folds.
    """

    stopped = False
    scaler = None
    micro_batch = None
    chooses_weights = False

    def __init__(self, config: TrialConfig, feed: WindowLoader, train: Index, validation: Index, *, fold: int) -> None:
        self.config, self.feed, self.fold = config, feed, fold
        self.train, self.validation = train, validation
        if config.model.name != "vit":  # what is shipped has the probe for its head
            raise UserError("pretrain/name in a search space needs model/name=vit; use: raypipe pretrain simclr")
        self.pretrainer = Pretrainer(config, feed, train, part=fold)
        self.model = cast(ViT, self.pretrainer.encoder)

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return self.pretrainer.epoch

    def run_epoch(self, interrupted: Callable[[], bool] = lambda: False) -> FoldEpoch:
        """Pretrain one epoch, fit the probe on the training windows, predict the validation windows."""
        start = time.perf_counter()
        loss = self.pretrainer.run_epoch(interrupted)
        windows = self.feed.windows
        weight, bias = fit_probe(
            self.pretrainer.features(self.train), windows.targets[self.train], len(windows.classes)
        )
        with torch.no_grad():
            self.model.head.weight.copy_(weight)
            self.model.head.bias.copy_(bias)
        predictions = predict(self.model, self.feed, self.validation, classes=bool(windows.classes))
        return FoldEpoch(loss, predictions, time.perf_counter() - start)

    def weights(self) -> dict[str, Tensor]:
        """The encoder with the probe as its head."""
        return cast(dict[str, Tensor], clone_tensors(self.model.state_dict()))

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on; `model` is what is shipped."""
        state = self.pretrainer.state_dict()
        return state | {
            "fold": self.fold,
            "module": state["model"],
            "model": self.weights(),
            "answer": [0.0, 1.0],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state` was taken."""
        self.pretrainer.load_state_dict(state | {"model": state["module"]})


@torch.no_grad()
def predict(encoder: ViT, feed: WindowLoader, index: Index, *, classes: bool) -> NDArray[np.float32]:
    """Predictions (N, outputs) of windows: values, or probabilities."""
    x_NF = torch.from_numpy(features(encoder, feed, index)).to(feed.device)
    raw = encoder.head(x_NF).cpu()
    answer: NDArray[np.float32] = (raw.softmax(1) if classes else raw).numpy()
    return answer
