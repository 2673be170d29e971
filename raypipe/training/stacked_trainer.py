"""Several folds trained as one program: each has its own batch and BatchNorm statistics, and all share their passes.

Only the passes are shared. The optimiser, SAM's norm, clipping and the moving average of each fold belong to its own
trainer. So a stacked fold has the state of one that is trained alone, and its numbers up to rounding.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor

from raypipe.core.errors import InterruptedEpochError
from raypipe.models.network import Network
from raypipe.training.fold_trainer import FoldTrainer, Interrupted, never
from raypipe.training.graphs import Stepper
from raypipe.training.loader import Batch
from raypipe.training.result import FoldEpoch
from raypipe.training.step import LossOf, StepResult, TrainState, optimise
from raypipe.training.trainer import SupervisedTrainer

Tensors = dict[str, Tensor]


class StackedTrainer:
    """Train the folds of one trial side by side.

    Parameters
    ----------
    trainers
        Trainers of one configuration and on one device, all at the same epoch.
    """

    def __init__(self, trainers: Sequence[SupervisedTrainer]) -> None:
        self.trainers = list(trainers)
        self.models = StackedModels([trainer.state for trainer in trainers])
        self._stepper = Stepper(self.models.states, self._optimise)

    def run_epoch(self, interrupted: Interrupted = never) -> list[FoldEpoch]:
        """Train one epoch of every fold; see `FoldTrainer.run_epoch`.

        Folds that have more steps than the others take the remaining ones alone.
        """
        start = time.perf_counter()
        for trainer in self.trainers:
            trainer.start_epoch()
        streams = [trainer.batches() for trainer in self.trainers]
        together = min(trainer.data.steps_per_epoch for trainer in self.trainers)
        losses: list[list[float | Tensor]] = [[] for _ in self.trainers]
        for number in range(together):
            if interrupted():
                raise InterruptedEpochError
            for fold_losses, loss in zip(losses, self.step([next(s) for s in streams], number), strict=True):
                fold_losses.append(loss)
        for trainer, stream, fold_losses in zip(self.trainers, streams, losses, strict=True):
            fold_losses += trainer.train_batches(stream, interrupted, first=together)
        means = [trainer.epoch_loss(own) for trainer, own in zip(self.trainers, losses, strict=True)]
        seconds = (time.perf_counter() - start) / len(self.trainers)
        return [trainer.finish_epoch(loss, seconds) for trainer, loss in zip(self.trainers, means, strict=True)]

    def step(self, batches: Sequence[Batch], number: int) -> list[float | Tensor]:
        """Take step `number` (from 0) of the epoch in every fold; return their losses.

        Batches of different sizes cannot be stacked; then the folds step one by one.
        """
        if len({len(batch.x) for batch in batches}) > 1:
            return [trainer.step(batch, number) for trainer, batch in zip(self.trainers, batches, strict=True)]
        for trainer in self.trainers:
            trainer.set_learning_rate(number)
        results = self._stepper.step(batches)
        for trainer, result in zip(self.trainers, results, strict=True):
            trainer.check(result)
        return [result.loss for result in results]

    def _optimise(self, batches: Sequence[Batch]) -> list[StepResult]:
        stacked = self.models.prepare(batches)
        losses_of = [trainer.loss_of for trainer in self.trainers]
        return optimise(self.models.states, lambda: self.models.gradients(stacked, losses_of).unbind())


def stackable(trainers: Sequence[FoldTrainer]) -> TypeGuard[Sequence[SupervisedTrainer]]:
    """Return whether folds can be stacked.

    That needs two or more networks that vmap can run, no loss of a user's, no pretrained encoder, no loss scale of each
    fold (float16), and enough memory for whole batches.
    """
    supervised = [trainer for trainer in trainers if isinstance(trainer, SupervisedTrainer)]
    if len(trainers) < 2 or len(supervised) < len(trainers):
        return False
    first = supervised[0]
    whole = first.config.init.name == "none" and not first.draws_itself and not first.micro_batch
    return first.model.stackable and whole and first.state.scaler is None


class StackedBatch(NamedTuple):
    """Batches of several models, prepared and stacked."""

    x: Tensor
    """Prepared windows, with the models as the first dimension."""
    ys: list[Tensor]
    """Targets of each model; not stacked, since only some of them may be mixed."""
    dropout: Tensor | None
    """(S, M) dropout masks."""


class StackedModels:
    """Models of one architecture whose forward and backward passes are one.

    Their parameters and buffers are stacked, and each model's own become views of its row.
    """

    def __init__(self, states: Sequence[TrainState[Network]]) -> None:
        self.states, self.model = list(states), states[0].model
        for state in states:
            state.version += 1
        self._parameters = _stacked([dict(state.model.named_parameters()) for state in states])
        self._buffers = _stacked([dict(state.model.named_buffers()) for state in states])
        self._trained = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        for name in self._trained:
            self._parameters[name].requires_grad_()

    def prepare(self, batches: Sequence[Batch]) -> StackedBatch:
        """Stack batches of one size, one per model, and prepare their windows."""
        x_SBCT = torch.stack([batch.x for batch in batches])
        masks = [batch.dropout for batch in batches if batch.dropout is not None]
        ys = [batch.y for batch in batches]
        return StackedBatch(torch.func.vmap(self.model.prepare)(x_SBCT), ys, torch.stack(masks) if masks else None)

    def gradients(self, batch: StackedBatch, losses_of: Sequence[LossOf]) -> Tensor:
        """Compute the gradients of each model for its own batch."""

        def forward_one(parameters: Tensors, buffers: Tensors, x: Tensor, dropout_M: Tensor | None) -> Tensor:
            options = {"prepared": True, "dropout_M": dropout_M}
            with self.states[0].autocast():
                out: Tensor = torch.func.functional_call(self.model, (parameters, buffers), (x,), options)
            return out

        in_dims = (0, 0, 0, None if batch.dropout is None else 0)
        raw_SBK = torch.func.vmap(forward_one, in_dims)(self._parameters, self._buffers, batch.x, batch.dropout)
        losses = [loss_of(raw_BK, y) for loss_of, raw_BK, y in zip(losses_of, raw_SBK, batch.ys, strict=True)]
        stacks = [self._parameters[name] for name in self._trained]
        # In the memory order of the parameters, for a fold's optimiser: one copy for all folds.
        found = torch.autograd.grad(torch.stack(losses).sum(), stacks)
        gradients = {name: grad.contiguous() for name, grad in zip(self._trained, found, strict=True)}
        for s, state in enumerate(self.states):
            for name, parameter in state.model.named_parameters():
                parameter.grad = gradients[name][s] if name in gradients else None
        return torch.stack(losses).detach()


def _stacked(tensors_of: Sequence[Tensors]) -> Tensors:
    """Stack tensors by name, and make each of them a view of its row."""
    stacks = {}
    for name in tensors_of[0]:
        stacks[name] = torch.stack([tensors[name].detach() for tensors in tensors_of])
        for tensors, row in zip(tensors_of, stacks[name], strict=True):
            tensors[name].data = row
    return stacks
