"""The training loop: one fold, epoch by epoch, with predictions of its validation windows and its whole state.

An epoch reads from top to bottom: `SupervisedTrainer.run_epoch`, `train_epoch`, `step`, and `step.optimise`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raypipe.core.config import OwnLossConfig, TrialConfig
from raypipe.core.errors import InterruptedEpochError, NonFiniteError, UserError
from raypipe.core.folds import Index
from raypipe.core.levels import Level, level_of, ranking_score
from raypipe.core.metrics import Metric, get_metric
from raypipe.core.model_config import OwnConfig
from raypipe.core.random_streams import seeded
from raypipe.core.seeds import derive_seed
from raypipe.data.montage import electrode_positions
from raypipe.models.from_config import build_model
from raypipe.models.network import Network
from raypipe.training.checkpoint import clone_tensors
from raypipe.training.determinism import use_deterministic_algorithms
from raypipe.training.finetuning import (
    choose_trained,
    has_lora,
    initial_id,
    keep_statistics,
    merge_lora,
    parameter_groups,
    start_from,
)
from raypipe.training.fold_trainer import Interrupted, never
from raypipe.training.graphs import CudaGraphs, Stepper
from raypipe.training.loader import Batch, FoldData
from raypipe.training.losses import make_fold_loss, mean_loss
from raypipe.training.optim import set_learning_rate
from raypipe.training.result import FoldEpoch
from raypipe.training.step import StepResult, forward, make_state, micro_batches, optimise, whole_batch

if TYPE_CHECKING:
    from raypipe.data.window_store import WindowStore

EVALUATION_BATCH = 256
"""Windows that are predicted at a time."""


@dataclass(frozen=True)
class BestEpoch:
    """Best epoch so far of a fold that chooses its epoch by training subjects set apart, and its results."""

    epoch: int = 0
    score: float = math.nan
    """Score of the subjects set apart."""
    loss: float = math.nan
    weights: dict[str, Tensor] = field(default_factory=dict)
    predictions: Tensor = field(default_factory=lambda: torch.empty(0, 1))
    """Predictions of the validation windows."""

    def beaten_by(self, score: float, metric: Metric) -> bool:
        """Return whether a score is better, or there is none yet (AUC of subjects of one class)."""
        return metric.better(score, self.score) or math.isnan(self.score)


class SupervisedTrainer:
    """Train one fold of one trial.

    Parameters
    ----------
    config
        The trial's configuration.
    data
        The fold's windows.
    stem
        How the stem is computed (see `Stem`).
    micro_batch
        Windows whose gradients are computed at a time, where memory is short; None for the whole batch.
    encoder
        Weights of a pretrained encoder, for configurations that start from one.
    metric
        Metric by which a fold chooses its epoch (``early_stop=fold``); None for that of the windows.
    level
        Level at which it is taken: the run's; None for `level_of` all windows.

    Raises
    ------
    UserError
        The configuration starts from a pretrained encoder, and there is none or one of other sizes.

    Notes
    -----
    Folds of a trial, and trials of one seed and one architecture, start from the same weights.
    """

    def __init__(
        self,
        config: TrialConfig,
        data: FoldData,
        *,
        stem: str = "fourier",
        micro_batch: int | None = None,
        encoder: Mapping[str, Tensor] | None = None,
        metric: str | None = None,
        level: Level | None = None,
    ) -> None:
        self.config, self.data, self.micro_batch = config, data, micro_batch
        self.metric = metric or data.windows.metric
        self.level = level or level_of(data.windows.subjects, data.windows.targets)
        self.fold, self.epoch = data.fold, 0
        self.model = make_network(config, data.windows, data.device)
        self.model.use_stem(stem)
        if config.init.name == "pretrained":
            if encoder is None:
                raise UserError("init/name=pretrained: this run has no pretrained encoder; give one with --init RUN")
            start_from(self.model, encoder)
        self.initial = initial_id(self.model)
        choose_trained(self.model, config.init)
        self.loss = make_fold_loss(config, data)
        self.state = make_state(self.model, parameter_groups(self.model, config.init), config, data.device)
        self.best = BestEpoch() if len(data.inner) else None
        own_loss = isinstance(config.loss, OwnLossConfig)
        self.draws_itself = self.model.draws_itself or own_loss
        if own_loss:  # it may be no mean over windows, of which parts would give other gradients
            self.micro_batch = None
        # Code that draws itself draws anew in each pass, and a CUDA graph could not repeat that.
        whole = not (self.micro_batch or self.draws_itself)
        self._stepper = Stepper([self.state], self._optimise, whole=whole)
        self._forward = CudaGraphs(self._predict_batch) if data.device.type == "cuda" and whole else None
        self._stream = 0

    @property
    def stopped(self) -> bool:
        """Return whether the fold has stopped by itself (``early_stop=fold``)."""
        return self.best is not None and self.epoch - self.best.epoch >= self.config.patience

    def run_epoch(self, interrupted: Interrupted = never) -> FoldEpoch:
        """Train one epoch and predict the validation windows; see `FoldTrainer`."""
        start = time.perf_counter()
        loss = None if self.stopped else self.train_epoch(interrupted)
        return self.finish_epoch(loss, time.perf_counter() - start)

    def train_epoch(self, interrupted: Interrupted = never) -> float:
        """Train one epoch, without predictions; return its loss (`epoch_loss`)."""
        self.start_epoch()
        return self.epoch_loss(self.train_batches(self.batches(), interrupted))

    def batches(self) -> Iterator[Batch]:
        """Return the batches of the next epoch."""
        return self.data.batches(self.epoch + 1, self.model.dropout_plan)

    def start_epoch(self) -> None:
        """Prepare the model for training."""
        self.model.train()
        keep_statistics(self.model, self.config.init)
        if self.state.sam:
            self.state.sam.restart()

    def train_batches(
        self, batches: Iterable[Batch], interrupted: Interrupted = never, first: int = 0
    ) -> list[float | Tensor]:
        """Take a step with each batch; `first` is the number of the first step in its epoch. Return the losses."""
        losses = []
        for number, batch in enumerate(batches, start=first):
            if interrupted():
                raise InterruptedEpochError
            losses.append(self.step(batch, number))
        return losses

    def step(self, batch: Batch, number: int) -> float | Tensor:
        """Take step `number` (from 0) of the epoch; return its loss, on a GPU as a tensor that may not be known yet."""
        self.set_learning_rate(number)
        self._stream = derive_seed("dropout", self.config.seed, self.fold, self.epoch + 1, number)
        (result,) = self._stepper.step([batch])
        self.check(result)
        return result.loss

    def _optimise(self, batches: Sequence[Batch]) -> list[StepResult]:
        batch = batches[0]._replace(x=self.model.prepare(batches[0].x))

        def gradients() -> list[Tensor]:
            # Both passes of SAM draw the same.
            with seeded(self._stream, batch.x.device) if self.draws_itself else nullcontext():
                if self.micro_batch:
                    return [micro_batches(self.state, batch, self.loss_of, self.micro_batch)]
                return [whole_batch(self.state, batch, self.loss_of)]

        return optimise([self.state], gradients)

    def set_learning_rate(self, number: int) -> None:
        """Set the learning rate of step `number` (from 0) of the epoch."""
        steps = self.data.steps_per_epoch
        ends = [epoch * steps for epoch in self.config.cycle_ends]
        step, total = self.epoch * steps + number, self.config.epochs * steps
        set_learning_rate(self.state.optimizer, self.config.optim, step, total, ends)

    def loss_of(self, raw_BK: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of a batch."""
        return self.loss(raw_BK.float(), y)

    def check(self, result: StepResult) -> None:
        """Raise `NonFiniteError` if a step has failed; on a GPU `epoch_loss` does."""
        if result.failed:
            raise self._not_finite()

    def epoch_loss(self, losses: Sequence[float | Tensor]) -> float:
        """Return the mean loss of an epoch's steps; raise `NonFiniteError` if one of them is not finite."""
        loss = mean_loss(losses, self.data.batch_sizes)
        if not math.isfinite(loss):  # on a GPU, where steps do not wait for their outcome
            raise self._not_finite()
        return loss

    def _not_finite(self) -> NonFiniteError:
        return NonFiniteError(f"fold {self.fold}, epoch {self.epoch + 1}: the training loss is not finite")

    def finish_epoch(self, loss: float | None, seconds: float) -> FoldEpoch:
        """End an epoch that was trained for `seconds`: predict, and choose the epoch where the fold does so itself.

        `loss` is the epoch's; None where the fold has stopped.
        """
        start = time.perf_counter()
        self.epoch += 1
        if self.best is None:
            assert loss is not None
            predictions = self.predict(self.data.validation)
            return FoldEpoch(loss, predictions, seconds + time.perf_counter() - start)
        if loss is None:
            loss = self.best.loss
        else:
            self.best = self._better_epoch(self.best, loss)
        seconds += time.perf_counter() - start
        return FoldEpoch(loss, self.best.predictions.numpy(), seconds, by_fold=True, stopped=self.stopped)

    def _better_epoch(self, best: BestEpoch, loss: float) -> BestEpoch:
        windows, inner = self.data.windows, self.data.inner
        predicted, fold_N = self.predict(inner)[:, : windows.n_outputs], np.full(len(inner), self.fold)
        found = ranking_score(
            self.metric, self.level, windows.targets[inner], predicted, windows.subjects[inner], fold_N
        )
        if not best.beaten_by(found, get_metric(self.metric)):
            return best
        predictions = torch.from_numpy(self.predict(self.data.validation))
        return BestEpoch(self.epoch, found, loss, self._evaluated_weights(), predictions)

    @torch.no_grad()
    def predict(self, index: Index) -> NDArray[np.float32]:
        """Predict windows in evaluation mode: (N, n_outputs), in target units or as probabilities; see `decode`."""
        self.model.eval()
        size = max(1, EVALUATION_BATCH * (self.micro_batch or self.config.batch_size) // self.config.batch_size)
        with self.state.averaged():
            parts = [self._predict(index[start : start + size], size) for start in range(0, len(index), size)]
        return self.data.decode(torch.cat(parts).cpu())

    def _predict(self, index: Index, size: int) -> Tensor:
        """Return the network's outputs; on a GPU all batches have one size, for one CUDA graph."""
        if self._forward is None:
            return self._predict_batch([self.data.loader.gather(index)])
        padded = np.resize(index, size)
        return self._forward([self.data.loader.gather(padded)], self.state.version)[: len(index)]

    def _predict_batch(self, arguments: Sequence[Tensor | None]) -> Tensor:
        (x_BCT,) = arguments
        assert x_BCT is not None
        return forward(self.state, self.model.prepare(x_BCT)).float()

    def weights(self) -> dict[str, Tensor]:
        """Return what is evaluated and shipped: the chosen epoch's weights, else the present (averaged) ones."""
        return self.best.weights if self.best is not None and self.best.weights else self._evaluated_weights()

    def _evaluated_weights(self) -> dict[str, Tensor]:
        with self.state.averaged():
            return cast(dict[str, Tensor], clone_tensors(merge_lora(self.model, self.model.state_dict())))

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue exactly after this epoch; see `FoldTrainer`."""
        state = clone_tensors(
            {
                "config": self.config.hash(),
                "initial": self.initial,
                "fold": self.fold,
                "epoch": self.epoch,
                "target": self.data.out_units,
                **self.state.state_dict(),
                "choice": vars(self.best) if self.best else None,
            }
        )
        # The same tensors where they are equal, which are then written once.
        if self.best is not None and self.best.weights:
            state["weights"] = state["choice"]["weights"]
        elif self.state.ema is not None or has_lora(self.config.init):
            state["weights"] = self._evaluated_weights()
        else:
            state["weights"] = state["model"]
        return cast(dict[str, Any], state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to where `state` was taken; see `FoldTrainer`."""
        if (state["config"], state["fold"]) != (self.config.hash(), self.fold):
            raise ValueError(
                f"a checkpoint of configuration {state['config']}, fold {state['fold']} cannot continue "
                f"configuration {self.config.hash()}, fold {self.fold}"
            )
        self.state.load_state_dict(state)
        if self.best is not None:
            self.best = BestEpoch(**state["choice"])
        self.epoch = state["epoch"]


def make_network(config: TrialConfig, windows: WindowStore, device: torch.device) -> Network:
    """Build a network for the windows of a store; its weights follow from the configuration's seed."""
    use_deterministic_algorithms(device)
    seed = derive_seed("weights", config.seed)
    torch.manual_seed(seed)
    with seeded(seed, torch.device("cpu")) if isinstance(config.model, OwnConfig) else nullcontext():
        model = build_model(
            config.model,
            n_channels=windows.n_channels,
            n_times=windows.crop_samples,
            n_outputs=windows.n_outputs,
            sfreq=windows.sfreq,
        ).to(device)
    if model.uses_electrodes:
        model.place_electrodes(torch.from_numpy(electrode_positions(windows.channels)))
    return model
