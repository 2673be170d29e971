"""Kinds of failure, by the error that was raised."""

from __future__ import annotations

import errno
import re

import numpy as np
import pytest
import ray.exceptions
import torch

from raypipe.core.errors import DiskFullError, NonFiniteError, StorageError, UserError, out_of_memory
from raypipe.trial.failures import Failure, classify_failure


def failure_of(raising) -> Failure:
    try:
        raising()
    except Exception as error:
        return classify_failure(error)
    raise AssertionError("nothing was raised")


def raising(error):
    def broken():
        raise error

    return broken


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (DiskFullError("no room\nat all"), "disk-full", "no room"),
        (StorageError("s3://b: has not answered"), "storage", "has not answered"),
        (NonFiniteError("fold 1: not finite"), "non-finite", "fold 1: not finite"),
        (UserError("loss/name: not for classes"), "bad-configuration", "loss/name: not for classes"),
        (KeyError("x"), "error", "KeyError: 'x'"),
        (
            RuntimeError("mat1 and mat2 cannot be multiplied"),
            "error",
            "RuntimeError: mat1 and mat2 cannot be multiplied",
        ),
        (MemoryError(), "out-of-memory", "no memory left on the host"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out-of-memory", r"no memory left on the host: .*Cannot"),
        (OSError(errno.EIO, "Input/output error"), "error", "OSError: .*Input/output error"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore"),
            "out-of-memory",
            "GPU: CUDA out",
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "out-of-memory", "GPU: CUDA error"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "out-of-memory", "GPU: cuDNN error"),
        (RuntimeError("GET was unable to find an engine to execute this computation"), "out-of-memory", "GPU: GET was"),
        (ray.exceptions.OutOfMemoryError("Task was killed\nMore"), "out-of-memory", "host: Task was killed"),
    ],
)
def test_kinds(error, kind, reason):
    found = failure_of(raising(error))
    assert found.kind == kind
    assert re.search(reason, found.reason) and "\n" not in found.reason


@pytest.mark.parametrize(
    "allocate",
    [lambda: torch.empty(2**50), lambda: np.empty(2**50), lambda: bytearray(2**60)],
    ids=["torch", "np", "py"],
)
def test_allocators_that_really_fail(allocate):
    found = failure_of(allocate)
    assert found.kind == "out-of-memory"
    assert found.reason.startswith("no memory left on the host")
    assert "in <lambda>" in found.trace


def test_a_failure_has_the_end_of_its_traceback():
    found = failure_of(raising(ValueError("deep down")))
    assert "in broken" in found.trace and found.trace.endswith("ValueError: deep down\n")
    assert not out_of_memory(ValueError("out of memory"))
