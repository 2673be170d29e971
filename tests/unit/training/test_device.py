"""The choice of the device, with stand-ins for torch.cuda."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from raypipe.core.errors import UserError
from raypipe.training.device import (
    autocast_type,
    available_bytes,
    broken_context,
    missing_gpu,
    parse_device,
    require_gpu,
    trim_heap,
    worker_device,
)


@pytest.fixture
def gpu(monkeypatch):
    """Number 2 of three GPUs of 80 GB; returns the limits that are set."""
    limits = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *given: limits.append(given))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60 * 10**9, 80 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 10**9)
    return limits


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_a_worker_without_a_gpu_computes_on_the_cpu(gpu):
    assert worker_device(0, []) == torch.device("cpu")
    assert gpu == []


def test_a_worker_of_ray_is_limited_to_its_share_of_the_gpu(gpu):
    assert worker_device(1, ["2"]) == worker_device(0.25) == torch.device("cuda", 2)
    assert gpu == [], "a whole GPU, or the process of a caller"
    assert worker_device(0.25, ["2"]) == torch.device("cuda", 2)
    assert gpu == [(0.25, torch.device("cuda", 2))]


@pytest.mark.parametrize(
    ("build", "visible", "problem"),
    [
        (None, None, f"torch {torch.__version__} is built without CUDA"),
        ("13.0", None, "torch finds no GPU"),
        ("13.0", "", "torch finds no GPU (CUDA_VISIBLE_DEVICES is '')"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_one_line(no_gpu, monkeypatch, build, visible, problem):
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    problem = re.escape(problem)
    with pytest.raises(UserError, match=rf"^--gpus-per-worker 0\.5: no GPU for the worker on \S+: {problem}; install"):
        worker_device(0.5, ["0"])
    with pytest.raises(UserError, match=rf"^--device cuda: {problem} on \S+; use --device cpu$"):
        parse_device("cuda")
    assert worker_device(0) == parse_device("cpu") == torch.device("cpu")


def test_a_gpu_that_ray_has_not_given_is_one_line(gpu):
    with pytest.raises(UserError, match="Ray has given the worker none; install"):
        require_gpu(1, [])
    require_gpu(1, ["0"])
    require_gpu(1)
    assert missing_gpu() is None


def test_a_device_has_one_of_two_names(gpu):
    assert parse_device("cuda").type == "cuda"
    with pytest.raises(UserError, match=r"^--device tpu: must be cpu or cuda$"):
        parse_device("tpu")


def test_a_process_has_its_share_of_all_memory_and_no_more_than_is_free(gpu):
    device = torch.device("cuda", 2)
    assert available_bytes(device, 0.25) == 20 * 10**9
    assert available_bytes(device) == 61 * 10**9


def test_a_gpu_that_cuda_has_taken_from_the_process_is_noticed(monkeypatch):
    """After such an error every call raises it again."""

    def broken(device):
        raise RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronous")

    card = torch.device("cuda", 2)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert broken_context(card) is None
    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    assert broken_context(card) == "CUDA error: device-side assert triggered"
    assert broken_context(torch.device("cpu")) is None, "CUDA is not touched"


@pytest.mark.parametrize(
    ("capability", "hip", "expected"),
    [
        ((7, 0), None, torch.float32),  # V100
        ((7, 5), None, torch.float32),  # T4, RTX 20
        ((8, 0), None, torch.bfloat16),
        ((12, 0), None, torch.bfloat16),
        ((9, 0), "6.4", torch.bfloat16),
    ],
)
def test_auto_is_bfloat16_where_a_gpu_computes_it_and_does_not_emulate_it(gpu, monkeypatch, capability, hip, expected):
    given = []
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: given.append(device) or capability)
    # What torch asks for its own answer: a tensor of bfloat16 can be made on every GPU.
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=capability[0]))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    card = torch.device("cuda", 1)
    assert autocast_type("auto", card) == expected
    assert given == ([] if hip else [card]), "the GPU that computes, not the current one"
    assert autocast_type("bfloat16", card) == torch.bfloat16, "as was asked for"


def test_windows_that_no_network_normalises_keep_their_digits(monkeypatch):
    """A signal of microvolts beside an offset of 20 mV has nothing left in bfloat16."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    card = torch.device("cuda")
    assert autocast_type("auto", card) == autocast_type("auto", card, "window") == torch.bfloat16
    assert autocast_type("auto", card, "none") == autocast_type("auto", torch.device("cpu")) == torch.float32
    assert autocast_type("bfloat16", card, "none") == torch.bfloat16, "as was asked for"
    x = 20_000.0 + torch.sin(torch.arange(100.0))
    assert x.to(torch.bfloat16).std() == 0.0 < x.std()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library cannot give memory back")
def test_free_memory_of_the_heap_is_given_back():
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    small = [bytearray(100_000) for _ in range(800)]
    for part in small:
        part[:] = b"x" * len(part)
    kept = small[-1]  # the heap would shrink by itself if its end were free
    full = resident()
    del small, part
    trim_heap()
    assert resident() < full - 60e6 and kept
