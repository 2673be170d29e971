"""Groups of Ray Train workers that serve trial after trial, kept running by the driver.

In Tune's usual pattern each trial starts a trainer with a controller and workers of its own, which takes about 16 s.
Here a sweep starts its groups once, beside Tune's trial actors. An actor acquires a group, and the group's workers
train the trials that the actor assigns through the sweep's `Broker`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
import uuid
from collections.abc import Iterable
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback

from raypipe.backend.control_store import listens
from raypipe.backend.group_controller import GroupController, with_coordinator_on
from raypipe.backend.messages import GroupStart, SweepContext
from raypipe.backend.ray_compat import (
    free_resources,
    nodes_of_placement_group,
    remove_named_placement_groups,
)
from raypipe.backend.resources import PROCESS_BYTES, count_places, worker_resources
from raypipe.backend.train_compat import (
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
    ScalingPolicy,
    WorkerGroupPollStatus,
    WorkerGroupState,
    WorkerGroupTrainer,
    health_check_cause,
    placement_group_of,
    raised_error,
)
from raypipe.backend.worker import serve
from raypipe.core.errors import first_line, out_of_memory
from raypipe.storage.files import open_folder
from raypipe.storage.trial_log import TrialLog
from raypipe.trial.failures import OUT_OF_MEMORY, Failure

log = logging.getLogger(__name__)

MAX_GROUP_STARTS = 4
"""Times that a group with a trial is started without an epoch in between, if its controller dies.

Ray Train restarts workers.
"""
IDLE_START_SECONDS = 1.0
"""Seconds before a group that has no trial is started again."""
CLOSE_SECONDS = 10.0
"""Seconds in which groups may end by themselves before their controllers are killed."""
ABANDON_SECONDS = 3.0
"""Seconds that the broker, and then the groups' threads, may take where Ray's control store is away."""
STORE_CHECK_SECONDS = 0.5
"""Seconds between two checks whether a control store is back."""
THREAD_SECONDS = 60.0
"""Seconds that a thread may take to notice that its group has been killed; usually it takes none."""
FIT_CHECK_SECONDS = 0.5
"""Seconds between two counts of free resources by a controller whose workers do not fit; its loop does not wait."""
SHRINK_AFTER_SECONDS = 30.0
"""Seconds that a group waits for resources for all its workers before it continues with fewer."""
GROW_CHECK_SECONDS = 30.0
"""Seconds between two checks whether a group with fewer workers can have all of them again."""


class ElasticPolicy(ScalingPolicy):
    """Scaling policy that continues with fewer workers where a lost machine does not return, and grows again.

    Ray's own elastic policy resizes whenever another group takes or releases resources, and asks Ray Data's autoscaler
    first, which takes 2 to 3 s of a start on a machine that cannot grow.

    Parameters
    ----------
    scaling_config
        The workers asked for.
    autoscaling
        Whether the cluster may start machines.
    started
        Whether the group was started before, by a controller that has died.
    """

    def __init__(self, scaling_config: ScalingConfig, *, autoscaling: bool, started: bool = False) -> None:
        super().__init__(scaling_config, autoscaling=autoscaling)
        self._started = started
        self._placement_group: str | None = None
        self._short_since = self._checked = math.inf

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Start all workers where they fit; after `SHRINK_AFTER_SECONDS`, those that fit."""
        self.request_resources()
        wanted = self.num_workers
        fitting = workers_that_fit(self.resources_per_worker, self._placement_group) if self._started else wanted
        self._started = True
        self._checked = now = time.monotonic()
        if fitting >= wanted:
            self._short_since = math.inf
        else:
            self._short_since = min(self._short_since, now)
            if not fitting or now - self._short_since < SHRINK_AFTER_SECONDS:
                time.sleep(FIT_CHECK_SECONDS)
                return NoopDecision()
        return ResizeDecision(min(fitting, wanted), self.resources_per_worker)

    def make_decision_for_running_worker_group(
        self, worker_group_state: WorkerGroupState, worker_group_status: WorkerGroupPollStatus
    ) -> ScalingDecision:
        """Restart with all workers once the missing ones fit."""
        self.request_resources()
        self._placement_group = placement_group_of(worker_group_state)
        missing = self.num_workers - worker_group_state.num_workers
        now = time.monotonic()
        if missing <= 0 or now - self._checked < GROW_CHECK_SECONDS:
            return NoopDecision()
        self._checked = now
        if workers_that_fit(self.resources_per_worker) < missing:
            return NoopDecision()
        return ResizeDecision(self.num_workers, self.resources_per_worker)


def workers_that_fit(resources: dict[str, float], placement_group: str | None = None) -> int:
    """Return how many workers fit in the free resources of the cluster's nodes.

    Parameters
    ----------
    resources
        Resources of a worker, by name.
    placement_group
        A placement group of such workers that will be removed: its bundles on live nodes count as free.
    """
    free = free_resources()
    fitting = count_places(free.values(), resources)
    if placement_group:
        fitting += sum(node in free for node in nodes_of_placement_group(placement_group))
    return fitting


class _RegisteredPolicy(ElasticPolicy):
    """Policy of a sweep's group, whose controller begins with nothing of earlier starts left."""

    def __init__(self, scaling_config: ScalingConfig, start: GroupStart) -> None:
        super().__init__(scaling_config, autoscaling=start.context.autoscaling, started=start.number > 0)
        self._start = start

    def after_controller_start(self, train_run_context: Any) -> None:
        """Remove placement groups that dead controllers have left, before free resources are counted."""
        start = self._start
        if not ray.get(start.context.broker.is_current.remote(start.group, start.number)):
            raise RuntimeError(f"{start.group} was closed before its controller started")
        with_coordinator_on(start.node)
        if start.number:
            remove_named_placement_groups(start.placement_groups)
        super().after_controller_start(train_run_context)


class DeathCallback(UserCallback):  # type: ignore[misc]
    """Report deaths of a group's workers to the broker and write them to the trial's log; runs in the controller.

    A trial is to blame for a worker that Ray has killed to save the machine's memory, and for no other death.
    """

    def __init__(self, context: SweepContext, group: str) -> None:
        self.context, self.group = context, group

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Report the deaths. An error in here would end the controller, so none is raised."""
        with contextlib.suppress(Exception):
            self._report(worker_exceptions)

    def _report(self, worker_exceptions: dict[int, Exception]) -> None:
        causes = {rank: health_check_cause(error) for rank, error in worker_exceptions.items()}
        starved = next((cause for cause in causes.values() if out_of_memory(cause)), None)
        failure = Failure(OUT_OF_MEMORY, f"killed by Ray: {first_line(starved)}") if starved else None
        job = ray.get(self.context.broker.report_worker_death.remote(self.group, failure))
        if job is not None:
            trial_log = TrialLog(open_folder(job.run), job.number, self.group)
            for rank, cause in causes.items():
                trial_log.write(f"worker {rank} died ({first_line(raised_error(cause))}); the group restarts")


class WorkerGroups:
    """The worker groups of a driver; each is a Ray Train run in a thread of the driver.

    The controllers are spread over the nodes of a cluster, and are beside the driver where there is one node.

    Parameters
    ----------
    context
        Settings that every worker receives.
    count
        Number of groups.

    Attributes
    ----------
    DRIVER_BYTES
        Bytes of memory per group that the driver's own machine needs, beside the group's processes.
    PROCESSES
        Processes of `PROCESS_BYTES` per group, on any machine: its controller and its trial actor.
    """

    DRIVER_BYTES = 3 * 10**6
    PROCESSES = 2

    def __init__(self, context: SweepContext, count: int) -> None:
        self.context = context
        self.names = [f"group-{number}" for number in range(count)]
        self._placement_groups = f"raypipe-{uuid.uuid4().hex}-"
        self._spread_bytes = PROCESS_BYTES if sum(node["Alive"] for node in ray.nodes()) > 1 else 0
        self._trainers: dict[str, WorkerGroupTrainer] = {}
        self._closing, self._left = False, threading.Event()
        for name in self.names:
            ray.get(context.broker.open_group.remote(name))
        self._threads = [threading.Thread(target=self._run, args=(name,), daemon=True) for name in self.names]
        for thread in self._threads:
            thread.start()

    def _run(self, name: str) -> None:
        """Start a group until it is closed, or has failed `MAX_GROUP_STARTS` times without an epoch in between.

        A failure of a group without a trial is not counted: a long sweep may lose many machines.
        """
        # A broker that has died ends the thread: the sweep restarts with other groups.
        with contextlib.suppress(ray.exceptions.ActorDiedError):
            reason, attempts = "", MAX_GROUP_STARTS
            while (begun := ray.get(self.context.broker.begin_start.remote(name))) is not None:
                number, epochs, idle = begun
                attempts = MAX_GROUP_STARTS if epochs else attempts
                if idle and number:
                    attempts += 1
                    self._left.wait(IDLE_START_SECONDS)
                if not attempts:
                    reason = f"its workers could not be kept running: {reason}"
                    ray.get(self.context.broker.mark_broken.remote(name, reason))
                    return
                attempts -= 1
                node = ray.get_runtime_context().get_node_id()
                reason = self._fit(GroupStart(self.context, name, number, node, f"{self._placement_groups}{name}-"))
                if self._closing:
                    return
                log.warning("%s ended (%s)", name, reason)
                if not self._await_store():
                    return
                self._kill([name])  # Ray may have lost the connection to it only

    def _fit(self, start: GroupStart) -> str:
        """Run a start of a group to its end; return why it has failed, if it has."""
        try:
            self._trainers[start.group] = trainer = self._trainer(start)
            trainer.fit()
        except Exception as error:
            return first_line(error)
        return ""

    def _await_store(self) -> bool:
        """Wait for Ray's control store, which a start needs; return False if the driver leaves Ray.

        The store may have died with the controller, and Ray's calls could not be ended while they wait for it.
        """
        while not listens(ray.get_runtime_context().gcs_address):
            if self._left.wait(STORE_CHECK_SECONDS):
                return False
        return True

    def _kill(self, names: Iterable[str]) -> None:
        """Kill the controllers of groups."""
        with contextlib.suppress(ray.exceptions.RayError):
            for name in names:
                if name in self._trainers:
                    self._trainers[name].kill()

    def _trainer(self, start: GroupStart) -> WorkerGroupTrainer:
        context = self.context
        trainer = WorkerGroupTrainer(
            serve,
            train_loop_config={"start": start},
            scaling_config=ScalingConfig(
                num_workers=context.workers,
                use_gpu=context.gpus > 0,
                resources_per_worker=worker_resources(context.cpus, context.gpus),
            ),
            run_config=RunConfig(
                name=f"{start.group}-{start.number}",
                storage_path=context.scratch,
                failure_config=FailureConfig(max_failures=-1),
                callbacks=[DeathCallback(context, start.group)],
            ),
        )
        trainer.controller = GroupController
        trainer.left, trainer.spread_bytes = self._left, self._spread_bytes
        trainer.policies = {"scaling_policy": _RegisteredPolicy(trainer.scaling_config, start)}
        return trainer

    def close(self, *, now: bool = False, abandon: bool = False) -> None:
        """End the workers; with `now`, without waiting for the epoch under way.

        With `abandon`, where Ray's control store is away, the workers stop training, and the rest is left to Ray once
        the driver leaves it: other calls would wait for the store.

        Ray ends the driver's process if a thread still waits for its group when Ray is shut down. So all threads end
        here.
        """
        self._closing = True
        if abandon:
            self._abandon()
            return
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get([self.context.broker.close_group.remote(name) for name in self.names])
        self._join(0.0 if now else CLOSE_SECONDS)
        alive = [name for name, thread in zip(self.names, self._threads, strict=True) if thread.is_alive()]
        self._kill(alive)
        if alive:
            with contextlib.suppress(ray.exceptions.RayError):
                remove_named_placement_groups(self._placement_groups)
        self._join(THREAD_SECONDS)
        self._left.set()  # one that was about to start a controller may wait for a node that has the memory
        self._join(ABANDON_SECONDS)

    def _abandon(self) -> None:
        answers = [self.context.broker.close_group.remote(name) for name in self.names]
        ray.wait(answers, num_returns=len(answers), timeout=ABANDON_SECONDS)  # the broker may be gone too
        self._left.set()
        self._join(ABANDON_SECONDS)

    def _join(self, seconds: float) -> None:
        """Wait for the threads to end, `seconds` at most in all."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))
