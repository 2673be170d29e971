"""Ray Train worker that trains its folds of trial after trial, assigned by the sweep's broker.

torch is imported inside functions: the driver, which only passes `serve` to Ray Train, does not need it.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import ray

from raypipe.backend.messages import SweepContext, TrialJob
from raypipe.core.errors import BrokenGpuError, InterruptedEpochError, UserError
from raypipe.training.result import FoldEpoch, Reply
from raypipe.trial.failures import OUT_OF_MEMORY, UNUSABLE_WORKERS, Failure, classify_failure

if TYPE_CHECKING:
    import torch
    from ray.actor import ActorHandle

    from raypipe.storage.run_store import RunStore
    from raypipe.training.store_loaders import StoreLoaders
    from raypipe.trial.fold_runner import FoldRunner

OVER_CHECK_SECONDS = 0.2
"""Seconds between two checks, during an epoch, whether the trial is over."""
KERNEL_ASSERTION = "device-side assert"
"""In the message of CUDA's error for it, such as of an index that is out of range."""


def serve(settings: dict[str, Any]) -> None:
    """Train trials on one worker until its group is closed (the train function of Ray Train).

    Parameters
    ----------
    settings
        ``start``, the `GroupStart` of the worker's group.
    """
    context, group = settings["start"].context, settings["start"].group
    # A dead broker means that the sweep is over or restarts with other workers.
    with contextlib.suppress(ray.exceptions.ActorDiedError):
        try:
            worker = _Worker(context, group)
        except UserError as error:
            _end_sweep(context.broker, group, error)
        else:
            worker.run()


def _end_sweep(broker: ActorHandle, group: str, error: UserError) -> None:
    """Report an error of the start, which ends the sweep, and wait until the group is closed.

    Ray Train would restart a worker that raises it, without end, and a worker that returns, a few times.
    """
    ray.get(broker.mark_broken.remote(group, str(error), UNUSABLE_WORKERS))
    ray.get(broker.next_job.remote(group, sys.maxsize))


class _Worker:
    """One worker of a group: registers with the broker and trains one job after another."""

    def __init__(self, context: SweepContext, group: str) -> None:
        import torch

        from raypipe.data.window_cache import open_windows
        from raypipe.training.device import worker_device
        from raypipe.training.store_loaders import StoreLoaders

        self.context, self.group, self.broker = context, group, context.broker
        train_context = ray.train.get_context()
        self.rank, world = train_context.get_world_rank(), train_context.get_world_size()
        torch.set_num_threads(max(1, int(context.cpus)))
        ray.get(self.broker.join.remote(group, self.rank))
        device = worker_device(context.gpus, ray.get_gpu_ids())  # after `join`, which counts starts that fail
        self.gpu_share = context.gpus or 1.0
        self.loaders = StoreLoaders(open_windows(context.windows), device, share=self.gpu_share)
        self.world, self.seq = world, 0
        self.run_store: RunStore | None = None

    def run(self) -> None:
        """Train jobs until the group is closed."""
        from raypipe.training.device import trim_heap

        while (job := ray.get(self.broker.next_job.remote(self.group, self.seq))) is not None:
            self.seq = job.seq
            _train_job(self.broker, self.group, job, self._fold_runner, self.loaders)
            trim_heap()

    def _fold_runner(self, job: TrialJob) -> FoldRunner:
        from raypipe.trial.autotune import ComputeOptions, choose_compute
        from raypipe.trial.failures import keeps_windows, read_retry
        from raypipe.trial.fold_runner import FoldRunner

        context, number = self.context, job.number
        run = self._open(job.run)
        config = run.config(number)
        loader = self.loaders.of(config.data.store)
        folds = range(self.rank, run.folds.n_folds, self.world)
        writer = f"{self.group}-worker-{self.rank}"
        loader.set_resident(keeps_windows(run, number))
        retry = read_retry(run, number)
        if retry is not None and retry.micro_batch:  # a measurement would run out of memory again
            stem = "direct" if context.stem == "direct" else "fourier"
            return FoldRunner(run, loader, number, folds, stem=stem, writer=writer)
        options = ComputeOptions(stem=context.stem, stack=context.stack)
        how = choose_compute(run, loader, config, folds, options, self._claim, self.gpu_share)
        return FoldRunner(run, loader, number, folds, stem=how.stem, stacked=how.stacked, writer=writer)

    def _open(self, where: str) -> RunStore:
        """Return the store of a job's run: the parts of an outer cross-validation come one after another."""
        from raypipe.storage.run_store import RunStore

        if self.run_store is None or self.run_store.where != where:
            self.run_store = RunStore.open(where)
        return self.run_store

    def _claim(self, key: str) -> bool:
        assert self.run_store is not None
        if ray.get(self.broker.is_over.remote(self.group, self.seq)):
            raise InterruptedEpochError
        return bool(ray.get(self.broker.claim.remote(self.group, f"{key} of {self.run_store.where}")))


def _train_job(
    broker: ActorHandle,
    group: str,
    job: TrialJob,
    make_runner: Callable[[TrialJob], FoldRunner],
    loaders: StoreLoaders,
) -> None:
    """Train a worker's folds of one trial; report every epoch, or the failure. It raises what `_end_job` raises."""
    checked = time.monotonic()

    def interrupted() -> bool:
        nonlocal checked
        if time.monotonic() - checked < OVER_CHECK_SECONDS:
            return False
        checked = time.monotonic()
        return bool(ray.get(broker.is_over.remote(group, job.seq)))

    def report(epoch: int, outcomes: Mapping[int, FoldEpoch]) -> Reply:
        reply: Reply = ray.get(broker.report_epoch.remote(group, job.seq, epoch, dict(outcomes)))
        return reply

    failure = None
    try:
        make_runner(job).train(job.done, report, interrupted)
    except InterruptedEpochError:
        pass
    except ray.exceptions.RayError:
        raise  # the broker has failed, not the trial
    except Exception as error:
        failure = classify_failure(error, resident=loaders.resident)
    _end_job(broker, group, job, failure, loaders.device)


def _end_job(broker: ActorHandle, group: str, job: TrialJob, failure: Failure | None, device: torch.device) -> None:
    """Report a trial's failure if there is one.

    Raises
    ------
    BrokenGpuError
        The process has lost its GPU and must end, for every later trial would fail in it. A trial whose kernel has
        asserted would do so again, and has failed. Any other error may be the GPU's: it counts as a worker's death.
    """
    from raypipe.training.device import broken_context, free_memory

    broken = broken_context(device)
    if broken is not None and failure is not None:
        failure = Failure("error", broken, failure.trace) if KERNEL_ASSERTION in broken else None
    elif failure is not None and failure.kind == OUT_OF_MEMORY:
        free_memory()  # before the next trial is assigned
    if failure is not None:
        ray.get(broker.report_failure.remote(group, job.seq, failure))
    if broken is not None:
        raise BrokenGpuError(f"trial {job.number}: {broken}")
