"""One optimiser step, plain or sharpness-aware, that leaves the model whole whatever happens inside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

_TINY = 1e-12


class Step(NamedTuple):
    """What a step did."""

    loss: float
    """Mean loss of the batch at the weights before the step."""
    skipped: bool
    """A loss or a gradient was not finite: weights and optimiser are as they were."""
    grad_norm: float
    """Norm, before clipping, of the gradient that was stepped with."""


class Sam:
    """Weights moved uphill and back: the perturbation of SAM, around any optimiser.

    SAM (Foret et al. 2021, arXiv:2010.01412, eq. 2): ``w + rho g / |g|``.
    ASAM (Kwon et al. 2021, arXiv:2102.11600, eq. 7): ``w + rho w^2 g / | |w| g |``, products element by element, over
    all parameters. Norms are over all parameters together.

    Parameters
    ----------
    optimizer
        The base optimiser. Learning rate, weight decay and schedule are its business, and its parameters are those
        that are perturbed.
    rho
        Radius.
    adaptive
        ASAM.
    """

    def __init__(self, optimizer: Optimizer, *, rho: float, adaptive: bool = False) -> None:
        self.optimizer, self.rho, self.adaptive = optimizer, rho, adaptive
        self._weights: list[Tensor] = []
        self._home: list[Tensor] = []

    @property
    def perturbed(self) -> bool:
        """Whether the weights are away from home."""
        return bool(self._weights)

    @torch.no_grad()
    def perturb(self) -> bool:
        """Save the weights and move them uphill along their gradients.

        Returns
        -------
        bool
            False if the gradients are not finite; then nothing has moved.

        Raises
        ------
        RuntimeError
            The weights are perturbed already.
        """
        if self._weights:
            raise RuntimeError("the weights are perturbed already; restore() comes first")
        weights = [parameter for parameter in parameters_of(self.optimizer) if parameter.grad is not None]
        if not weights:
            return True
        # The _foreach functions are one kernel for all tensors; a loop over the Conformer's 85 starves a GPU.
        climbs = [weight.grad for weight in weights if weight.grad is not None]
        sizes = torch._foreach_abs(weights) if self.adaptive else ()
        if self.adaptive:
            climbs = list(torch._foreach_mul(climbs, sizes))
        norm = float(torch.linalg.vector_norm(torch.stack(list(torch._foreach_norm(climbs)))))
        if not math.isfinite(norm):
            return False
        self._weights, self._home = weights, [weight.clone() for weight in weights]
        if self.adaptive:
            torch._foreach_mul_(climbs, sizes)
        torch._foreach_add_(weights, climbs, alpha=self.rho / (norm + _TINY))
        return True

    @torch.no_grad()
    def restore(self) -> None:
        """Copy the saved weights back, bit for bit; does nothing when none are saved."""
        if self._weights:
            torch._foreach_copy_(self._weights, self._home)
        self._weights, self._home = [], []

    def state_dict(self) -> dict[str, Any]:
        """State of the base optimiser, which is all there is between steps.

        Raises
        ------
        RuntimeError
            Asked within a step, when the model's weights are the perturbed ones.
        """
        if self._weights:
            raise RuntimeError("the weights are perturbed; a state saved now would keep the wrong weights")
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """All parameters of an optimiser, group by group."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Within it, BatchNorm layers normalise as before but leave their running statistics alone.

    Turning tracking off does that. A momentum of 0 would not: it still counts the batch, and it turns the statistics
    of a batch that is not finite into NaN.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    try:
        for layer in layers:
            layer.track_running_stats = False
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


def optimizer_step(
    closure: Callable[[], Tensor],
    model: nn.Module,
    optimizer: Optimizer,
    sam: Sam | None = None,
    clip: float = 0.0,
) -> Step:
    """Take one step: a forward and backward pass, or SAM's two.

    Both of SAM's passes see the same dropout masks, and only the first updates BatchNorm's running statistics. The
    second gradient alone is clipped, at the weights where the optimiser then steps from. A loss or a gradient that
    is not finite skips the step: the gradients are dropped, weights and optimiser state stay. An exception in either
    pass leaves the weights restored as well.

    Parameters
    ----------
    closure
        Computes the mean loss of the batch, with gradients, from torch's global generators and nothing else that
        changes between calls (mix the batch before). Autocast belongs into it; with bfloat16 no scaler is needed.
    model
        Whose BatchNorm layers are meant.
    optimizer
        `sam`'s base optimiser, if there is a `sam`.
    sam
        None for a plain step.
    clip
        Largest norm of the gradient that is stepped with; 0 clips nothing.
    """
    if sam is not None and sam.optimizer is not optimizer:
        raise ValueError("sam was built around another optimizer")
    optimizer.zero_grad(set_to_none=True)
    chance = _chance(optimizer) if sam is not None else None
    loss = closure()
    loss.backward()  # type: ignore[no-untyped-call]
    value = float(loss.detach())
    if sam is not None and chance is not None:
        if not math.isfinite(value) or not sam.perturb():
            return _skip(optimizer, value, math.nan)
        try:
            optimizer.zero_grad(set_to_none=True)
            _set_chance(chance)
            with frozen_statistics(model):
                closure().backward()  # type: ignore[no-untyped-call]
        finally:
            sam.restore()
    norm = float(nn.utils.clip_grad_norm_(parameters_of(optimizer), clip or math.inf))
    if not math.isfinite(value) or not math.isfinite(norm):
        return _skip(optimizer, value, norm)
    optimizer.step()
    return Step(value, False, norm)


def _skip(optimizer: Optimizer, loss: float, norm: float) -> Step:
    optimizer.zero_grad(set_to_none=True)
    return Step(loss, True, norm)


def _chance(optimizer: Optimizer) -> list[tuple[torch.device, Tensor]]:
    """States of the generators that dropout draws from: the processor's and that of each GPU with parameters."""
    devices = {parameter.device for parameter in parameters_of(optimizer) if parameter.is_cuda}
    states = [(device, torch.cuda.get_rng_state(device)) for device in sorted(devices, key=str)]
    return [(torch.device("cpu"), torch.get_rng_state()), *states]


def _set_chance(states: list[tuple[torch.device, Tensor]]) -> None:
    for device, state in states:
        if device.type == "cpu":
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, device)
