"""One optimiser step: the state that it changes, how it is taken, and ways to compute its gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from raypipe.core.config import TrialConfig
from raypipe.models.network import DropoutMasks, Network
from raypipe.models.own import OwnNetwork
from raypipe.training import torch_compat
from raypipe.training.device import pass_type
from raypipe.training.loader import Batch
from raypipe.training.optim import AdamW, Ema, gradients_of, parameters_of
from raypipe.training.sam import Sam, make_sam

MAX_OVERFLOWS = 50
"""Steps in a row that float16 may skip, each with half the scale of the one before."""

M = TypeVar("M", bound=nn.Module)
LossOf = Callable[[Tensor, Tensor], Tensor]
"""Mean loss of outputs (B, K) and targets (B,) or (B, K)."""
Gradients = Callable[[], Sequence[Tensor]]
"""Adds the gradients of each model's mean loss to its parameters, as these are; returns the losses, one per model."""


class StepResult(NamedTuple):
    """Outcome of one step.

    On a GPU nothing waits for a step, so its outcome is not known yet: loss and norm are tensors, `skipped` and
    `failed` are False, and a step that was skipped has a loss of NaN.
    """

    loss: float | Tensor
    """Mean loss of the batch at the weights before the step (MSAM: at the perturbed weights)."""
    skipped: bool
    """Weights and optimiser are as they were: a loss or a gradient was not finite."""
    grad_norm: float | Tensor
    """Norm, before clipping, of the gradient of the step."""
    failed: bool = False
    """The loss or gradient of this model was not finite, and float16's short range does not explain it."""


@dataclass
class TrainState(Generic[M]):
    """Everything that training changes: a model, its optimiser, and what belongs to them.

    Raises
    ------
    ValueError
        `sam` was built around another optimiser.
    """

    model: M
    optimizer: Optimizer
    sam: Sam | None = None
    ema: Ema | None = None
    scaler: torch.amp.GradScaler | None = None
    """For float16."""
    dtype: torch.dtype = torch.float32
    """Of the forward passes."""
    device_type: str = "cpu"
    clip: float = 0.0
    """Largest norm of a step's gradient; 0 for no limit."""
    overflows: int = 0
    """Steps in a row that were skipped."""
    version: int = 0
    """Changes whenever tensors of the state are replaced, of which a CUDA graph has the addresses."""

    def __post_init__(self) -> None:
        if self.sam is not None and self.sam.optimizer is not self.optimizer:
            raise ValueError("sam was built around another optimizer")

    def autocast(self) -> torch.autocast:
        """Return the context of a forward pass."""
        return torch.autocast(self.device_type, self.dtype, enabled=self.dtype != torch.float32)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, scaled for float16, to the parameters."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]

    def averaged(self) -> AbstractContextManager[None]:
        """Give the model the moving average of its weights within the context, if one is kept."""
        return self.ema.swapped(self.model) if self.ema else nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """Return the state between two steps, not as copies.

        Raises
        ------
        RuntimeError
            It is called within a step, when the weights are perturbed.
        """
        if self.sam is not None and self.sam.perturbed:
            raise RuntimeError("the weights are perturbed; a state saved now would contain the wrong weights")
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "scaler": self.scaler.state_dict() if self.scaler else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""
        self.version += 1
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])

    @property
    def deferred(self) -> bool:
        """Return whether steps do not wait for their outcome: on a GPU, but for float16, whose scale depends on it."""
        return self.device_type == "cuda" and self.scaler is None and isinstance(self.optimizer, AdamW)

    # Parts of a step, which `optimise` calls in this order

    def begin_step(self) -> None:
        """Drop old gradients; MSAM perturbs the weights."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.sam is not None and self.sam.method == "msam":
            self.sam.perturb()

    def perturb(self, loss: Tensor) -> Tensor:
        """Perturb the weights for the second pass; return whether loss and gradients are finite."""
        assert self.sam is not None
        if self.scaler is not None:
            # Not by GradScaler, which unscales once per step: the gradients of the second pass need that.
            torch_compat.foreach_mul_(gradients_of(self.optimizer), 1.0 / self.scaler.get_scale())
        finite = loss.isfinite()
        if self.deferred or finite:
            finite = finite & self.sam.perturb()
        if self.deferred or finite:
            self.optimizer.zero_grad(set_to_none=True)
        return finite

    def restore(self) -> None:
        """Return to the weights before the perturbation, if there was one."""
        if self.sam is not None:
            self.sam.restore()

    def step(self, loss: Tensor, last_loss: Tensor, perturbed: Tensor | None) -> StepResult:
        """Step with the gradients of the last pass, or skip the step if they are not finite.

        Parameters
        ----------
        loss, last_loss
            Losses of the first and of the last pass.
        perturbed
            What `perturb` returned; None for a step of one pass.
        """
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self.sam is not None and perturbed is None:
            self.sam.add_orthogonal()
        norm = nn.utils.clip_grad_norm_(parameters_of(self.optimizer), self.clip or math.inf)
        finite = last_loss.isfinite() & norm.isfinite()
        if self.deferred:
            return self._step_if(finite if perturbed is None else finite & perturbed, loss, norm, perturbed is not None)
        if not finite:
            return self.skip(loss, float(norm))
        if self.sam is not None and perturbed is not None:
            self.sam.keep_orthogonal()
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self._constrain()
        self.overflows = 0
        return StepResult(float(loss), False, float(norm))

    def _step_if(self, finite: Tensor, loss: Tensor, norm: Tensor, two_passes: bool) -> StepResult:
        """Take the step on the device if it is finite, without waiting to know."""
        if self.sam is not None and two_passes:
            self.sam.keep_orthogonal()
        assert isinstance(self.optimizer, AdamW)
        self.optimizer.step_if(finite)
        self._constrain()
        return StepResult(torch.where(finite, loss, math.nan), False, norm)

    def _constrain(self) -> None:
        if isinstance(self.model, Network):
            self.model.constrain()

    def skip(self, loss: Tensor, norm: float = math.nan) -> StepResult:
        """Drop the gradients of a step that cannot be taken."""
        if self.scaler is not None:
            torch_compat.lower_scale(self.scaler)
        self.optimizer.zero_grad(set_to_none=True)
        self.overflows += 1
        excused = self.scaler is not None and bool(loss.isfinite()) and self.overflows <= MAX_OVERFLOWS
        return StepResult(float(loss), True, norm, failed=not excused)

    @property
    def needs_second_pass(self) -> bool:
        """Return whether the next step computes a second gradient, at perturbed weights."""
        return self.sam is not None and self.sam.needs_second_pass

    def finish_step(self, result: StepResult, *, second_pass: bool) -> None:
        """Do what comes after a step: count it for LookSAM, and update the moving average of weights."""
        if self.sam is not None and not (result.skipped and second_pass):
            self.sam.count(second_pass=second_pass)
        if self.ema is not None:
            self.ema.update(self.model)


def make_state(model: M, groups: list[dict[str, Any]], config: TrialConfig, device: torch.device) -> TrainState[M]:
    """Build the state that a configuration asks for; see `finetuning.parameter_groups` for `groups`."""
    optim = config.optim
    optimizer = AdamW(groups, lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay)
    if device.type == "cuda":
        optimizer.use_device_rate()
    dtype = pass_type(config, device)
    return TrainState(
        model,
        optimizer,
        sam=make_sam(config.sam, optimizer, model),
        ema=Ema(model, optim.ema) if optim.ema else None,
        scaler=torch.amp.GradScaler(device.type) if dtype == torch.float16 else None,
        dtype=dtype,
        device_type=device.type,
        clip=optim.clip,
    )


def take_step(states: Sequence[TrainState[Any]], gradients: Gradients) -> list[StepResult]:
    """Take one step of one model, or of several whose gradients are computed together: `optimise` and `finish_step`."""
    second = states[0].needs_second_pass
    results = optimise(states, gradients)
    for state, result in zip(states, results, strict=True):
        state.finish_step(result, second_pass=second)
    return results


def optimise(states: Sequence[TrainState[Any]], gradients: Gradients) -> list[StepResult]:
    """Take one step of one model, or of several whose gradients are computed together.

    A plain step computes gradients once. SAM computes them a second time, at perturbed weights. Both passes use the
    same dropout masks, and only the first one updates running statistics. Only the gradient of the last pass is
    clipped. A loss or a gradient that is not finite skips the step: the gradients are dropped, weights and
    optimiser stay as they are. The weights are restored even if a pass raises an error. On a GPU (`deferred`) nothing
    waits for a result: the same kernels run whether the numbers are finite or not, so the step can be a CUDA graph.

    Parameters
    ----------
    states
        One per model; several have the same configuration.
    gradients
        See `Gradients`. Mixing and dropout masks are drawn before it, so that it computes the same in each call.
    """
    second = states[0].needs_second_pass
    perturbed: list[Tensor | None] = [None] * len(states)
    try:
        for state in states:
            state.begin_step()
        losses = last_losses = gradients()
        if second:
            perturbed = [state.perturb(loss) for state, loss in zip(states, losses, strict=True)]
            if not (states[0].deferred or all(perturbed)):
                return [
                    StepResult(float(loss), True, math.nan) if fine else state.skip(loss)
                    for state, loss, fine in zip(states, losses, perturbed, strict=True)
                ]
            with frozen_statistics(state.model for state in states):
                last_losses = gradients()
    finally:
        for state in states:
            state.restore()
    return [
        state.step(loss, last_loss, fine)
        for state, loss, last_loss, fine in zip(states, losses, last_losses, perturbed, strict=True)
    ]


@contextmanager
def frozen_statistics(models: Iterable[nn.Module]) -> Iterator[None]:
    """Let models compute as before within the context, without an update of running statistics.

    This turns tracking of BatchNorm layers off. A momentum of 0 would still count the batch, and would turn the
    statistics of a batch that is not finite into NaN. Users' networks may keep statistics in any buffer, so theirs are
    exchanged for copies.
    """
    models = list(models)
    layers = [layer for model in models for layer in model.modules() if isinstance(layer, torch_compat.BatchNorm)]
    layers = [layer for layer in layers if layer.track_running_stats]
    with ExitStack() as copies:
        for model in models:
            if isinstance(model, OwnNetwork):
                copies.enter_context(model.copied_buffers())
        try:
            for layer in layers:
                layer.track_running_stats = False
            yield
        finally:
            for layer in layers:
                layer.track_running_stats = True


# Ways to compute gradients: of a whole batch, in micro-batches, or of stacked models (`StackedModels.gradients`). Each
# takes batches whose windows the network has prepared, adds the gradients to the parameters, and returns the loss.


def whole_batch(state: TrainState[Network], batch: Batch, loss_of: LossOf) -> Tensor:
    """Compute the gradients of a batch in one pass."""
    loss = loss_of(forward(state, batch.x, batch.dropout), batch.y)
    state.backward(loss)
    return loss.detach()


def forward(state: TrainState[Network], prepared: Tensor, dropout_M: Tensor | None = None) -> Tensor:
    """Run the network on the result of its `prepare`, in the trial's precision."""
    with state.autocast():
        out: Tensor = state.model(prepared, prepared=True, dropout_M=dropout_M)
    return out


def micro_batches(state: TrainState[Network], batch: Batch, loss_of: LossOf, size: int) -> Tensor:
    """Compute the gradients of a batch, `size` windows at a time, for less memory.

    BatchNorm normalises by the whole batch, so the network is cut behind it. The part before the cut (`front`) is
    passed once and keeps a small activation. The part behind it (`back`), which needs most of the memory, is passed in
    micro-batches. The gradients at the cut are collected and go back once. The result is the gradient of the whole
    batch, up to rounding.
    """
    n = len(batch.y)
    with state.autocast():
        whole = None if batch.dropout is None else DropoutMasks(batch.dropout)
        cut_BFT = state.model.front(batch.x, prepared=True, masks=whole)
    gradient_BFT = torch.empty_like(cut_BFT)
    losses = []
    for first in range(0, n, size):
        part = cut_BFT.detach()[first : first + size].requires_grad_(cut_BFT.requires_grad)
        masks = None if whole is None else whole.of_part(n, first)
        with state.autocast():
            raw = state.model.back(part, masks)
        loss = loss_of(raw, batch.y[first : first + size]) * (len(part) / n)
        state.backward(loss)
        gradient_BFT[first : first + size] = 0.0 if part.grad is None else part.grad
        losses.append(loss.detach())
    if cut_BFT.requires_grad:  # not where everything before the cut is frozen
        torch.autograd.backward(cut_BFT, gradient_BFT)
    return torch.stack(losses).sum()
