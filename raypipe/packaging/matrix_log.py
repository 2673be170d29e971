"""Logarithms of positive definite matrices by matrix products alone, for graphs whose format has no eigenvalues.

Square roots bring the eigenvalues close to one another, where a polynomial is the logarithm: inverse scaling and
squaring (Higham 2008, Functions of Matrices, sec. 11.5). A root is found by the coupled Newton-Schulz iteration
(eq. 6.35), scaled by what is known of the smallest eigenvalue (Chen & Chow 2014, "A stable scaling of Newton-Schulz for
improving the sign function computation of a Hermitian matrix"). The number of steps follows from that bound alone.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from raypipe.models.covariance import Covariance

MIN_SHARE = 1e-9
"""Smallest share of the trace that eigenvalues may have. There, rounding errors of the input have the size of 1e-7."""
_MIN_EIGENVALUE = 1e-12
"""Eigenvalues of a matrix whose mean eigenvalue is smaller, as `covariance.map_eigenvalues` has it."""
_MAX_RATIO = 4.0
"""Ratio of the largest eigenvalue to the smallest that the polynomial is for."""
_DEGREE, _BLOCK = 24, 5
"""Degree of the polynomial, whose error is below 1e-12, and the powers of its matrix that are computed."""
_CONVERGED = 1e-9
"""Distance of eigenvalues from 1 at which one step more, whose error is quadratic, is exact."""


class ProductLog:
    """The logarithm of symmetric matrices (..., D, D), each of whose eigenvalues has a minimum share of the trace.

    Parameters
    ----------
    share
        That share.

    Raises
    ------
    ValueError
        It is below `MIN_SHARE`, or above 1.
    """

    def __init__(self, share: float) -> None:
        if not MIN_SHARE <= share <= 1.0:
            raise ValueError(f"expected a share from {MIN_SHARE:g} to 1, got {share:g}")
        n_roots = math.ceil(math.log2(max(1.0, -math.log(share) / math.log(_MAX_RATIO))))
        self.roots = [newton_schulz_scales(share ** (0.5**number)) for number in range(1, n_roots + 1)]
        least = share ** (0.5**n_roots)
        self.centre, self.reach = (1.0 + least) / 2.0, max((1.0 - least) / 2.0, 1e-3)
        of_chebyshev = np.polynomial.chebyshev.chebinterpolate(
            lambda t_K: np.log(self.centre + self.reach * t_K), _DEGREE
        )
        self.coefficients: list[float] = np.polynomial.chebyshev.cheb2poly(of_chebyshev).tolist()

    def __call__(self, c: Tensor) -> Tensor:
        """Return the logarithms."""
        identity = torch.eye(c.shape[-1], dtype=c.dtype, device=c.device)
        mean = c.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
        c = torch.where(mean < _MIN_EIGENVALUE, _MIN_EIGENVALUE * identity, c)
        trace = mean.clamp_min(_MIN_EIGENVALUE) * c.shape[-1]
        y = c / trace
        for scales in self.roots:
            y = _root(y, identity, scales)
        log = 2.0 ** len(self.roots) * self._polynomial((y - self.centre * identity) / self.reach, identity)
        return (log + log.mT) / 2.0 + trace.log() * identity

    def _polynomial(self, t: Tensor, identity: Tensor) -> Tensor:
        """Evaluate the polynomial of matrices by blocks (Paterson & Stockmeyer 1973, doi:10.1137/0202007)."""
        powers = [identity, t]
        while len(powers) <= _BLOCK:
            powers.append(powers[-1] @ t)
        blocks = [
            sum(value * power for value, power in zip(self.coefficients[start:], powers[:_BLOCK], strict=False))
            for start in range(0, _DEGREE + 1, _BLOCK)
        ]
        out = torch.as_tensor(blocks.pop())
        while blocks:
            out = out @ powers[_BLOCK] + blocks.pop()
        return out


def newton_schulz_scales(least: float) -> list[float]:
    """Return the factors of the steps by which numbers from `least` to 1 converge to 1 under x <- f x (3 - f² x²) / 2.

    A factor gives the smallest and the largest number the same value after the step, which is then the smallest.
    """
    factors = []
    while 1.0 - least > _CONVERGED:
        factors.append(math.sqrt(3.0 / (1.0 + least + least**2)))
        scaled = factors[-1] * least
        least = 0.5 * scaled * (3.0 - scaled**2)
    return [*factors, 1.0]


def _root(y: Tensor, identity: Tensor, scales: list[float]) -> Tensor:
    """Return the square roots of matrices with eigenvalues up to 1; z converges to their inverses."""
    z: Tensor | None = None
    for factor in scales:
        product = y if z is None else z @ y
        step = 0.5 * factor * (3.0 * identity - factor**2 * product)
        y, z = y @ step, step if z is None else step @ z
    root: Tensor = (y + y.mT) / 2.0
    return root


def smallest_share(model: Covariance) -> float:
    """Return a lower bound of the eigenvalues whose logarithms a model takes, as a share of the trace.

    Shrinkage alone gives each a share of shrinkage / D. Whitening by W divides it by the squared condition of W at
    most.
    """
    share = model.shrinkage / model.dim
    if share and model.whitening_GDD is not None:  # without shrinkage it may be no symmetric one (`riemann.whitening`)
        values_GD = torch.linalg.eigvalsh(model.whitening_GDD)
        share *= float((values_GD[:, 0] / values_GD[:, -1]).min().clamp_min(0.0)) ** 2
    return share
