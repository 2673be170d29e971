"""Sharpness-aware minimisation around another optimiser: where it climbs to, and what it keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

Method = Literal["sam", "asam", "looksam", "msam"]

_TINY = 1e-12
_NORMS = (_BatchNorm, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)


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
        sharp = gradients_of(self.optimizer)
        product = sum(float((s * p).sum()) for s, p in zip(sharp, plain, strict=True))
        size = float(_norm(plain))
        along = product / size / size if size else 0.0
        self._look = list(torch._foreach_sub(sharp, torch._foreach_mul(list(plain), along)))
        self._since = 1

    @torch.no_grad()
    def add_look(self) -> None:
        """Add the kept part to the gradients, scaled to `alpha` times their norm."""
        gradients = gradients_of(self.optimizer)
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


def gradients_of(optimizer: Optimizer) -> list[Tensor]:
    """Gradients of an optimiser's parameters, those that have one."""
    return [parameter.grad for parameter in parameters_of(optimizer) if parameter.grad is not None]


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(torch.stack(list(torch._foreach_norm(list(tensors)))))
    return norm
