"""One optimiser step, plain or sharpness-aware, that leaves the model whole whatever happens inside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

Method = Literal["sam", "asam", "looksam", "msam"]
Steps = Generator[bool, float, "Step"]

_TINY = 1e-12
_NORMS = (_BatchNorm, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)


class Step(NamedTuple):
    """What a step did."""

    loss: float
    """Mean loss of the batch at the weights before the step (MSAM: at the perturbed ones, the only ones it sees)."""
    skipped: bool
    """A loss or a gradient was not finite: weights and optimiser are as they were."""
    grad_norm: float
    """Norm, before clipping, of the gradient that was stepped with."""


class Sam:
    """Weights moved uphill and back: the perturbation of SAM and its kin, around any optimiser.

    - ``sam`` (Foret et al. 2021, arXiv:2010.01412, eq. 2): ``w + rho g / |g|``.
    - ``asam`` (Kwon et al. 2021, arXiv:2102.11600, eq. 7): ``w + rho w^2 g / | |w| g |``, products element by element.
    - ``looksam`` (Liu et al. 2022, arXiv:2203.02714, algorithm 1): SAM at every `every`-th step, which also keeps the
      part ``g_v`` of its gradient that is orthogonal to the plain one; the steps between add
      ``alpha |g| / |g_v| g_v`` to their plain gradient and cost one pass.
    - ``msam`` (Becker et al. 2024, arXiv:2401.12033, algorithm 1): ``w - rho v / |v|`` with the optimiser's own
      momentum v (AdamW's first moment), so that one pass is all it costs; the first step is a plain one.

    Norms are over all perturbed parameters together.

    Parameters
    ----------
    optimizer
        The base optimiser. Learning rate, weight decay and schedule are its business.
    rho
        Radius.
    method
        One of the above.
    parameters
        Those that are perturbed; None for all of the optimiser's. `norm_parameters` gives SAM-ON.
    every, alpha
        Of LookSAM.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        rho: float,
        method: Method = "sam",
        parameters: Sequence[Tensor] | None = None,
        every: int = 5,
        alpha: float = 0.7,
    ) -> None:
        self.optimizer, self.rho, self.method = optimizer, rho, method
        self.every, self.alpha = every, alpha
        self._chosen = None if parameters is None else {id(parameter) for parameter in parameters}
        self._weights: list[Tensor] = []
        self._home: list[Tensor] = []
        self._since = 0
        self._look: list[Tensor] = []

    @property
    def perturbed(self) -> bool:
        """Whether the weights are away from home."""
        return bool(self._weights)

    @property
    def due(self) -> bool:
        """Whether the next step computes a second gradient."""
        if self.method == "msam":
            return False
        return self.method != "looksam" or not self._look or self._since >= self.every

    @torch.no_grad()
    def perturb(self) -> bool:
        """Save the weights and move them uphill, along their gradients or against the momentum.

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
        weights, climbs = self._directions()
        if not weights:
            return True
        # The _foreach functions are one kernel for all tensors; a loop over the Conformer's 85 starves a GPU.
        sizes = torch._foreach_abs(weights) if self.method == "asam" else ()
        if sizes:
            climbs = list(torch._foreach_mul(climbs, sizes))
        norm = float(_norm(climbs))
        if not math.isfinite(norm):
            return False
        self._weights, self._home = weights, [weight.clone() for weight in weights]
        if sizes:
            torch._foreach_mul_(climbs, sizes)
        sign = -1.0 if self.method == "msam" else 1.0
        torch._foreach_add_(weights, climbs, alpha=sign * self.rho / (norm + _TINY))
        return True

    def _directions(self) -> tuple[list[Tensor], list[Tensor]]:
        weights, climbs = [], []
        for weight in parameters_of(self.optimizer):
            if self._chosen is not None and id(weight) not in self._chosen:
                continue
            climb = self._momentum(weight) if self.method == "msam" else weight.grad
            if climb is not None:
                weights.append(weight)
                climbs.append(climb)
        return weights, climbs

    def _momentum(self, weight: Tensor) -> Tensor | None:
        state = self.optimizer.state.get(weight, {})
        found = state.get("exp_avg", state.get("momentum_buffer"))
        return found if isinstance(found, Tensor) else None

    @torch.no_grad()
    def restore(self) -> None:
        """Copy the saved weights back, bit for bit; does nothing when none are saved."""
        if self._weights:
            torch._foreach_copy_(self._weights, self._home)
        self._weights, self._home = [], []

    @torch.no_grad()
    def look(self, plain: Sequence[Tensor]) -> None:
        """Keep the part of the gradients (LookSAM: those of SAM) that is orthogonal to the `plain` ones."""
        sharp = _gradients(self.optimizer)
        product = sum(float((s * p).sum()) for s, p in zip(sharp, plain, strict=True))
        size = float(_norm(plain))
        along = product / size / size if size else 0.0
        self._look = list(torch._foreach_sub(sharp, torch._foreach_mul(list(plain), along)))
        self._since = 1

    @torch.no_grad()
    def add_look(self) -> None:
        """Add the kept part to the gradients, scaled to `alpha` times their norm."""
        gradients = _gradients(self.optimizer)
        size = self.alpha * float(_norm(gradients)) / (float(_norm(self._look)) + _TINY)
        torch._foreach_add_(gradients, self._look, alpha=size)
        self._since += 1

    def state_dict(self) -> dict[str, Any]:
        """State of the base optimiser, which is all there is between epochs (see `restart`).

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
        self.restart()

    def restart(self) -> None:
        """Forget what LookSAM carries from step to step: the next one looks anew.

        Called at the start of every epoch, it leaves nothing to save, and folds whose epochs differ in length look at
        the same steps of an epoch.
        """
        self._since, self._look = 0, []


def norm_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Parameters of the normalisation layers, which SAM-ON perturbs alone (Mueller et al. 2023, arXiv:2306.04226)."""
    layers = (module for module in model.modules() if isinstance(module, _NORMS))
    return [parameter for layer in layers for parameter in layer.parameters(recurse=False)]


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """All parameters of an optimiser, group by group."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _gradients(optimizer: Optimizer) -> list[Tensor]:
    return [parameter.grad for parameter in parameters_of(optimizer) if parameter.grad is not None]


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(torch.stack(list(torch._foreach_norm(list(tensors)))))
    return norm


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
    """One step as a generator, so that the steps of several models can share their passes (`raypipe.stack`).

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
    gradients = _gradients(optimizer)
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
    try:
        first = next(machine)
        while True:
            if not first and chance is not None:
                _set_chance(chance)
            # DDP's no_sync must hold the forward pass as well, else the backward pass averages all the same.
            unsynced = model.no_sync() if first and alone else nullcontext()  # type: ignore[operator]
            with unsynced, nullcontext() if first else frozen_statistics(model):
                loss = closure()
                (loss if scaler is None else scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]
            first = machine.send(float(loss.detach()))
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
