"""Pretraining by several workers of Ray Train, which share every batch; workers that die are started again."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import Any

import ray
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchConfig
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision

from raypipe.backend.worker_groups import ElasticPolicy, WorkerGroupTrainer, free_placement_group
from raypipe.core.errors import NonFiniteError, UserError, first_line

FAREWELL = 60.0
"""Seconds that the thread which waits for the workers is given to see that they are gone; mostly it needs none."""
LIVES = 20
"""Times that the group is started again before pretraining stops; the same command goes on."""


class _Patient(DefaultFailurePolicy):  # type: ignore[misc]
    """Starts workers again, unless one has met what would meet it again."""

    def make_decision(self, training_failed_error: Exception) -> FailureDecision:
        """Go on, or give up."""
        if is_permanent(training_failed_error) is not None:
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


class _Known(ElasticPolicy):
    """Leaves word of who the controller is and what the workers hold, so that `PretrainWorkers.close` can end both."""

    def __init__(self, scaling_config: ScalingConfig, *, grows: bool, key: str) -> None:
        super().__init__(scaling_config, grows=grows)
        self._key = key

    def after_controller_start(self, train_run_context: Any) -> None:
        """Say who this is."""
        _internal_kv_put(f"{self._key}/controller", ray.cloudpickle.dumps(ray.get_runtime_context().current_actor))
        super().after_controller_start(train_run_context)

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
        """As `ElasticPolicy`; say what is held."""
        before = self._held
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        if self._held != before:
            _internal_kv_put(f"{self._key}/placement", str(self._held))
        return decision


def is_permanent(error: BaseException) -> Exception | None:
    """Of what the workers died of, bad input or a loss that is no number: the next ones would die of it too."""
    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    causes = (getattr(failure, "_base_exc", failure) for failure in failures)
    return next((cause for cause in causes if isinstance(cause, UserError | NonFiniteError)), None)


class PretrainWorkers:
    """A Ray Train run in a thread, which trains until all encoders of a pretrained run are there.

    Parameters
    ----------
    where
        The run.
    layout
        ``workers``, ``cpus`` and ``gpus`` of each, ``address``.
    scratch
        A folder for Ray Train.

    Attributes
    ----------
    error
        What went wrong, once it is over.
    """

    def __init__(self, where: str, layout: dict[str, Any], scratch: str) -> None:
        self.error: Exception | None = None
        self._key = f"raypipe-pretrain-{ray.get_runtime_context().get_job_id()}"
        gpus, grows = float(layout["gpus"]), bool(layout.get("address"))
        alone = not (gpus or grows)
        trainer = WorkerGroupTrainer(
            train,
            train_loop_config={
                "where": where,
                "cpus": layout["cpus"],
                "stop": f"{self._key}/stop",
                "meet": scratch if alone else "",
            },
            backend_config=None if alone else TorchConfig(backend="nccl" if gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=int(layout["workers"]),
                use_gpu=gpus > 0,
                resources_per_worker={"CPU": layout["cpus"], **({"GPU": gpus} if gpus else {})},
            ),
            run_config=RunConfig(name="pretrain", storage_path=scratch, failure_config=FailureConfig(LIVES)),
        )
        trainer.policies = {
            "scaling_policy": _Known(trainer.scaling_config, grows=grows, key=self._key),
            "failure_policy": _Patient(FailureConfig(LIVES)),
        }
        self._start(trainer)

    def _start(self, trainer: WorkerGroupTrainer) -> None:
        # Not the thread's own `join`: one that a Ctrl-C interrupts takes the thread for dead (CPython's gh-90882).
        self._over = threading.Event()
        threading.Thread(target=self._fit, args=(trainer,), daemon=True).start()

    def _fit(self, trainer: WorkerGroupTrainer) -> None:
        try:
            trainer.fit()
        except Exception as error:
            self.error = is_permanent(error) or error
        finally:
            self._over.set()

    def over(self, seconds: float) -> bool:
        """Whether it is over, after `seconds` at most."""
        return self._over.wait(seconds)

    def drain(self) -> None:
        """Have the workers end after the epoch under way."""
        _internal_kv_put(f"{self._key}/stop", "1")

    def close(self) -> None:
        """End what is left, at once. No thread may still wait for them when Ray is left: Ray would end the process."""
        controller, placement = (_internal_kv_get(f"{self._key}/{name}") for name in ("controller", "placement"))
        if not self.over(0):
            with contextlib.suppress(ray.exceptions.RayError):
                if controller:
                    ray.kill(ray.cloudpickle.loads(controller))
                free_placement_group(placement.decode() if placement else None)
            self.over(FAREWELL)
        for name in ("controller", "placement", "stop"):
            _internal_kv_del(f"{self._key}/{name}")


def error_line(error: Exception) -> str:
    """An error of the workers in one line: of a traceback, its last."""
    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    lines = next((str(failure).strip().splitlines() for failure in failures), [])
    return (lines[-1] if lines else first_line(error))[:300]


def meet(folder: str, rank: int, world: int) -> None:
    """Have the workers of this machine find each other by a file, and speak on its loopback only.

    Ray Train would have them meet at a port that is open to all, and gloo listen where the machine's name leads to.
    """
    import torch.distributed as dist

    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    if loopback:
        os.environ["GLOO_SOCKET_IFNAME"] = loopback
    placement = ray.util.get_current_placement_group()  # another one whenever workers are started again
    path = f"{folder}/meet-{placement.id.hex()}"
    dist.init_process_group("gloo", store=dist.FileStore(path, world), rank=rank, world_size=world)  # type: ignore[attr-defined]


def train(order: dict[str, Any]) -> None:
    """One worker (the train function)."""
    import torch

    from raypipe.pretraining.worker import work

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    if order["meet"]:
        meet(order["meet"], rank, world)
    torch.set_num_threads(max(1, int(order["cpus"])))
    device = "cuda" if torch.cuda.is_available() and ray.get_gpu_ids() else "cpu"
    work(
        order["where"],
        rank=rank,
        world=world,
        device=device,
        stopping=lambda: bool(_internal_kv_get(order["stop"])),
    )
