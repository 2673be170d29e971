"""The Conformer's stem: two convolutions that form one linear map, computed in the frequency domain or as one layer.

This file needs torch (2.2 or later) and nothing else: submissions contain it unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

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
        return frequencies_first(z_BCN)

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
            w_KX = w_FK.T @ v_GFC.permute(1, 2, 0).flatten(1)  # the kernels of all channels, before their transform
            quick = self.training and torch.is_grad_enabled() and not z.is_cuda
            correlate = Correlation.apply if quick else Correlation.forward
            y_BGT: Tensor = correlate(z, w_KX, self.basis_MK, self.length)
        return y_BGT[..., : self.n_times - self.kernel + 1] + bias_G[:, None]


def frequencies_first(z_BCN: Tensor) -> Tensor:
    """Return a spectrum (B, C, N) as (N, B, C); torch copies a transposed matrix faster than permuted axes."""
    b, c, n = z_BCN.shape
    return z_BCN.reshape(b * c, n).t().contiguous().view(n, b, c)


class Correlation(torch.autograd.Function):
    """Correlation of windows with kernels by their spectra.

    torch's own derivative of the complex product would conjugate the windows' spectrum in memory, in each pass.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(z_NBC: Tensor, w_KX: Tensor, basis_MK: Tensor, length: int) -> Tensor:
        """Return the circular correlation (B, G, length).

        Parameters
        ----------
        z_NBC
            Spectrum of the windows, of N frequencies.
        w_KX
            Kernels of K taps; X are C channels x G outputs.
        basis_MK
            See `Stem._make_basis`; M = 2 N.
        length
            Samples of the transform.
        """
        n, b, c = z_NBC.shape
        w_NCG = torch.complex(*(basis_MK @ w_KX).chunk(2)).view(n, c, -1)
        y_NX = torch.bmm(z_NBC, w_NCG).view(n, -1)
        y_BGN = y_NX.t().contiguous().view(b, -1, n)
        y_BGT: Tensor = torch.fft.irfft(y_BGN, n=length)
        return y_BGT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Save what the backward pass needs."""
        z_NBC, w_KX, basis_MK, length = inputs
        ctx.length = length
        ctx.save_for_backward(z_NBC, w_KX, basis_MK)

    @staticmethod
    def backward(ctx: Any, g_BGT: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        """Return the gradients of the spectrum and of the kernels (K, X)."""
        z_NBC, w_KX, basis_MK = ctx.saved_tensors
        n, _, c = z_NBC.shape
        # Frequencies but 0 and the last one stand for two, of both signs.
        share_N1 = torch.full((n, 1), 2.0 / ctx.length, dtype=basis_MK.dtype, device=basis_MK.device)
        share_N1[0] = share_N1[n - 1] = 1.0 / ctx.length
        basis_JN = torch.cat([share_N1 * part_NK for part_NK in basis_MK.chunk(2)], 1).T
        g_NBG = frequencies_first(torch.fft.rfft(g_BGT)).conj().resolve_conj()
        conjugate_NX = torch.bmm(z_NBC.transpose(1, 2), g_NBG).view(n, -1)
        # Parts of complex numbers are copied slowly, so both are multiplied by both.
        parts_JX2 = (basis_JN @ torch.view_as_real(conjugate_NX).flatten(1)).view(len(basis_JN), -1, 2)
        g_w_KX = parts_JX2[: len(w_KX), :, 0] - parts_JX2[len(w_KX) :, :, 1]
        if not ctx.needs_input_grad[0]:
            return None, g_w_KX, None, None
        w_NCG = torch.complex(*(basis_MK @ w_KX).chunk(2)).view(n, c, -1)
        return share_N1[..., None] * torch.bmm(g_NBG, w_NCG.transpose(1, 2)).conj(), g_w_KX, None, None
