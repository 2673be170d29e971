"""A sweep's train worker: its start, and the loss of its GPU. Ray is not started; the broker is an object here."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
import ray.train
import torch

from raypipe.backend.broker import MAX_RESTARTS, Broker
from raypipe.backend.messages import GroupStart, SweepContext
from raypipe.backend.worker import _Worker, serve
from raypipe.core.errors import BrokenGpuError, InterruptedEpochError
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


class Cuda:
    """Stand-in for CUDA in a process: once it is broken, every call raises the error."""

    def __init__(self) -> None:
        self.broken = ""

    def call(self, *_) -> None:
        if self.broken:
            raise RuntimeError(f"{self.broken}\nCUDA kernel errors might be reported asynchronously")


class Sweep:
    """Trials 0 to 2 on the broker of this process, as the driver assigns them, and their ends."""

    def __init__(self, broker: Broker) -> None:
        self.broker, self.left, self.ends = broker, [0, 1, 2], []

    def __getattr__(self, name):
        async def remote(*arguments):
            group = self.broker._groups["g"]
            if name == "next_job" and group.open_job(0) is None:
                if group.job is not None:
                    self.ends.append(group.failure)
                if self.left:
                    await self.broker.assign("g", "run", self.left.pop(0), 0, 0)
                else:
                    await self.broker.close_group("g")
            return await getattr(self.broker, name)(*arguments)

        return SimpleNamespace(remote=remote)


@pytest.fixture
def train(monkeypatch):
    """Train the trials with workers that are replaced when they end with an error.

    `first` is called when the first trial is trained; then it is trained as the others are. Returned are
    the failures of the trials, those that were trained, and the errors that workers ended with.
    """
    loop = asyncio.new_event_loop()
    monkeypatch.setattr(ray, "get", loop.run_until_complete)

    def trains(first):
        sweep, trained, deaths = Sweep(Broker()), [], []
        loop.run_until_complete(sweep.broker.open_group("g"))

        def runner(job):
            def end():
                trained.append(job.number)
                ray.get(sweep.mark_scored.remote("g", 1, 1, True))

            def train(done, report, interrupted):
                if job.number == 0:
                    first(cuda, end)
                cuda.call()
                end()

            return SimpleNamespace(train=train)

        while not deaths or deaths[-1]:
            cuda = Cuda()
            monkeypatch.setattr(torch.cuda, "synchronize", cuda.call)
            worker = _Worker.__new__(_Worker)
            worker.broker, worker.group, worker.seq, worker._fold_runner = sweep, "g", 0, runner
            worker.loaders = SimpleNamespace(resident=False, device=torch.device("cuda", 0))
            ray.get(sweep.join.remote("g", 0))
            try:
                deaths.append(worker.run())
            except BrokenGpuError as error:
                deaths.append(str(error))
                ray.get(sweep.report_worker_death.remote("g"))
        return sweep.ends, trained, deaths[:-1]

    yield trains
    loop.close()


ASSERTION = "CUDA error: device-side assert triggered"
FAULT = "CUDA error: unspecified launch failure"


@pytest.mark.parametrize("shown", [ASSERTION, "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate`"])
def test_a_trial_whose_kernel_asserts_fails_and_those_after_it_train_in_a_new_process(train, shown):
    def first(cuda, end):
        cuda.broken = ASSERTION
        raise RuntimeError(shown)

    (failure, *others), trained, deaths = train(first)
    assert (failure.kind, failure.reason) == ("error", ASSERTION) and "in first" in failure.trace
    assert others == [None, None] and trained == [1, 2] and deaths == [f"trial 0: {ASSERTION}"]


def test_a_trial_on_a_gpu_that_has_a_fault_once_goes_on_in_a_new_process(train):
    faults = [FAULT]

    def first(cuda, end):
        cuda.broken = faults.pop() if faults else ""

    assert train(first) == ([None, None, None], [0, 1, 2], [f"trial 0: {FAULT}"])


def test_a_trial_whose_workers_lose_their_gpu_again_and_again_fails_and_the_others_train(train):
    def first(cuda, end):
        cuda.broken = FAULT

    (failure, *others), trained, deaths = train(first)
    assert failure.kind == "lost-worker" and len(deaths) == MAX_RESTARTS
    assert others == [None, None] and trained == [1, 2]


def test_a_gpu_that_is_lost_by_a_trial_that_has_ended_is_no_fault_of_the_next(train):
    """Nothing waits for the last kernels of a trial that is stopped."""

    def first(cuda, end):
        end()
        cuda.broken = ASSERTION
        raise InterruptedEpochError

    assert train(first) == ([None, None, None], [0, 1, 2], [f"trial 0: {ASSERTION}"])


def test_an_error_of_the_code_leaves_the_process_as_it_is(train):
    def first(cuda, end):
        raise KeyError("x")

    (failure, *others), trained, deaths = train(first)
    assert failure.reason == "KeyError: 'x'" and trained == [1, 2] and others == [None, None] and not deaths
