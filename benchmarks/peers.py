"""Alternatives to raypipe for the benchmarks: braindecode's models, a plain SAM and plain training steps.

They need braindecode, which raypipe does not: ``pip install -c constraints.txt braindecode==1.8.1`` in a separate
environment, or as docs/models.md says. Packages that braindecode imports, but the models here do not use, may be
missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from raypipe.core.braindecode_import import stand_ins
from raypipe.core.network_config import TcnConfig

BDTCN_BLOCKS = 5


def braindecode_models() -> Any:
    """Return the module `braindecode.models`.

    Raises
    ------
    SystemExit
        braindecode is not installed.
    """
    try:
        with stand_ins("braindecode"):
            import braindecode.models as models
    except ImportError as error:
        raise SystemExit(
            f"{error}\nthis benchmark compares with braindecode: "
            "pip install -c constraints.txt --no-deps braindecode==1.8.1, and its requirements"
        ) from None
    return models


def missing() -> str:
    """Return why braindecode cannot be compared with; nothing if it can."""
    try:
        braindecode_models()
    except SystemExit as reason:
        return f"braindecode is not installed ({str(reason).splitlines()[0]})"
    return ""


def conformer(n_channels: int, n_times: int, n_outputs: int = 1) -> nn.Module:
    """Return braindecode's EEGConformer with the paper's sizes."""
    model: nn.Module = braindecode_models().EEGConformer(n_chans=n_channels, n_times=n_times, n_outputs=n_outputs)
    return model


def shallow(n_channels: int, n_times: int, n_outputs: int = 1) -> nn.Module:
    """Return braindecode's ShallowFBCSPNet with the paper's sizes."""
    model: nn.Module = braindecode_models().ShallowFBCSPNet(n_chans=n_channels, n_times=n_times, n_outputs=n_outputs)
    return model


def eegnet(n_channels: int, n_times: int, n_outputs: int = 1) -> nn.Module:
    """Return braindecode's EEGNet with the paper's sizes and constraints."""
    sizes = {"n_chans": n_channels, "n_times": n_times, "n_outputs": n_outputs}
    model: nn.Module = braindecode_models().EEGNet(**sizes, final_layer_with_constraint=True)
    return model


def bdtcn(n_channels: int, n_times: int, n_outputs: int = 1) -> nn.Module:
    """Return braindecode's BDTCN of `BDTCN_BLOCKS` blocks with as many filters as raypipe's `tcn`.

    Its kernel is 3, not 5 as by default, since 200 samples are too few for five blocks of that.
    """
    sizes = {"n_chans": n_channels, "n_times": n_times, "n_outputs": n_outputs}
    model: nn.Module = braindecode_models().BDTCN(
        **sizes, n_filters=TcnConfig().filters, n_blocks=BDTCN_BLOCKS, kernel_size=3
    )
    return model


def eegnex(n_channels: int, n_times: int, n_outputs: int = 1) -> nn.Module:
    """Return EEGNeX, the network of the challenge's start kit."""
    model: nn.Module = braindecode_models().EEGNeX(n_chans=n_channels, n_times=n_times, n_outputs=n_outputs, sfreq=100)
    return model


@contextmanager
def default_settings() -> Iterator[None]:
    """Give torch its default settings within the context; raypipe trains on a GPU deterministically, without TF32."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.allow_tf32
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=True)
        torch.backends.cudnn.allow_tf32 = before[1]


def sam_step(closure: Callable[[], Tensor], optimizer: torch.optim.Optimizer, rho: float = 0.05) -> float:
    """Take a step of SAM as in its tutorials: climb, go back, step. BatchNorm and dropout masks are not handled."""
    optimizer.zero_grad()
    loss = closure()
    loss.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    with torch.no_grad():
        norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in parameters]))
        climbs = [p.grad * (rho / (norm + 1e-12)) for p in parameters]
        for parameter, climb in zip(parameters, climbs, strict=True):
            parameter.add_(climb)
    optimizer.zero_grad()
    closure().backward()
    with torch.no_grad():
        for parameter, climb in zip(parameters, climbs, strict=True):
            parameter.sub_(climb)
    optimizer.step()
    return float(loss.detach())


def plain_step(closure: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> float:
    """Take one AdamW step."""
    optimizer.zero_grad()
    loss = closure()
    loss.backward()
    optimizer.step()
    return float(loss.detach())
