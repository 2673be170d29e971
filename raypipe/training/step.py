"""One optimiser step, plain or sharpness-aware, that leaves the model whole whatever happens inside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from raypipe.training.sam import Sam, gradients_of, parameters_of

Steps = Generator[bool, float, "Step"]


class Step(NamedTuple):
    """What a step did."""

    loss: float
    """Mean loss of the batch at the weights before the step (MSAM: at the perturbed ones, the only ones it sees)."""
    skipped: bool
    """A loss or a gradient was not finite: weights and optimiser are as they were."""
    grad_norm: float
    """Norm, before clipping, of the gradient that was stepped with."""


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


def steps(
    optimizer: Optimizer,
    sam: Sam | None = None,
    clip: float = 0.0,
    *,
    scaler: torch.amp.GradScaler | None = None,
    agree: Callable[[bool], bool] = lambda fine: fine,
) -> Steps:
    """One step as a generator, so that the steps of several models can share their passes (`stacked_trainer`).

    It yields whenever it needs gradients at the parameters as they are: True for the first pass, False for SAM's
    second, which leaves BatchNorm's statistics alone. It is sent the loss of that pass, and returns the `Step`. Closed
    or thrown into between its passes, it restores the weights.

    Parameters
    ----------
    optimizer, sam, clip
        See `optimizer_step`.
    scaler
        Of float16: the gradients are those of the scaled loss, the loss that is sent is not.
    agree
        Makes one answer of all workers' (all of them must step or skip).
    """
    if sam is not None and sam.optimizer is not optimizer:
        raise ValueError("sam was built around another optimizer")
    optimizer.zero_grad(set_to_none=True)
    ahead = sam is not None and sam.method == "msam"
    kept: list[Tensor] = []
    try:
        if sam is not None and ahead:
            sam.perturb()
        value = last = yield True
        if sam is not None and sam.due:
            plain = _unscaled(optimizer, scaler)
            if not agree(math.isfinite(value) and sam.perturb()):
                sam.restore()
                return _skip(optimizer, scaler, value, math.nan)
            # Cloned: the second pass overwrites them where gradients are views of DDP's buckets.
            kept = [gradient.clone() for gradient in plain] if sam.method == "looksam" else []
            optimizer.zero_grad(set_to_none=True)
            last = yield False
            sam.restore()
            _unscale(optimizer, scaler)
        else:
            if sam is not None and ahead:
                sam.restore()
            _unscale(optimizer, scaler)
            if sam is not None and sam.method == "looksam":
                sam.add_look()
    finally:
        if sam is not None:
            sam.restore()
    norm = float(nn.utils.clip_grad_norm_(parameters_of(optimizer), clip or math.inf))
    if not agree(math.isfinite(last) and math.isfinite(norm)):
        return _skip(optimizer, scaler, value, norm)
    if sam is not None and kept:
        sam.look(kept)  # clipping changed the length alone, which is scaled anyway when the part is added
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    return Step(value, False, norm)


def _unscaled(optimizer: Optimizer, scaler: torch.amp.GradScaler | None) -> list[Tensor]:
    """Gradients of the first pass, divided in place. GradScaler's own unscaling is left for the one that steps."""
    gradients = gradients_of(optimizer)
    if scaler is not None:
        torch._foreach_mul_(gradients, 1.0 / scaler.get_scale())
    return gradients


def _unscale(optimizer: Optimizer, scaler: torch.amp.GradScaler | None) -> None:
    if scaler is not None:
        scaler.unscale_(optimizer)


def _skip(optimizer: Optimizer, scaler: torch.amp.GradScaler | None, loss: float, norm: float) -> Step:
    if scaler is not None:
        scaler.update(scaler.get_scale() * scaler.get_backoff_factor())
        # A scale that is set leaves the count of good steps in a row, which an overflow ends.
        scaler.load_state_dict(scaler.state_dict() | {"_growth_tracker": 0})
    optimizer.zero_grad(set_to_none=True)
    return Step(loss, True, norm)


def optimizer_step(
    closure: Callable[[], Tensor],
    model: nn.Module,
    optimizer: Optimizer,
    sam: Sam | None = None,
    clip: float = 0.0,
    *,
    scaler: torch.amp.GradScaler | None = None,
    m_sharpness: Literal["worker", "global"] = "worker",
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
        Whose BatchNorm layers are meant; may be wrapped for data-parallel training, then `closure` calls the wrapper.
    optimizer
        `sam`'s base optimiser, if there is a `sam`.
    sam
        None for a plain step.
    clip
        Largest norm of the gradient that is stepped with; 0 clips nothing.
    scaler
        For float16 autocast. Gradients are unscaled before any norm is taken, the scale is updated once a step, and
        a first pass that overflows skips the step and lowers the scale.
    m_sharpness
        Of data-parallel SAM. `worker`: each worker climbs by the gradient of its own share of the batch (Foret et al.
        2021, sec. 4.1), so the first pass is not averaged; `global`: all climb by the averaged one. The weights that
        are stepped from, and the step, are the same on all workers. LookSAM, whose later steps reuse what the first
        pass gave, is always `global`.
    """
    parallel = isinstance(model, DistributedDataParallel)
    alone = parallel and m_sharpness == "worker" and sam is not None and sam.due and sam.method != "looksam"
    machine = steps(optimizer, sam, clip, scaler=scaler, agree=_all_agree if parallel else lambda fine: fine)
    chance = _chance(optimizer) if sam is not None and sam.due else None

    def compute(first: bool) -> float:
        if not first and chance is not None:
            _set_chance(chance)
        # DDP's no_sync must hold the forward pass as well, else the backward pass averages all the same.
        unsynced = model.no_sync() if first and alone else nullcontext()  # type: ignore[operator]
        with unsynced, nullcontext() if first else frozen_statistics(model):
            loss = closure()
            (loss if scaler is None else scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    return walk(machine, compute)


def walk(machine: Steps, compute: Callable[[bool], float]) -> Step:
    """Take the step of one `steps`.

    Parameters
    ----------
    machine
        The step.
    compute
        Told whether a pass is the first, leaves the gradients at the parameters as they are and returns the loss.
    """
    try:
        first = next(machine)
        while True:
            first = machine.send(compute(first))
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    finally:
        machine.close()


def _all_agree(fine: bool) -> bool:
    import torch.distributed as dist

    device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
    answer = torch.tensor(float(fine), device=device)
    dist.all_reduce(answer, op=dist.ReduceOp.MIN)
    return bool(answer.item())


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
