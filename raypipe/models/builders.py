"""Builders of the models, by name.

This file needs torch (2.2 or later) and the other files of its folder that a submission contains, unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

if __package__:
    from raypipe.models.closed_form import split_bank
    from raypipe.models.conformer import Conformer
    from raypipe.models.covariance import Covariance
    from raypipe.models.eegnet import EEGNet
    from raypipe.models.linear import Linear
    from raypipe.models.network import Network
    from raypipe.models.own import OwnNetwork
    from raypipe.models.program import ProgramNetwork
    from raypipe.models.shallow import Shallow
    from raypipe.models.sizes import eegnet_sizes, fitting_kernels, kernel_sizes
    from raypipe.models.tcn import Tcn
    from raypipe.models.vit import ViT
else:  # in a submission, where the files are in one folder
    from closed_form import split_bank  # type: ignore[import-not-found,no-redef,unused-ignore]
    from conformer import Conformer  # type: ignore[import-not-found,no-redef,unused-ignore]
    from covariance import Covariance  # type: ignore[import-not-found,no-redef,unused-ignore]
    from eegnet import EEGNet  # type: ignore[import-not-found,no-redef,unused-ignore]
    from linear import Linear  # type: ignore[import-not-found,no-redef,unused-ignore]
    from network import Network  # type: ignore[import-not-found,no-redef,unused-ignore]
    from program import ProgramNetwork  # type: ignore[import-not-found,no-redef,unused-ignore]
    from shallow import Shallow  # type: ignore[import-not-found,no-redef,unused-ignore]
    from sizes import (  # type: ignore[import-not-found,no-redef,unused-ignore]
        eegnet_sizes,
        fitting_kernels,
        kernel_sizes,
    )
    from tcn import Tcn  # type: ignore[import-not-found,no-redef,unused-ignore]
    from vit import ViT  # type: ignore[import-not-found,no-redef,unused-ignore]


def _conformer(options: dict[str, Any], shape: tuple[int, int, int], sfreq: float) -> Network:
    kernel, pool, stride = kernel_sizes(sfreq, fitting_kernels(shape[1], sfreq, options.pop("kernels")))
    return Conformer(*shape, kernel=kernel, pool=pool, stride=stride, **options)


def _eegnet(options: dict[str, Any], shape: tuple[int, int, int], sfreq: float) -> Network:
    kernel, pool = eegnet_sizes(sfreq, options.pop("kernels"), shape[1])
    return EEGNet(*shape, kernel=kernel, pool=pool, **options)


def _shallow(options: dict[str, Any], shape: tuple[int, int, int], sfreq: float) -> Network:
    kernel, pool, stride = kernel_sizes(sfreq, fitting_kernels(shape[1], sfreq, options.pop("kernels")))
    return Shallow(*shape, kernel=kernel, pool=pool, stride=stride, **options)


def _tcn(options: dict[str, Any], shape: tuple[int, int, int], sfreq: float) -> Network:
    return Tcn(*shape, **options)


def _vit(options: dict[str, Any], shape: tuple[int, int, int], sfreq: float) -> Network:
    return ViT(*shape, width=options.pop("filters"), **options)


def _without_fit(options: dict[str, Any], shape: tuple[int, int, int]) -> dict[str, Any]:
    """Leave out what only a fit uses, and the bins of classes, which are no numbers, and of several values."""
    rest = {name: value for name, value in options.items() if name not in ("standardise", "crops")}
    return rest if shape[2] == 1 else rest | {"bins": 0}


def _covariance(options: dict[str, Any], shape: tuple[int, int, int], sfreq: float) -> Network:
    bank, rest = split_bank(_without_fit(options, shape))
    return Covariance(*shape, sfreq, bank=bank, **rest)


def _linear(options: dict[str, Any], shape: tuple[int, int, int], sfreq: float) -> Network:
    bank, rest = split_bank(_without_fit(options, shape))
    return Linear(*shape, sfreq, bank=bank, **rest)


BUILDERS: dict[str, Callable[[dict[str, Any], tuple[int, int, int], float], Network]] = {
    "conformer": _conformer,
    "eegnet": _eegnet,
    "shallow": _shallow,
    "tcn": _tcn,
    "vit": _vit,
    "covariance": _covariance,
    "linear": _linear,
}
"""Builders by the value of ``model/name``; they take the ``model/`` parameters, (C, T, n_outputs) and Hz."""


def build_network(
    options: Mapping[str, Any],
    *,
    n_channels: int,
    n_times: int,
    n_outputs: int,
    sfreq: float,
    program: Mapping[str, Any] | None = None,
) -> Network:
    """Build the network for windows (n_channels, n_times) at `sfreq` Hz; weights are drawn from torch's generator.

    Parameters
    ----------
    options
        The ``model/`` part of a trial's configuration.
    program
        Of a user's network, which then needs no code (`raypipe.models.program`).

    Raises
    ------
    Exception
        A network of a user's cannot be made.
    """
    if program is not None:
        return ProgramNetwork(n_channels, n_times, n_outputs, program=program, norm=options["norm"])
    if options["name"] not in BUILDERS:
        return OwnNetwork(n_channels, n_times, n_outputs, sfreq=sfreq, **options)
    rest = {name: value for name, value in options.items() if name != "name"}
    return BUILDERS[options["name"]](rest, (n_channels, n_times, n_outputs), sfreq)
