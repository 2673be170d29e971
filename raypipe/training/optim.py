"""AdamW in one kernel, without torch's compiler."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor, nn

_step = torch.no_grad()(unwrap(torch.optim.AdamW.step))


class AdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` with ``fused=True``, whose first use does not import `torch._dynamo`.

    torch's own methods are wrapped to keep its compiler out of them, and the wrappers import it to do so: 1.6 s of a
    processor, in every worker, before the first step of a sweep that compiles nothing. One kernel for all is a tenth
    of the time of the default on a CPU.
    """

    def __init__(self, parameters: Any, **options: Any) -> None:
        super().__init__(parameters, fused=True, **options)

    add_param_group = unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = unwrap(torch.optim.AdamW.zero_grad)
    state_dict = unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = unwrap(torch.optim.AdamW.load_state_dict)

    def step(self, closure: Any = None) -> Any:
        """Take a step; see `torch.optim.AdamW`."""
        for group in self.param_groups:
            for parameter in group["params"]:
                # The kernel reads memory in order, whatever the strides say.
                if parameter.grad is not None and parameter.grad.stride() != parameter.stride():
                    parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)
        return _step(self, closure)


def lr_factor(step: int, total: int, warmup: float, kind: str = "cosine", ends: Sequence[int] = ()) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then cosine decay, once or in cycles, or none.

    A function of the step alone, so a resumed run has no scheduler to restore. No step's rate is 0: the rise starts
    one notch above it and the decay would reach it at step `total`.

    Parameters
    ----------
    step
        From 0.
    total
        Steps of the whole training.
    warmup
        Share of `total` that rises; of `cyclic`, of the first cycle.
    kind
        `cosine` (Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5, without restarts), `cyclic` (with restarts) or
        `constant`.
    ends
        Of `cyclic`: for each cycle, the step after its last.
    """
    if step < 0 or total < 1 or not 0.0 <= warmup <= 1.0:
        raise ValueError(f"step {step}, total {total} or warm-up {warmup} is out of range")
    rising = round(warmup * (ends[0] if kind == "cyclic" else total))
    if step < rising:
        return (step + 1) / (rising + 1)
    if kind == "constant":
        return 1.0
    begun = rising
    if kind == "cyclic":
        total = next((end for end in ends if step < end), total)
        begun = max([rising, *(end for end in ends if end <= step)])
    done = min(1.0, (step - begun) / max(1, total - begun))
    return 0.5 * (1.0 + math.cos(math.pi * done))


class Ema:
    """Exponential moving average of a model's weights; buffers are copied, not averaged.

    Averaging would break integer buffers, and BatchNorm's statistics are averages already. The first steps count more
    than `decay` says, ``min(decay, (1 + t) / (10 + t))`` (TensorFlow's ExponentialMovingAverage), or a short training
    would keep a share of its random start.

    Parameters
    ----------
    model
        The live model.
    decay
        Per step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must be in [0, 1) (given {decay})")
        self.decay = decay
        self.steps = 0
        self._average = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the live model's weights, after its optimiser's step."""
        self.steps += 1
        share = 1.0 - min(self.decay, (1.0 + self.steps) / (10.0 + self.steps))
        live = model.state_dict()
        learned = [name for name, _ in model.named_parameters(remove_duplicate=False)]
        torch._foreach_lerp_([self._average[name] for name in learned], [live[name] for name in learned], share)
        for name in live.keys() - set(learned):
            self._average[name].copy_(live[name])

    def apply_to(self, model: nn.Module) -> None:
        """Overwrite a model's weights and buffers with the average."""
        model.load_state_dict(self._average)

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """Within it the model has the averaged weights; after it, bit for bit its own."""
        own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        try:
            self.apply_to(model)
            yield
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        """State to save; it holds copies, so later updates do not change it."""
        average: dict[str, Tensor] = {name: tensor.clone() for name, tensor in self._average.items()}
        return {"steps": self.steps, "average": average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state.

        Raises
        ------
        ValueError
            It is of another model.
        """
        average: dict[str, Tensor] = state["average"]
        if {n: t.shape for n, t in average.items()} != {n: t.shape for n, t in self._average.items()}:
            raise ValueError("this average is of another model")
        for name, tensor in average.items():
            self._average[name].copy_(tensor)
        self.steps = int(state["steps"])
