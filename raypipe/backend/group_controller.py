"""Ray Train's controller for workers that report to the sweep's broker and never to Ray Train.

Ray Train starts an actor beside every group, which synchronises the workers' reports. It takes 0.12 GB and two seconds
of a processor at each start of a group, and would do nothing here. Private API of Ray Train, as in `train_compat`.

A controller may be on any node. If Ray gives up that node while the controller lives, the driver starts another, and
this one must start no more workers: it asks the broker before each placement group.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import ray
from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as coordinator
from ray.train.constants import _get_ray_train_session_dir
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import WorkerGroup, state, worker_group
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

if TYPE_CHECKING:
    from raypipe.backend.messages import GroupStart


class GroupController(TrainController):  # type: ignore[misc]
    """Controller of a group without the synchronisation actor; the process that it runs in is its own."""

    def __init__(self, **arguments: Any) -> None:
        without_synchronization()
        # Ray Train makes a folder. The driver's scratch folder need not be there on this node.
        arguments["train_run_context"].run_config.storage_path = _get_ray_train_session_dir()
        super().__init__(**arguments)

    class worker_group_cls(WorkerGroup):  # type: ignore[misc] # noqa: N801 - the name of Ray's attribute
        """Group whose workers wait for no report of each other, with named placement groups."""

        def set_required_barrier_ranks(self, ranks: Any) -> bool:
            """Return that there is no barrier to relax."""
            return False

        def _create_placement_group(self, scaling_config: Any, worker_group_context: Any) -> Any:
            """Create a placement group that can be found when this controller is dead; end if it was replaced."""
            start: GroupStart = self._train_run_context.train_loop_config["start"]
            if not ray.get(start.context.broker.is_current.remote(start.group, start.number)):
                ray.actor.exit_actor()
            bundles = [worker_group_context.resources_per_worker] * worker_group_context.num_workers
            name = f"{start.placement_groups}{uuid.uuid4().hex}"
            made = placement_group(bundles, strategy=worker_group_context.placement_strategy, name=name)
            return DefaultPlacementGroupHandle(made)


class NoSynchronization:
    """Stand-in for the class of the actor, its options, and the actor."""

    @classmethod
    def options(cls, **options: Any) -> type[NoSynchronization]:
        """Return the class."""
        return cls

    @classmethod
    def remote(cls, **arguments: Any) -> NoSynchronization:
        """Return an instance, which is passed to the workers in place of an actor."""
        return cls()


def without_synchronization() -> None:
    """Make Ray Train in this process start groups without the synchronisation actor."""
    worker_group.SynchronizationActor = NoSynchronization
    state._shutdown_sync_actor = lambda actor: None


def with_coordinator_on(node: str) -> None:
    """Make Ray Train in this process start the actor that passes on requests for machines on a node, the driver's.

    There is one for all controllers. Ray Train binds it to the node of the controller that is first, and where that
    node is lost, no request of the others is heard again.
    """
    coordinator.NodeAffinitySchedulingStrategy = lambda _, soft: NodeAffinitySchedulingStrategy(node, soft)
