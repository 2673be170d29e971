"""Single steps of small models, for tests."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from raypipe.training.sam import Sam
from raypipe.training.step import StepResult, TrainState, take_step


def optimizer_step(
    closure: Callable[[], Tensor],
    model: nn.Module,
    optimizer: Optimizer,
    sam: Sam | None = None,
    clip: float = 0.0,
    *,
    scaler: torch.amp.GradScaler | None = None,
) -> StepResult:
    """Take a step with the gradients of a closure's loss."""
    state = TrainState(model, optimizer, sam=sam, scaler=scaler, clip=clip)

    def gradients() -> list[Tensor]:
        loss = closure()
        state.backward(loss)
        return [loss.detach()]

    (result,) = take_step([state], gradients)
    return result
