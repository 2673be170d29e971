"""Pretraining by several Ray Train workers that share every batch; workers that die are restarted."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from datetime import timedelta
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig

from raypipe.backend.messages import PretrainLayout
from raypipe.backend.process_state import deferred_interrupt
from raypipe.backend.ray_compat import (
    kill_actor,
    kv_delete,
    kv_get,
    kv_put,
    pickled_current_actor,
    remove_placement_group,
)
from raypipe.backend.resources import worker_resources
from raypipe.backend.torch_config import GpuTorchConfig
from raypipe.backend.train_compat import (
    DefaultFailurePolicy,
    FailureDecision,
    ScalingDecision,
    WorkerGroupPollStatus,
    WorkerGroupState,
    WorkerGroupTrainer,
    worker_errors,
    worker_tracebacks,
)
from raypipe.backend.worker_groups import ElasticPolicy
from raypipe.core.errors import NonFiniteError, UserError, first_line

THREAD_SECONDS = 60.0
"""Seconds that the waiting thread may take to notice that the workers were killed; usually it takes none."""
EXCHANGE_SECONDS = 7 * 86_400
"""Seconds that workers wait for one another in an exchange: the first one's probes take as long as they take, and Ray
Train restarts the group of a worker that dies."""
MAX_RESTARTS = 20
"""Times that the group is restarted before pretraining stops; the same command continues it."""


class RestartPolicy(DefaultFailurePolicy):  # type: ignore[misc]
    """Failure policy that restarts the workers unless their error would occur again."""

    def make_decision(self, training_failed_error: Exception) -> FailureDecision:
        """Restart or give up."""
        if permanent_error(training_failed_error) is not None:
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


class _PublishedPolicy(ElasticPolicy):
    """Policy that publishes the controller and the placement group, so that `PretrainWorkers.close` can end both."""

    def __init__(self, scaling_config: ScalingConfig, *, autoscaling: bool, key: str) -> None:
        super().__init__(scaling_config, autoscaling=autoscaling)
        self._key = key

    def after_controller_start(self, train_run_context: Any) -> None:
        """Publish the controller and request machines."""
        kv_put(f"{self._key}/controller", pickled_current_actor())
        super().after_controller_start(train_run_context)

    def make_decision_for_running_worker_group(
        self, worker_group_state: WorkerGroupState, worker_group_status: WorkerGroupPollStatus
    ) -> ScalingDecision:
        """Publish a new placement group and decide as `ElasticPolicy`."""
        before = self._placement_group
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        if self._placement_group != before:
            kv_put(f"{self._key}/placement", str(self._placement_group))
        return decision


def permanent_error(error: BaseException) -> Exception | None:
    """Return the workers' error that a restart would raise again: bad input, or a loss that is not finite."""
    return next((cause for cause in worker_errors(error) if isinstance(cause, UserError | NonFiniteError)), None)


class PretrainWorkers:
    """A Ray Train run, in a thread, that trains until all encoders of a pretrained run are written.

    Parameters
    ----------
    where
        Path or URI of the run.
    layout
        Number of workers, and the resources of each.
    scratch
        Folder for Ray Train.

    Attributes
    ----------
    error
        Why it failed, once it has ended.
    """

    def __init__(self, where: str, layout: PretrainLayout, scratch: str) -> None:
        self.error: Exception | None = None
        self._key = f"raypipe-pretrain-{ray.get_runtime_context().get_job_id()}"
        gpus, autoscaling = layout.gpus_per_worker, bool(layout.address)
        single_machine = not (gpus or autoscaling)
        trainer = WorkerGroupTrainer(
            train,
            train_loop_config={
                "where": where,
                "cpus": layout.cpus_per_worker,
                "gpus": gpus,
                "stop": f"{self._key}/stop",
                "rendezvous": scratch if single_machine else "",
            },
            backend_config=None
            if single_machine
            else GpuTorchConfig(backend="nccl" if gpus else "gloo", timeout_s=EXCHANGE_SECONDS),
            scaling_config=ScalingConfig(
                num_workers=layout.workers,
                use_gpu=gpus > 0,
                resources_per_worker=worker_resources(layout.cpus_per_worker, gpus),
            ),
            run_config=RunConfig(name="pretrain", storage_path=scratch, failure_config=FailureConfig(MAX_RESTARTS)),
        )
        trainer.policies = {
            "scaling_policy": _PublishedPolicy(trainer.scaling_config, autoscaling=autoscaling, key=self._key),
            "failure_policy": RestartPolicy(FailureConfig(MAX_RESTARTS)),
        }
        self._start(trainer)

    def _start(self, trainer: WorkerGroupTrainer) -> None:
        # An event instead of the thread's `join`, which takes a thread for ended after a Ctrl-C (CPython gh-90882).
        self._ended = threading.Event()
        threading.Thread(target=self._fit, args=(trainer,), daemon=True).start()

    def _fit(self, trainer: WorkerGroupTrainer) -> None:
        try:
            trainer.fit()
        except Exception as error:
            self.error = permanent_error(error) or error
        finally:
            self._ended.set()

    def wait(self, seconds: float) -> bool:
        """Wait for the end, `seconds` at most; return whether it has come."""
        return self._ended.wait(seconds)

    def drain(self) -> None:
        """Make the workers end after the epoch under way."""
        kv_put(f"{self._key}/stop", "1")

    def close(self) -> None:
        """Kill the workers if they have not ended.

        Ray ends the driver's process if a thread still waits for workers when Ray is shut down. So the thread ends
        here.
        """
        with deferred_interrupt():
            self._close()

    def _close(self) -> None:
        controller, placement_group = kv_get(f"{self._key}/controller"), kv_get(f"{self._key}/placement")
        if not self.wait(0):
            with contextlib.suppress(ray.exceptions.RayError):
                if controller:
                    kill_actor(controller)
                remove_placement_group(placement_group.decode() if placement_group else None)
            self.wait(THREAD_SECONDS)
        for name in ("controller", "placement", "stop"):
            kv_delete(f"{self._key}/{name}")


def error_line(error: Exception) -> str:
    """Return an error of the workers in one line: the last one of a traceback."""
    lines = next((text.strip().splitlines() for text in worker_tracebacks(error)), [])
    return (lines[-1] if lines else first_line(error))[:300]


def join_by_file(folder: str, rank: int, world: int) -> None:
    """Initialise torch's process group of this machine's workers by a file, on the loopback interface.

    Ray Train would use a port that is open to all, and gloo would listen where the machine's name resolves to.
    """
    import torch.distributed as dist

    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    if loopback:
        os.environ["GLOO_SOCKET_IFNAME"] = loopback
    placement_group = ray.util.get_current_placement_group()  # a new one after every restart
    path = f"{folder}/rendezvous-{placement_group.id.hex()}"
    store = dist.FileStore(path, world)  # type: ignore[attr-defined]
    timeout = timedelta(seconds=EXCHANGE_SECONDS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timeout)


def train(settings: dict[str, Any]) -> None:
    """Train as one worker (the train function of Ray Train)."""
    import torch

    from raypipe.pretraining.worker import train_encoders
    from raypipe.training.device import worker_device

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    if settings["rendezvous"]:
        join_by_file(settings["rendezvous"], rank, world)
    torch.set_num_threads(max(1, int(settings["cpus"])))
    train_encoders(
        settings["where"],
        rank=rank,
        world=world,
        device=worker_device(settings["gpus"], ray.get_gpu_ids()),
        gpu_share=settings["gpus"] or 1.0,
        stopping=lambda: bool(kv_get(settings["stop"])),
    )
