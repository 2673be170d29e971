"""Ray Train's controller for workers that report to the sweep's broker and never to Ray Train.

Ray Train starts an actor beside every group, which synchronises the workers' reports. It takes 0.12 GB and two seconds
of a processor at each start of a group, and would do nothing here. Private API of Ray Train, as in `train_compat`.
"""

from __future__ import annotations

from typing import Any

from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import WorkerGroup, state, worker_group


class GroupController(TrainController):  # type: ignore[misc]
    """Controller of a group without the synchronisation actor; the process that it runs in is its own."""

    def __init__(self, **arguments: Any) -> None:
        without_synchronization()
        super().__init__(**arguments)

    class worker_group_cls(WorkerGroup):  # type: ignore[misc] # noqa: N801 - the name of Ray's attribute
        """Group whose workers wait for no report of each other."""

        def set_required_barrier_ranks(self, ranks: Any) -> bool:
            """Return that there is no barrier to relax."""
            return False


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
