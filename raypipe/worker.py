"""One Ray Train worker: serves its share of trial after trial from the sweep's desk.

torch is imported where it is used: the slot, which only hands `serve` over, does without.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import ray

from raypipe.errors import InterruptedEpochError
from raypipe.messages import Crew, Job, Reply, describe

if TYPE_CHECKING:
    from raypipe.share import Share

# Seconds between two looks at whether the trial has moved on while an epoch is trained.
GLANCE = 0.2


def serve(order: dict[str, Any]) -> None:
    """Serve trials on one Ray Train worker until the slot ends (the train function)."""
    import torch

    from raypipe.share import Share
    from raypipe.store import RunStore
    from raypipe.windows import WindowStore

    crew: Crew = order["crew"]
    name: str = order["slot"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(max(1, int(crew.cpus)))
    device = "cuda" if crew.gpus and torch.cuda.is_available() else "cpu"
    group = ray.util.get_current_placement_group()
    ray.get(crew.desk.join.remote(name, rank, os.getpid(), group.id.hex() if group else None))
    run, windows = RunStore.open(crew.run), WindowStore(crew.windows)
    seen = 0
    while (job := ray.get(crew.desk.next_job.remote(name, seen))) is not None:
        seen = job.seq
        folds = range(rank, run.folds.n_folds, world)
        _serve_job(crew, name, job, Share(run, windows, job.number, folds, device))


def _serve_job(crew: Crew, name: str, job: Job, share: Share) -> None:
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
        share.train(job.done, report, interrupted)
    except InterruptedEpochError:
        return
    except ray.exceptions.RayError:
        raise  # the desk is gone: so is the sweep
    except Exception as error:
        ray.get(crew.desk.fail.remote(name, job.seq, describe(error)))
