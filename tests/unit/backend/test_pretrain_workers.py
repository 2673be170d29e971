"""Errors of pretraining workers, and a Ctrl-C while they are waited for. Ray is imported, not started."""

from __future__ import annotations

import signal
import threading
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
from ray.exceptions import RayTaskError
from ray.train import FailureConfig, WorkerGroupError
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.exceptions import ControllerError

from raypipe.backend.pretrain_workers import (
    MAX_RESTARTS,
    PretrainWorkers,
    RestartPolicy,
    error_line,
    join_by_file,
    permanent_error,
)
from raypipe.backend.torch_config import GpuTorchConfig
from raypipe.core.errors import NonFiniteError, UserError


def test_workers_wait_for_the_probes_of_the_first_one_however_long_they_take(monkeypatch, tmp_path):
    made = {}
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **options: made.update(options))
    group = SimpleNamespace(id=SimpleNamespace(hex=lambda: "ab"))
    monkeypatch.setattr("ray.util.get_current_placement_group", lambda: group)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    join_by_file(str(tmp_path), 0, 2)
    assert made["timeout"] >= timedelta(days=1) and made["world_size"] == 2


def died(*causes: Exception) -> WorkerGroupError:
    wrapped = [
        UserExceptionWithTraceback(cause, f"Traceback:\n  ...\n{type(cause).__name__}: {cause}") for cause in causes
    ]
    return WorkerGroupError("...", dict(enumerate(wrapped)))


@pytest.mark.parametrize("cause", [UserError("other data"), NonFiniteError("no number")])
def test_an_error_that_would_recur_ends_pretraining(cause):
    error = died(RuntimeError("Connection closed by peer"), cause)
    assert permanent_error(error) is cause
    assert RestartPolicy(FailureConfig(MAX_RESTARTS)).make_decision(error) is FailureDecision.RAISE


def test_a_worker_without_its_gpu_ends_pretraining_before_the_process_group(monkeypatch):
    """The workers' check comes before NCCL's, and its error travels as one of the controller."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    started = []
    monkeypatch.setattr(_TorchBackend, "on_start", lambda self, group, config: started.append(group))

    class Group:
        def __init__(self, gpus):
            self.gpus = gpus

        def get_resources_per_worker(self):
            return {"CPU": 1, "GPU": self.gpus}

        def execute(self, function, *given):
            try:
                function(*given)
            except UserError as error:
                raise RayTaskError("_require_gpu", "Traceback", error) from error

    monkeypatch.setattr("raypipe.backend.torch_config.ray.get_gpu_ids", lambda: ["0"])
    config = GpuTorchConfig(backend="nccl")
    config.backend_cls().on_start(Group(0), config)
    assert len(started) == 1
    with pytest.raises(RayTaskError) as raised:
        config.backend_cls().on_start(Group(1), config)
    assert len(started) == 1
    error = ControllerError(raised.value)
    assert RestartPolicy(FailureConfig(MAX_RESTARTS)).make_decision(error) is FailureDecision.RAISE
    found = permanent_error(error)
    assert isinstance(found, UserError) and str(found).startswith("--gpus-per-worker 1: no GPU for the worker on ")


def test_workers_that_die_of_another_error_are_restarted_a_limited_number_of_times():
    error = died(RuntimeError("Connection closed by peer"))
    policy = RestartPolicy(FailureConfig(MAX_RESTARTS))
    decisions = [policy.make_decision(error) for _ in range(MAX_RESTARTS + 1)]
    assert decisions == [FailureDecision.RETRY] * MAX_RESTARTS + [FailureDecision.RAISE]
    assert permanent_error(error) is None
    assert error_line(error) == "RuntimeError: Connection closed by peer"
    assert error_line(ValueError("one\ntwo")) == "one"


def test_after_a_ctrl_c_the_workers_are_still_waited_for():
    """Otherwise Ray would be shut down while a thread still waits, and would end the process without a message."""
    waits, interrupted, released = threading.Event(), threading.Event(), threading.Event()

    def interrupt(*_):
        if not interrupted.is_set():
            interrupted.set()
            raise KeyboardInterrupt

    class Trainer:
        def fit(self):
            waits.wait(60)
            # Repeated: CPython misses a signal that arrives between its last check and the lock's system call.
            while not interrupted.wait(0.1):
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            released.wait(60)
            raise RuntimeError("killed")

    before = signal.signal(signal.SIGINT, interrupt)
    workers = PretrainWorkers.__new__(PretrainWorkers)
    workers._start(Trainer())
    try:
        with pytest.raises(KeyboardInterrupt):
            waits.set()
            workers.wait(60)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not workers.wait(0)
    released.set()
    assert workers.wait(60)
    assert error_line(workers.error) == "killed"
