"""Private API of Ray Train that raypipe needs. Importing Ray Train takes seconds, so this is a module of its own."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ray
from ray import _raylet
from ray._common.constants import RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR
from ray.train import ScalingConfig, WorkerGroupError
from ray.train.v2._internal.constants import (
    DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE,
    get_env_vars_to_propagate,
)
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import (
    FixedScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)
from ray.train.v2._internal.execution.worker_group import WorkerGroupPollStatus, WorkerGroupState
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import ControllerError

if TYPE_CHECKING:
    from ray.actor import ActorHandle

__all__ = [
    "DefaultFailurePolicy",
    "FailureDecision",
    "NoopDecision",
    "ResizeDecision",
    "ScalingDecision",
    "ScalingPolicy",
    "WorkerGroupPollStatus",
    "WorkerGroupState",
    "WorkerGroupTrainer",
    "health_check_cause",
    "placement_group_of",
    "raised_error",
    "worker_errors",
    "worker_tracebacks",
]

WAIT_STEP_SECONDS = 0.5
"""Seconds after which a thread that waits for a controller looks whether the driver leaves Ray."""


class ScalingPolicy(FixedScalingPolicy):  # type: ignore[misc]
    """Ray Train's policy of a fixed number of workers, with names of its own for what subclasses need.

    Parameters
    ----------
    scaling_config
        The workers asked for.
    autoscaling
        Whether the cluster may start machines; if not, none are requested, which would start Ray Data's coordinator.
    """

    def __init__(self, scaling_config: ScalingConfig, *, autoscaling: bool) -> None:
        super().__init__(scaling_config)
        self._autoscaling = autoscaling

    def after_controller_start(self, train_run_context: Any) -> None:
        """Request machines."""
        if self._autoscaling:
            super().after_controller_start(train_run_context)

    def request_resources(self) -> None:
        """Repeat the request for machines, if it is due."""
        if self._autoscaling:
            self._maybe_send_resource_request()

    @property
    def num_workers(self) -> int:
        """Return the number of workers asked for."""
        return int(self.scaling_config.num_workers)

    @property
    def resources_per_worker(self) -> dict[str, float]:
        """Return the resources of a worker, by name."""
        return dict(self.scaling_config._resources_per_worker_not_none)


class WorkerGroupTrainer(DataParallelTrainer):  # type: ignore[misc]
    """Ray Train's trainer with policies of its own, a wait that can be ended, and without two of its callbacks.

    One callback is the detached actor that polls for a dead controller: it queries Ray's state API, which needs a
    dashboard, and `raypipe.backend.worker_groups` does its work. The other starts the actor that manages Ray Data's
    datasets, which imports Ray Data for seconds and has nothing to manage here.
    """

    controller: type[TrainController] = TrainController
    policies: Mapping[str, Any]
    """Arguments of the controller by name: ``scaling_policy``, ``failure_policy``; to be set before `fit`."""
    left: threading.Event | None = None
    """Ends `fit` with an error once it is set."""
    spread_bytes: int = 0
    """Bytes of memory that the controller requests on any node, spread over them all; 0: it is on the driver's."""
    handle: ActorHandle | None = None
    """The controller, once it is requested."""
    _LEFT_OUT = ("PlacementGroupCleanerCallback", "DatasetsCallback")

    def _create_default_callbacks(self) -> list[Any]:
        return [c for c in super()._create_default_callbacks() if type(c).__name__ not in self._LEFT_OUT]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        """Run the controller as Ray does, but on a node by `spread_bytes`, and wait for it in steps.

        Ray waits in one call. Where a driver leaves Ray while a thread of it is in such a call, Ray ends the driver.
        """
        settings = get_env_vars_to_propagate()
        warning = DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE
        settings.setdefault(RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR, warning)
        where: dict[str, Any]
        if self.spread_bytes:
            where = {"memory": self.spread_bytes, "scheduling_strategy": "SPREAD"}
        else:
            node: Any = _raylet  # a compiled module, whose types Ray does not ship
            where = {"label_selector": {node.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}}
        actor = ray.remote(num_cpus=0, runtime_env={"env_vars": settings}, **where)(self.controller)
        self.handle = controller = actor.remote(**{**arguments, **self.policies})
        self._await(controller.run.remote())
        return self._await(controller.get_result.remote())

    def kill(self) -> None:
        """Kill the controller, whether it runs, waits for a node, or is on one that cannot be reached."""
        if self.handle is not None:
            ray.kill(self.handle)

    def _await(self, answer: Any) -> Any:
        while not ray.wait([answer], timeout=WAIT_STEP_SECONDS)[0]:
            if self.left is not None and self.left.is_set():
                raise RuntimeError("the driver leaves Ray")
        return ray.get(answer)


def placement_group_of(state: WorkerGroupState) -> str:
    """Return the id in hex of a worker group's placement group."""
    return str(state.placement_group_handle.placement_group.id.hex())


def worker_errors(error: BaseException) -> list[BaseException]:
    """Return what the workers of a failed group raised, without the wrapper that holds the traceback.

    An error before the train function is called fails the controller.
    """
    if isinstance(error, ControllerError):
        return [getattr(error.controller_failure, "cause", None) or error.controller_failure]
    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    return [raised_error(failure) for failure in failures]


def raised_error(error: BaseException) -> BaseException:
    """Return what a worker raised, without the wrapper that holds the traceback; any other error as it is."""
    raised: BaseException = getattr(error, "_base_exc", error)
    return raised


def worker_tracebacks(error: BaseException) -> list[str]:
    """Return the tracebacks of the workers of a failed group."""
    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    return [str(failure) for failure in failures]


def health_check_cause(error: BaseException) -> BaseException:
    """Return why Ray Train's health check of a worker failed; any other error as it is."""
    cause: BaseException = getattr(error, "health_check_failure", error)
    return cause
