"""The start of a sweep's train worker. Ray is imported, not started; the broker is an object of this process."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
import ray.train
import torch

from raypipe.backend.broker import Broker
from raypipe.backend.messages import GroupStart, SweepContext
from raypipe.backend.worker import serve
from raypipe.trial.failures import UNUSABLE_WORKERS


class Remote:
    """Handle of a broker as Ray gives it, which closes the group when a worker waits for its end."""

    def __init__(self, broker: Broker) -> None:
        self.broker, self.asked = broker, []

    def __getattr__(self, name):
        async def remote(*arguments):
            self.asked.append(name)
            if name == "next_job":
                self.failure = self.broker._groups["g"].any_failure()
                await self.broker.close_group("g")
            return await getattr(self.broker, name)(*arguments)

        return SimpleNamespace(remote=remote)


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Serve as a worker that holds some GPUs; return the handle of its broker."""
    loop = asyncio.new_event_loop()
    broker = Broker()
    loop.run_until_complete(broker.open_group("g"))
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr(ray, "get", loop.run_until_complete)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: ["0"])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    handle = Remote(broker)

    def begin(gpus: float) -> Remote:
        settings = SweepContext(str(tmp_path / "gone"), handle, "", 1, 1, gpus, "auto", "auto", False)
        serve({"start": GroupStart(settings, "g", 0, "head", "raypipe-")})
        return handle

    yield begin
    loop.close()


@pytest.mark.parametrize(("gpus", "reason"), [(0.5, "--gpus-per-worker 0.5: no GPU for the worker on"), (0, "gone: ")])
def test_a_worker_that_cannot_start_ends_the_sweep_and_waits(start, monkeypatch, gpus, reason):
    """An error of the train function would be repeated by Ray Train without end."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    broker = start(gpus)
    assert broker.asked == ["join", "mark_broken", "next_job"]
    assert broker.failure.kind == UNUSABLE_WORKERS and reason in broker.failure.reason
    assert len(broker.failure.reason.splitlines()) == 1
