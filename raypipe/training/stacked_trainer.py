"""Several folds trained as one program: parameters stacked, a batch and BatchNorm statistics each, one pass for all.

Only the passes are shared. The optimiser, SAM's norm, clipping and the moving average of each fold are its own
trainer's, whose parameters are views of the stacked ones; so a stacked fold has the state of one trained alone, and
its numbers up to rounding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from raypipe.core.errors import InterruptedEpochError
from raypipe.models.conformer import Conformer
from raypipe.training.loader import Batch
from raypipe.training.result import FoldEpoch
from raypipe.training.step import Step, Steps, frozen_statistics, steps
from raypipe.training.trainer import FoldTrainer

Tensors = dict[str, Tensor]


class StackedTrainer:
    """Trainers of one trial's folds, whose epochs run side by side.

    Parameters
    ----------
    trainers
        Of one configuration and on one device, all at the same epoch.
    """

    def __init__(self, trainers: Sequence[FoldTrainer]) -> None:
        self.trainers = list(trainers)
        self.model = trainers[0].model
        self._parameters = {
            name: _join([dict(t.model.named_parameters())[name] for t in trainers]).requires_grad_()
            for name, _ in self.model.named_parameters()
        }
        self._buffers = {
            name: _join([dict(t.model.named_buffers())[name] for t in trainers])
            for name, _ in self.model.named_buffers()
        }

    def run_epoch(self, interrupted: Callable[[], bool] = lambda: False) -> list[FoldEpoch]:
        """Train one epoch of every fold; see `FoldTrainer.run_epoch`.

        Folds with fewer steps than others leave the stack for the last ones, which run one by one.
        """
        start = time.perf_counter()
        losses: list[list[float]] = [[] for _ in self.trainers]
        for trainer in self.trainers:
            trainer.begin()
        streams = [trainer.batches() for trainer in self.trainers]
        together = min(trainer.steps_per_epoch for trainer in self.trainers)
        for step in range(together):
            if interrupted():
                raise InterruptedEpochError
            batches = [next(stream) for stream in streams]
            if len({len(batch.x) for batch in batches}) > 1:
                taken = [trainer.step(batch, step) for trainer, batch in zip(self.trainers, batches, strict=True)]
            else:
                taken = self.step(batches, step)
            for seen, one in zip(losses, taken, strict=True):
                seen.append(one)
        for trainer, stream, seen in zip(self.trainers, streams, losses, strict=True):
            for step, batch in enumerate(stream, start=together):
                if interrupted():
                    raise InterruptedEpochError
                seen.append(trainer.step(batch, step))
        shared = (time.perf_counter() - start) / len(self.trainers)
        return [trainer.end(seen, shared) for trainer, seen in zip(self.trainers, losses, strict=True)]

    def step(self, batches: list[Batch], step: int) -> list[float]:
        """Take the epoch's step number `step` of every fold, of batches of one size; their losses."""
        config = self.trainers[0].config
        x_SBCT = torch.stack([batch.x for batch in batches])
        prepared = torch.func.vmap(self.model.prepare)(x_SBCT)
        masks_SM = None if batches[0].masks is None else torch.stack([b.masks for b in batches if b.masks is not None])
        for trainer in self.trainers:
            trainer.set_rate(step)
        running = [steps(t.optimizer, t.sam, config.optim.clip) for t in self.trainers]
        try:
            for one in running:
                next(one)
            first = True
            while True:
                found = self._pass(prepared, masks_SM, [batch.y for batch in batches], first=first)
                answers = [_send(one, loss) for one, loss in zip(running, found, strict=True)]
                ended = [answer for answer in answers if isinstance(answer, Step)]
                for trainer, answer in zip(self.trainers, answers, strict=True):
                    if isinstance(answer, Step):
                        trainer.after(answer)  # one that ends before the others was skipped, which fails the trial
                if ended:
                    return [answer.loss for answer in ended]
                first = False
        finally:
            for one in running:
                one.close()

    def _pass(self, prepared: Tensor, masks_SM: Tensor | None, ys: list[Tensor], *, first: bool) -> list[float]:
        """Compute every fold's gradients at its parameters as they are; the losses."""
        trainer = self.trainers[0]

        def forward(parameters: Tensors, buffers: Tensors, x: Tensor, masks_M: Tensor | None) -> Tensor:
            def model(x: Tensor, **options: object) -> Tensor:
                out: Tensor = torch.func.functional_call(self.model, (parameters, buffers), (x,), options)
                return out

            return trainer.forward(model, x, masks_M)

        with nullcontext() if first else frozen_statistics(self.model):
            raw_SBK = torch.func.vmap(forward, in_dims=(0, 0, 0, None if masks_SM is None else 0))(
                self._parameters, self._buffers, prepared, masks_SM
            )
            losses = [t.loss_of(raw_BK, y) for t, raw_BK, y in zip(self.trainers, raw_SBK, ys, strict=True)]
        gradients = torch.autograd.grad(torch.stack(losses).sum(), list(self._parameters.values()))
        for s, trainer in enumerate(self.trainers):
            for parameter, gradient in zip(trainer.model.parameters(), gradients, strict=True):
                parameter.grad = gradient[s]
        return torch.stack(losses).detach().tolist()


def stackable(trainers: Sequence[FoldTrainer]) -> bool:
    """Whether folds can be stacked: several Conformers, no loss scale of their own (float16), memory not short."""
    if len(trainers) < 2 or not isinstance(trainers[0].model, Conformer):
        return False
    if trainers[0].config.init.name != "none":  # only some of their parameters may be trained
        return False
    return trainers[0].scaler is None and not trainers[0].micro_batch


def _send(one: Steps, loss: float) -> bool | Step:
    try:
        return one.send(loss)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


def _join(tensors: Sequence[Tensor]) -> Tensor:
    """Stack tensors and make each of them a view of its row."""
    joined = torch.stack([tensor.detach() for tensor in tensors])
    for tensor, row in zip(tensors, joined, strict=True):
        tensor.data = row
    return joined
