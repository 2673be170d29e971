"""Ray Train's process group of torch, for workers that share every batch.

A module of its own, since it imports torch: the driver of a sweep and the controllers of its groups need none.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.train.torch.config import TorchConfig, _TorchBackend

from raypipe.training.device import require_gpu


class GpuTorchConfig(TorchConfig):  # type: ignore[misc]
    """Settings of torch's process group, whose workers first check that they can compute on the GPUs they hold.

    NCCL's own error, which would come before the train function is called, names neither the option nor the reason.
    """

    @property
    def backend_cls(self) -> type[_GpuTorchBackend]:
        """Return the class that prepares the workers."""
        return _GpuTorchBackend


class _GpuTorchBackend(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(_require_gpu, float(worker_group.get_resources_per_worker().get("GPU", 0)))
        super().on_start(worker_group, backend_config)


def _require_gpu(gpus: float) -> None:
    require_gpu(gpus, ray.get_gpu_ids())
