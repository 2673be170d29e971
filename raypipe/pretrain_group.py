"""Pretraining by several workers of Ray Train, which share every batch; workers that die are started again."""

from __future__ import annotations

from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig

from raypipe.groups import Workers

LIVES = 20
"""Times that the group is started again before pretraining stops; the same command goes on."""


class Pretrainers(Workers):
    """A group with a process group of torch's."""


def fit(where: str, layout: dict[str, Any], scratch: str) -> Exception | None:
    """Train until all encoders are there; what went wrong, if it did."""
    gpus = float(layout["gpus"])
    trainer = Pretrainers(
        train,
        train_loop_config={"where": where, "cpus": layout["cpus"]},
        backend_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=int(layout["workers"]),
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": layout["cpus"], **({"GPU": gpus} if gpus else {})},
        ),
        run_config=RunConfig(
            name="pretrain", storage_path=layout.get("storage") or scratch, failure_config=FailureConfig(LIVES)
        ),
    )
    trainer.grows = bool(layout.get("address"))
    try:
        trainer.fit()
    except Exception as error:
        return error
    return None


def train(order: dict[str, Any]) -> None:
    """One worker (the train function)."""
    import torch

    from raypipe.pretrain_work import work

    context = ray.train.get_context()
    torch.set_num_threads(max(1, int(order["cpus"])))
    device = "cuda" if torch.cuda.is_available() and ray.get_gpu_ids() else "cpu"
    work(order["where"], rank=context.get_world_rank(), world=context.get_world_size(), device=device)
