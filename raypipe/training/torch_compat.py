"""Private API of torch that raypipe uses, in one place; a test checks that all of it exists in the installed torch.

`torch.func` is public. Shipped networks (`raypipe.models`) cannot import this module; they override ``_apply`` of
`torch.nn.Module`, read ``_schema`` of operators, and use nothing else that is private.
"""

from __future__ import annotations

from inspect import unwrap

import torch
from torch import Tensor
from torch._ops import OpOverload as OpOverload
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm as InstanceNorm

__all__ = ["BatchNorm", "InstanceNorm"]

# One kernel for a list of tensors. A loop over the Conformer's 85 parameters would leave a GPU idle most of the time.
foreach_abs = torch._foreach_abs
foreach_mul = torch._foreach_mul
foreach_mul_ = torch._foreach_mul_
foreach_add_ = torch._foreach_add_
foreach_copy_ = torch._foreach_copy_
foreach_norm = torch._foreach_norm
foreach_lerp_ = torch._foreach_lerp_
eigh_operator = torch.ops.aten._linalg_eigh.default
"""What `torch.linalg.eigh` is in an exported program."""


def add_scaled_(tensors: list[Tensor], others: list[Tensor], scale: Tensor) -> None:
    """Add `scale` (0-dim, float64) times `others` to `tensors`; on a GPU without waiting for its value."""
    if scale.is_cuda:
        foreach_add_(tensors, list(foreach_mul(others, scale.to(tensors[0].dtype))))
    else:
        foreach_add_(tensors, others, alpha=float(scale))


# torch wraps its optimisers' methods to keep the compiler out of them, and the wrappers import the compiler: 1.6 s of
# CPU time in every worker, before the first step of a sweep that compiles nothing.
adamw_step = torch.no_grad()(unwrap(torch.optim.AdamW.step))
adamw_add_param_group = unwrap(torch.optim.AdamW.add_param_group)
adamw_zero_grad = unwrap(torch.optim.AdamW.zero_grad)
adamw_state_dict = unwrap(torch.optim.AdamW.state_dict)
adamw_load_state_dict = unwrap(torch.optim.AdamW.load_state_dict)

GROWTH_TRACKER = "_growth_tracker"
"""Key of `torch.amp.GradScaler`'s state that counts the good steps in a row."""


def lower_scale(scaler: torch.amp.GradScaler) -> None:
    """Lower the scale after an overflow, and start to count good steps from 0 again."""
    scaler.update(scaler.get_scale() * scaler.get_backoff_factor())
    # A scale that is given to `update` does not reset the count, which an overflow must do.
    scaler.load_state_dict(scaler.state_dict() | {GROWTH_TRACKER: 0})
