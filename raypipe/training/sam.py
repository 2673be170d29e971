"""Sharpness-aware minimisation around another optimiser: how the weights are perturbed, and what is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from raypipe.core.config import SamConfig
from raypipe.training import torch_compat
from raypipe.training.optim import norm_parameters, parameters_of

Method = Literal["sam", "asam", "looksam", "msam"]

_TINY = 1e-12


class Sam:
    """Perturb the weights before a gradient is computed, and restore them before the step (see `step.take_step`).

    - ``sam`` (Foret et al. 2021, arXiv:2010.01412, eq. 2): ``w + rho g / |g|``.
    - ``asam`` (Kwon et al. 2021, arXiv:2102.11600, eq. 7): ``w + rho w^2 g / | |w| g |``, products element by element.
    - ``looksam`` (Liu et al. 2022, arXiv:2203.02714, algorithm 1): SAM at every `every`-th step, which also keeps the
      part ``g_v`` of its gradient that is orthogonal to the plain one. The steps between add
      ``alpha |g| / |g_v| g_v`` to their plain gradient and need one pass.
    - ``msam`` (Becker et al. 2024, arXiv:2401.12033, algorithm 1): ``w - rho v / |v|`` with the optimiser's own
      momentum v (AdamW's first moment), so that one pass is enough. The first step is a plain one.

    Norms are over all perturbed parameters together. Parameters may lack a gradient in some steps, as with LayerDrop.
    LookSAM keeps a part for those that have one in both passes. A later step adds it to the same parameters, if they
    have a gradient again, and takes both norms over these.

    Parameters
    ----------
    optimizer
        The base optimiser. Learning rate, weight decay and schedule are its own.
    rho
        Radius of the perturbation.
    method
        One of the above.
    parameters
        Parameters that are perturbed; None for all of the optimiser's. `optim.norm_parameters` gives SAM-ON.
    every, alpha
        LookSAM: steps from one second pass to the next, and length of the kept part relative to the plain gradient.
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
        self._saved: list[Tensor] = []
        self._plain: dict[Tensor, Tensor] = {}  # gradients by parameter
        # By parameter; the same tensors from step to step, since a CUDA graph has their addresses.
        self._orthogonal: dict[Tensor, Tensor] = {}
        self._kept_of: list[Tensor] = []  # parameters that the last second gradient kept a part of
        self._kept, self._steps_since = False, 0

    @property
    def perturbed(self) -> bool:
        """Return whether the weights are the perturbed ones."""
        return bool(self._weights)

    @property
    def needs_second_pass(self) -> bool:
        """Return whether the next step computes a second gradient."""
        if self.method == "msam":
            return False
        return self.method != "looksam" or not self._kept or self._steps_since >= self.every

    @torch.no_grad()
    def perturb(self) -> Tensor:
        """Save the weights and move them along their gradients, or against the momentum.

        Return whether the gradients are finite. If not, nothing has moved on a CPU; on a GPU, which does not wait to
        know, the weights are of no use until `restore`.

        Raises
        ------
        RuntimeError
            The weights are perturbed already.
        """
        if self._weights:
            raise RuntimeError("the weights are perturbed already; restore() comes first")
        weights, directions = self._directions()
        if self.method == "looksam":
            self._plain = self._gradients()
        if not weights:
            return torch.tensor(True)
        sizes = torch_compat.foreach_abs(weights) if self.method == "asam" else ()
        if sizes:
            directions = list(torch_compat.foreach_mul(directions, sizes))
        norm = _norm(directions)
        finite = norm.isfinite()
        if not (norm.is_cuda or finite):
            return finite
        self._weights, self._saved = weights, [torch.empty_like(weight) for weight in weights]
        torch_compat.foreach_copy_(self._saved, weights)
        if sizes:
            torch_compat.foreach_mul_(directions, sizes)
        radius = -self.rho if self.method == "msam" else self.rho
        torch_compat.add_scaled_(weights, directions, radius / (norm.double() + _TINY))
        return finite

    def _directions(self) -> tuple[list[Tensor], list[Tensor]]:
        weights, directions = [], []
        for weight in parameters_of(self.optimizer):
            if self._chosen is not None and id(weight) not in self._chosen:
                continue
            direction = self._momentum(weight) if self.method == "msam" else weight.grad
            if direction is not None:
                weights.append(weight)
                directions.append(direction)
        return weights, directions

    def _gradients(self) -> dict[Tensor, Tensor]:
        return {weight: weight.grad for weight in parameters_of(self.optimizer) if weight.grad is not None}

    def _momentum(self, weight: Tensor) -> Tensor | None:
        state = self.optimizer.state.get(weight, {})
        momentum = state.get("exp_avg", state.get("momentum_buffer"))
        return momentum if isinstance(momentum, Tensor) else None

    @torch.no_grad()
    def restore(self) -> None:
        """Copy the saved weights back, bit for bit; do nothing if none are saved."""
        if self._weights:
            torch_compat.foreach_copy_(self._weights, self._saved)
        self._weights, self._saved = [], []

    def forget(self) -> None:
        """Take the weights for unperturbed: what was captured for a CUDA graph was not computed."""
        self._weights, self._saved, self._plain = [], [], {}

    @torch.no_grad()
    def keep_orthogonal(self) -> None:
        """For LookSAM, keep the part of SAM's gradients that is orthogonal to those that `perturb` moved along.

        The gradients may be clipped before: their length does not matter, since the part is scaled when it is added.
        """
        if self.method != "looksam":
            return
        found = self._gradients()
        self._kept_of = [weight for weight in found if weight in self._plain]
        sharp, plain = [found[w] for w in self._kept_of], [self._plain[w] for w in self._kept_of]
        self._plain = {}
        if not sharp:
            return
        product = torch.stack([(s * p).sum() for s, p in zip(sharp, plain, strict=True)]).double().sum()
        square = _norm(plain).double().square()
        along = torch.where(square > 0.0, product / square, 0.0)
        for weight in self._kept_of:
            if weight not in self._orthogonal:
                self._orthogonal[weight] = torch.empty_like(found[weight])
        orthogonal = [self._orthogonal[weight] for weight in self._kept_of]
        torch_compat.foreach_copy_(orthogonal, sharp)
        torch_compat.add_scaled_(orthogonal, plain, -along)

    @torch.no_grad()
    def add_orthogonal(self) -> None:
        """For LookSAM, add the kept part to the gradients, scaled to `alpha` times their norm."""
        if self.method != "looksam":
            return
        found = self._gradients()
        both = [weight for weight in self._kept_of if weight in found]
        if not both:
            return
        gradients, orthogonal = [found[weight] for weight in both], [self._orthogonal[weight] for weight in both]
        size = self.alpha * _norm(gradients).double() / (_norm(orthogonal).double() + _TINY)
        torch_compat.add_scaled_(gradients, orthogonal, size)

    def count(self, *, second_pass: bool) -> None:
        """Count a step that was taken, for LookSAM."""
        self._kept = self._kept or second_pass
        self._steps_since = 1 if second_pass else self._steps_since + 1

    def restart(self) -> None:
        """Forget what LookSAM keeps from step to step, so that the next step computes a second gradient.

        It is called at the start of every epoch. So there is nothing to save between epochs, and folds whose epochs
        differ in length compute second gradients at the same steps.
        """
        self._kept, self._steps_since, self._plain = False, 0, {}


def make_sam(config: SamConfig, optimizer: Optimizer, model: nn.Module) -> Sam | None:
    """Build what a configuration asks for; None for plain steps."""
    if config.name == "none":
        return None
    return Sam(
        optimizer,
        rho=config.rho,
        method=config.name,
        parameters=norm_parameters(model) if config.only == "norm" else None,
        every=config.every,
        alpha=config.alpha,
    )


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(torch.stack(list(torch_compat.foreach_norm(list(tensors)))))
    return norm
