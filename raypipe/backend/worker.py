"""One Ray Train worker: serves its share of trial after trial from the sweep's desk.

torch is imported where it is used: the driver, which only hands `serve` over, does without.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ray

from raypipe.backend.messages import SweepContext, TrialJob
from raypipe.core.errors import InterruptedEpochError
from raypipe.training.result import Reply
from raypipe.trial.failures import OUT_OF_MEMORY, classify_failure

if TYPE_CHECKING:
    from raypipe.trial.fold_runner import FoldRunner

# Seconds between two looks at whether the trial has moved on while an epoch is trained.
GLANCE = 0.2


def serve(order: dict[str, Any]) -> None:
    """Serve trials on one Ray Train worker until its group ends (the train function)."""
    with contextlib.suppress(ray.exceptions.ActorDiedError):  # the desk is gone: the sweep is over, or begins again
        _serve(order)


def _serve(order: dict[str, Any]) -> None:
    import torch

    from raypipe.data.window_cache import open_windows
    from raypipe.storage.run_store import RunStore
    from raypipe.training.loader import WindowLoader
    from raypipe.trial.autotune import ComputeOptions, choose_compute
    from raypipe.trial.failures import read_retry
    from raypipe.trial.fold_runner import FoldRunner

    crew: SweepContext = order["crew"]
    name: str = order["group"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(max(1, int(crew.cpus)))
    device = "cuda" if crew.gpus and torch.cuda.is_available() else "cpu"
    placement = ray.util.get_current_placement_group()
    ray.get(crew.desk.join.remote(name, rank, placement.id.hex() if placement else None))
    run, feed = RunStore.open(crew.run), WindowLoader(open_windows(crew.windows), device)
    wishes = ComputeOptions(stem=crew.stem, stack=crew.stack)  # type: ignore[arg-type]
    folds = range(rank, run.folds.n_folds, world)

    def claim(key: str) -> bool:
        if ray.get(crew.desk.moved.remote(name, seen)):
            raise InterruptedEpochError
        return bool(ray.get(crew.desk.claim.remote(name, key)))

    who = f"{name}-worker-{rank}"

    def share(number: int) -> FoldRunner:
        if read_retry(run, number):  # a measurement would fill the memory again
            stem = "direct" if crew.stem == "direct" else "fourier"
            return FoldRunner(run, feed, number, folds, stem=stem, who=who)
        how = choose_compute(
            run, feed, run.config(number), folds, wishes, claim, crew.gpus if device == "cuda" else 1.0
        )
        return FoldRunner(run, feed, number, folds, stem=how.stem, stacked=how.stacked, who=who)

    seen = 0
    while (job := ray.get(crew.desk.next_job.remote(name, seen))) is not None:
        seen = job.seq
        _serve_job(crew, name, job, share)


def _serve_job(crew: SweepContext, name: str, job: TrialJob, share: Callable[[int], FoldRunner]) -> None:
    looked = time.monotonic()

    def interrupted() -> bool:
        nonlocal looked
        if time.monotonic() - looked < GLANCE:
            return False
        looked = time.monotonic()
        return bool(ray.get(crew.desk.moved.remote(name, job.seq)))

    def report(epoch: int, outcomes: Any) -> Reply:
        reply: Reply = ray.get(crew.desk.post.remote(name, job.seq, epoch, dict(outcomes)))
        return reply

    try:
        share(job.number).train(job.done, report, interrupted)
    except InterruptedEpochError:
        return
    except ray.exceptions.RayError:
        raise  # the desk's, not the trial's
    except Exception as error:
        failure = classify_failure(error)
    else:
        return
    if failure.kind == OUT_OF_MEMORY:
        _make_room()
    ray.get(crew.desk.fail.remote(name, job.seq, failure))


def _make_room() -> None:
    """Give back what a failed trial held on to, before a slot hands over the next."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
