"""The device that computes: every choice between a CPU and a GPU is made here."""

from __future__ import annotations

import ctypes
import gc
import os
import socket
from collections.abc import Sequence
from typing import cast

import torch

from raypipe.core.config import TrialConfig
from raypipe.core.errors import UserError, first_line
from raypipe.training.determinism import use_deterministic_algorithms

VISIBLE = "CUDA_VISIBLE_DEVICES"
DEVICES = ("cpu", "cuda")
"""Values of ``--device``."""


def missing_gpu() -> str | None:
    """Return why torch can use no GPU in this process, or None if it can."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    visible = os.environ.get(VISIBLE)
    return "torch finds no GPU" + ("" if visible is None else f" ({VISIBLE} is '{visible}')")


def require_gpu(gpus: float, ids: Sequence[object] | None = None) -> None:
    """Check that a worker that holds a GPU can compute on it: it would train on the CPU while GPU-hours are counted.

    Parameters
    ----------
    gpus
        GPUs that the worker holds.
    ids
        The GPUs that Ray has given to the worker; None outside Ray.

    Raises
    ------
    UserError
        It cannot.
    """
    problem = missing_gpu()
    if problem is None and ids is not None and not ids:
        problem = "Ray has given the worker none"
    if gpus and problem is not None:
        raise UserError(
            f"--gpus-per-worker {gpus:g}: no GPU for the worker on {socket.gethostname()}: {problem}; "
            "install a torch that supports its GPU, or use --gpus-per-worker 0"
        )


def worker_device(gpus: float, ids: Sequence[object] | None = None) -> torch.device:
    """Return the device of a worker, and limit a worker of Ray to its share of the GPU's memory.

    Allocations beyond the share fail in the worker that makes them, so that the others keep their part. The device has
    its index, since other threads of the process have another current device.

    Parameters
    ----------
    gpus, ids
        As in `require_gpu`.

    Raises
    ------
    UserError
        The worker holds a GPU and cannot compute on it.
    """
    require_gpu(gpus, ids)
    if not gpus:
        return torch.device("cpu")
    device = torch.device("cuda", torch.cuda.current_device())
    if gpus < 1 and ids is not None:
        torch.cuda.set_per_process_memory_fraction(gpus, device)
    return device


def parse_device(name: str) -> torch.device:
    """Return the device that ``--device`` names; a GPU computes float32 there, not TF32.

    Raises
    ------
    UserError
        It is neither ``cpu`` nor ``cuda``, or torch can use no GPU.
    """
    if name not in DEVICES:
        raise UserError(f"--device {name}: must be {' or '.join(DEVICES)}")
    if name == "cuda" and (problem := missing_gpu()) is not None:
        raise UserError(f"--device cuda: {problem} on {socket.gethostname()}; use --device cpu")
    device = torch.device(name)
    use_deterministic_algorithms(device)
    return device


def default_training_device() -> torch.device:
    """Return the device of training in this process for which none is named: a GPU if there is one."""
    return torch.device("cpu" if missing_gpu() else "cuda")


def autocast_type(precision: str, device: torch.device, norm: str = "channel") -> torch.dtype:
    """Return the type of the forward passes; `auto` is bfloat16 on a GPU that computes it, else float32.

    It is float32 for a network that takes windows as they are (`norm` none): of microvolts beside an offset of
    millivolts, bfloat16 keeps none.
    """
    if precision == "auto":
        return torch.bfloat16 if norm != "none" and _computes_bfloat16(device) else torch.float32
    return cast(torch.dtype, getattr(torch, precision))


def pass_type(config: TrialConfig, device: torch.device) -> torch.dtype:
    """Return the type of a trial's forward passes (`autocast_type`)."""
    norm = getattr(config.model, "norm", "none")  # models in closed form have none
    return autocast_type(config.precision, device, norm)


def _computes_bfloat16(device: torch.device) -> bool:
    """Return whether a GPU has bfloat16; `torch.cuda.is_bf16_supported` counts those that emulate it, slowly."""
    if device.type != "cuda":
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


def broken_context(device: torch.device) -> str | None:
    """Return the error by which this process has lost its GPU, in one line; None if it can use it, or has none.

    After a failed assertion of a kernel, an access beyond its memory or a fault of the GPU, every later call of CUDA in
    the process raises the error again, whatever it computes.
    """
    if device.type != "cuda":
        return None
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        return first_line(error)
    return None


def free_memory() -> None:
    """Give memory that is no longer used back to the GPU, if this process uses one."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def trim_heap() -> None:
    """Give free memory of the heap back to the system, where the C library (glibc) can; it is kept otherwise."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def available_bytes(device: torch.device, share: float = 1.0) -> int:
    """Return the bytes of a GPU that this process may use: no more than its share of all, nor than what is free.

    What the process has already allocated counts as free.
    """
    free, total = torch.cuda.mem_get_info(device)
    return int(min(share * total, free + torch.cuda.memory_reserved(device)))
