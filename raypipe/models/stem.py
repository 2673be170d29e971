"""The Conformer's stem: two convolutions that form one linear map, computed in the frequency domain or as one layer.

This file needs torch (2.2 or later) and nothing else: submissions contain it unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

ALGORITHMS = ("fourier", "direct", "reference")


def fast_length(n: int) -> int:
    """Return the smallest even number >= `n` whose prime factors are 2, 3, 5 and 7."""
    n += n % 2
    while True:
        rest = n
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 2


class Stem(nn.Module):
    """The Conformer's two convolutions: temporal (1 -> F, 1 x K), then spatial (F -> F, C x 1), with biases.

    There is no nonlinearity between them, so together they are one linear map of the window,
    ``y[b,g,t] = sum_ck W[g,c,k] x[b,c,t+k] + b[g] + sum_fc v[g,f,c] a[f]`` with ``W[g,c,k] = sum_f v[g,f,c] w[f,k]``.
    Parameters keep the two layers' names and shapes. The attribute `algorithm`, which may be changed at any time,
    selects how the map is computed. The results differ by rounding only:

    - ``fourier``: W is computed at each frequency from the transformed temporal kernels, and one complex product per
      frequency replaces the correlation. No output wraps around, since no sum uses a sample after T - 1.
    - ``direct``: W, then one 1-D convolution.
    - ``reference``: the two layers, one after the other (an intermediate of B x F x C x T).

    Parameters
    ----------
    n_channels, n_times
        C and T, the shape of a window.
    filters
        F, of both layers.
    kernel
        K, in samples.
    algorithm
        One of the above.

    Raises
    ------
    ValueError
        The kernel is longer than the window.
    """

    def __init__(
        self, n_channels: int, n_times: int, *, filters: int = 40, kernel: int = 25, algorithm: str = "fourier"
    ) -> None:
        super().__init__()
        if kernel > n_times:
            raise ValueError(f"a window of {n_times} samples is shorter than the kernel of {kernel}")
        self.n_channels, self.n_times, self.kernel = n_channels, n_times, kernel
        self.algorithm = algorithm
        self.length = fast_length(n_times)
        self.temporal = nn.Conv2d(1, filters, (1, kernel))
        self.spatial = nn.Conv2d(filters, filters, (n_channels, 1))
        self.basis_MK: Tensor
        self._make_basis()

    def _make_basis(self) -> None:
        """Compute the DFT of K taps at N = length // 2 + 1 frequencies, conjugated (for a correlation).

        The first N rows are its real part, the next N the imaginary one: one matrix product computes both.

        It is no buffer, since a buffer that is converted to float64 keeps the rounding errors of float32. It is
        computed again when the module's dtype changes, and kept when `torch.func` moves a copy to the meta device.
        """
        weight = self.temporal.weight
        if weight.is_meta:
            return
        frequency_N1 = torch.arange(self.length // 2 + 1)[:, None]
        part_NK = (frequency_N1 * torch.arange(self.kernel)) % self.length
        angle_NK = part_NK.double() * (2 * math.pi / self.length)
        self.basis_MK = torch.cat((torch.cos(angle_NK), torch.sin(angle_NK))).to(weight)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Stem:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._make_basis()
        return self

    def prepare(self, x_BCT: Tensor) -> Tensor:
        """Return the windows' spectrum (frequencies, B, C) for `fourier`, else the windows (B, C, T) unchanged."""
        if self.algorithm != "fourier":
            return x_BCT
        z_BCN: Tensor = torch.fft.rfft(x_BCT.to(self.temporal.weight.dtype), n=self.length)
        return z_BCN.permute(2, 0, 1).contiguous()

    def forward(self, x_BCT: Tensor, *, prepared: bool = False) -> Tensor:
        """Filter windows (B, C, T), or the result of `prepare`, to (B, F, T - K + 1)."""
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)} (given {self.algorithm!r})")
        if self.algorithm == "reference":
            filtered_BGT: Tensor = self.spatial(self.temporal(x_BCT.unsqueeze(1))).squeeze(2)
            return filtered_BGT
        z = x_BCT if prepared else self.prepare(x_BCT)
        assert self.temporal.bias is not None and self.spatial.bias is not None
        w_FK = self.temporal.weight[:, 0, 0]
        v_GFC = self.spatial.weight[..., 0]
        bias_G = self.spatial.bias + v_GFC.sum(2) @ self.temporal.bias
        if self.algorithm == "direct":
            return F.conv1d(z, torch.einsum("gfc,fk->gck", v_GFC, w_FK), bias_G)
        with torch.autocast(z.device.type, enabled=False):  # complex bfloat16 does not exist
            v_FX = v_GFC.permute(1, 2, 0).flatten(1)
            w_NX = torch.complex(*((self.basis_MK @ w_FK.T) @ v_FX).chunk(2))
            y_NBG = torch.bmm(z, w_NX.view(len(w_NX), self.n_channels, -1))
            y_BGT: Tensor = torch.fft.irfft(y_NBG.permute(1, 2, 0), n=self.length)
        return y_BGT[..., : self.n_times - self.kernel + 1] + bias_G[:, None]
