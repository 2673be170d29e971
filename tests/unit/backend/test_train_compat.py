"""The trainer's wait for its controller, which ends before the driver leaves Ray. Ray is imported, not started."""

from __future__ import annotations

import inspect
import threading
from types import SimpleNamespace

import pytest
import ray
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from raypipe.backend.train_compat import WorkerGroupTrainer


def test_a_wait_for_a_controller_ends_when_the_driver_leaves_ray(monkeypatch):
    left, waits = threading.Event(), []

    def wait(answers, timeout):
        waits.append(timeout)
        if len(waits) == 3:
            left.set()
        return [], answers

    monkeypatch.setattr(ray, "wait", wait)
    trainer = WorkerGroupTrainer.__new__(WorkerGroupTrainer)
    trainer.left = left
    with pytest.raises(RuntimeError, match="the driver leaves Ray"):
        trainer._await("answer")
    assert len(waits) == 3 and all(waits), "Ray ends a process that leaves it while a thread is in a longer call"


def test_an_answer_of_a_controller_is_returned(monkeypatch):
    ready = [False, True]
    monkeypatch.setattr(ray, "wait", lambda answers, timeout: (answers, []) if ready.pop(0) else ([], answers))
    monkeypatch.setattr(ray, "get", lambda answer: f"value of {answer}")
    trainer = WorkerGroupTrainer.__new__(WorkerGroupTrainer)
    assert trainer._await("answer") == "value of answer" and not ready


@pytest.mark.parametrize("spread_bytes", [0, 130])
def test_a_controller_is_beside_the_driver_or_requests_memory_on_any_node(monkeypatch, spread_bytes):
    options, killed = {}, []
    handle = SimpleNamespace(
        run=SimpleNamespace(remote=lambda: "run"), get_result=SimpleNamespace(remote=lambda: "result")
    )

    def remote(**given):
        options.update(given)
        return lambda controller: SimpleNamespace(remote=lambda **arguments: handle)

    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(ray, "kill", killed.append)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "mine"))
    trainer = WorkerGroupTrainer.__new__(WorkerGroupTrainer)
    trainer.policies, trainer.spread_bytes = {}, spread_bytes
    trainer.kill()
    monkeypatch.setattr(trainer, "_await", lambda answer: trainer.kill() or answer)
    assert trainer._initialize_and_run_controller() == "result"
    assert killed == [handle, handle], "also while it waits for a node"
    assert options["num_cpus"] == 0
    if spread_bytes:
        assert (options["memory"], options["scheduling_strategy"]) == (130, "SPREAD")
        assert "label_selector" not in options
    else:
        assert options["label_selector"] == {"ray.io/node-id": "mine"}
        assert "memory" not in options, "a small machine need not have so much left"


def test_the_controller_is_started_as_ray_starts_it():
    theirs = inspect.getsource(DataParallelTrainer._initialize_and_run_controller)
    ours = inspect.getsource(WorkerGroupTrainer._initialize_and_run_controller)
    for part in (
        "get_env_vars_to_propagate()",
        ".setdefault(",
        "num_cpus=0,",
        "RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()",
        "controller.run.remote()",
        "controller.get_result.remote()",
    ):
        assert part in theirs and part in ours, part
